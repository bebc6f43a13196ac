"""The lineage: what each asset is, its config, checks and metadata.

Belongs here: thin functions that fetch through resources, call one room below, and show what came
of it. One module per group of the lineage, in its order.

Does not belong here: numerics, plots, protocols, and what starts a run (that is ``automation``).
"""
