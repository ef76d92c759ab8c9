"""segpipe: from a folder of labelled scans to a model whose worth you can defend."""

__version__ = "0.1.0"
