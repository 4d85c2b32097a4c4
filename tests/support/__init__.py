"""What tests and documents need of the machine: PostgreSQL, systemd's units."""
