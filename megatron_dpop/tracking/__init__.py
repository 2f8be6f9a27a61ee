"""What a run leaves for people to read: its folder, metrics, console lines, heartbeat, Weights & Biases."""
