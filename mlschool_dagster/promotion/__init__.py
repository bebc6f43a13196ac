"""The closed loop: from a model that got worse to a better one that serves, or back.

Belongs here: when to retrain, what a challenger must show before it may answer, which step comes
next, and the ledger of all steps. Does not belong here: training and comparing (modeling),
deployment, measuring (monitoring), and how steps are carried out: whoever runs
them asks this package what to do and tells it what happened.
"""
