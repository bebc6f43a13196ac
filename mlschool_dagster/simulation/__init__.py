"""The outside world: clients who send traffic, and experts who tell the truth about it later.

Belongs here: what stands in for real traffic and real labels, and the diary in which the simulated
world remembers its own truth. Clients know the endpoint only through a function that invokes it;
experts know the capture store only as something that lists unlabelled captures and takes labels.

Does not belong here: anything that the platform itself needs. Without this package it works the
same, on real traffic.
"""
