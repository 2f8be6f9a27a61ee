"""A run's checkpoints: written while training goes on, checked byte by byte, loaded at any layout."""
