"""Folders of scans to a Dataset, its faults and its folds."""
