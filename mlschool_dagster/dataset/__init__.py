"""Data sets: the spec, reading it by URI, the meaning of a cell, the contract.

Belongs here: everything that is known about the data before there is a model. Does not belong here:
models, captures, Dagster.
"""
