"""Measuring on this machine: parts of models cut out and timed against each other, and the records of it."""
