"""The engine processes of a run, which share its chunks."""
