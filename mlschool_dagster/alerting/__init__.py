"""Telling people what is wrong, once, and that it is well again.

Belongs here: what an alert is, what becomes of a trouble that is seen again or gone, and the
channels on which it is told. Does not belong here: what counts as trouble, and how it is found out.
"""
