"""Support for a flow run: signals, its state at Prefect, its concurrency slot, its progress reports."""
