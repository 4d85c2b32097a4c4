"""The engine processes of a run, and how a process is tuned."""
