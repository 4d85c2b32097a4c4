"""Scripts that run in the peers' own virtual environment, not in Ferry's."""
