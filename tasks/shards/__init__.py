"""Shards: parts of a run's plan that other machines transfer, each in a run of a Prefect deployment."""
