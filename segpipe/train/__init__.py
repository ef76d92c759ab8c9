"""From prepared cases to weights."""
