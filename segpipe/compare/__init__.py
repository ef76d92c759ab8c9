"""Compare methods, on these cases and beyond: paired statistics on tables of scores."""
