"""The local Prefect server and the address of the API: code that runs before Prefect is imported."""
