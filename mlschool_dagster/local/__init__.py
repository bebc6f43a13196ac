"""The whole platform on one machine: ``python -m mlschool_dagster.local demo`` (or ``dev``).

Belongs here: which processes make up the platform, their ports and life, and the demonstration that
drives them as a user would. It stands outside the package's graph: nothing imports it.

Does not belong here: anything that an asset, a sensor or a server does by itself.
"""
