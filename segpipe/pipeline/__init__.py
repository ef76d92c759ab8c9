"""The line of stages: each function runs one stage on a work folder and hands over files."""
