"""Prefect tasks, which are thin wrappers over :mod:`ferry`."""
