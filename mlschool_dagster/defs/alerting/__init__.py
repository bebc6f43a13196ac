"""Alerting: one sensor that notifies people of what fails and when it works again."""
