"""Local servers and data to try Ferry with: an S3 server, a fault-injecting origin, generated images."""
