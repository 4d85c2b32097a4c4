"""The Prefect flows and the `ferry` command, which only wire tasks together."""
