"""Reports on a run, for the terminal, Prefect's UI, logs and metrics."""
