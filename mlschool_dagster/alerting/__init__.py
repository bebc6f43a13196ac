"""Alerting: incidents, the transactional outbox of their notifications, and the channels.

Belongs here: the state machine of an incident, which notifications it causes, and how channels
deliver them. Does not belong here: what makes an incident fire (`alert_sources` turns asset checks,
runs, sensors and rollouts into signals).
"""
