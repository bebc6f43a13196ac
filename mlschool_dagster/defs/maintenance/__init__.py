"""Maintenance: deletion of what is older than the retention period."""
