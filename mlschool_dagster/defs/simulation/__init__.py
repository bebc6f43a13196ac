"""Simulation: jobs that stand in for clients and labellers."""
