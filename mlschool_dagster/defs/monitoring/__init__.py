"""Monitoring: hourly windows of captured traffic, their labels and reports, and the dashboard."""
