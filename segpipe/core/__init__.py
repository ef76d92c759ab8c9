"""The vocabulary of every stage: errors, records, grids, volumes, labels, seeds, progress."""
