"""Mutation testing of the modules that decide: `python -m tests.mutations --help`."""
