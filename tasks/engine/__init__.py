"""The engine: plan, transfer, ledger. It imports no Prefect and reads no environment."""
