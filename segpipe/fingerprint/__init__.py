"""What a dataset is like: measured once, and all that planning needs."""
