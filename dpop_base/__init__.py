"""What the trainer and the converter both stand on: errors, files, checksums, architectures, progress."""
