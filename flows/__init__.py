"""Prefect flows and the ferry command: wiring only."""
