"""Servers that misbehave on purpose, for tests: each starts on a free port of the loopback address."""
