"""Analyses of a trained fold."""
