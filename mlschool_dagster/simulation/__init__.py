"""Simulation of what surrounds the platform: clients that send traffic, people who label it.

Belongs here: traffic with and without drift, labels of a chosen quality, and the ground-truth log
that connects the two. The traffic knows the endpoint only as a function that invokes it; labellers
know the capture store only as something that lists unlabelled captures and takes labels.

Does not belong here: anything that the platform itself needs. Without this package it works the
same, on real traffic.
"""
