"""The engine: plan, transfer, ledger. It imports no Prefect and reads no environment."""

__version__ = "0.1.0"
