"""Scores of masks against references: anyone's masks, whatever made them."""
