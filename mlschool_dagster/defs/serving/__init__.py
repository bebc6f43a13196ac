"""Serving: the endpoint, its deployments and health, and batch prediction."""
