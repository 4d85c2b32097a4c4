"""Everything that is said about a run: terminal, Prefect UI, logs and metrics."""
