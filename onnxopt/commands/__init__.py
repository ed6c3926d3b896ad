"""The commands, one function each; their docstrings and options are what `--help` shows."""
