"""Real parts to try Ferry on: an S3 server, a fault-injecting origin, generated images."""
