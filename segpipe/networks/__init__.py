"""From a NetworkSpec to a module."""
