"""The command line: parse, call one stage, print. Heavy imports stay inside the commands."""
