"""Promotion: challengers, their evidence, and the sensors that retrain and roll out."""
