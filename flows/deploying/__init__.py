"""Deployments, schedules and alerts at a Prefect server."""
