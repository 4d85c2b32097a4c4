"""What surrounds a flow run: signals, its state at Prefect, its slot, its progress."""
