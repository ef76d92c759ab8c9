"""What every stage needs: errors, records, grids, volumes, labels, seeds, progress."""
