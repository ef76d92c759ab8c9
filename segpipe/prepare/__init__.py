"""From image files to what the network sees, and back."""
