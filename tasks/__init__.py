"""Prefect tasks: thin wrappers over :mod:`ferry`."""
