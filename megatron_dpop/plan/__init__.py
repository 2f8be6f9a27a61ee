"""What a layout costs, by formulas: memory, FLOPs, bytes over each network, seconds. Pure: no torch, no devices."""
