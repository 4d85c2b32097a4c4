"""Prefect tasks: thin wrappers over :mod:`tasks.engine`."""
