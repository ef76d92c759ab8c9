"""Which of several methods is better, on these cases and beyond: paired statistics on tables of scores."""
