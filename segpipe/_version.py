"""The version, in a file that imports nothing: `segpipe/__init__.py` reaches all of the package."""

__version__ = "0.1.0"
