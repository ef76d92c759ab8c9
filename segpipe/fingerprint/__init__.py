"""Measurements of a dataset: made once, and all that planning needs."""
