"""Promotion: from a degraded champion to a better model that serves, or back.

Belongs here: when to retrain, what evidence a challenger needs, the state machine of a rollout, and
the promotion ledger. Does not belong here: training and comparing (modeling), deploying
(deployment), measuring (monitoring), and executing the actions (the sensors of `defs.promotion`).
"""
