"""The Prefect server of this machine, and the way to any other."""
