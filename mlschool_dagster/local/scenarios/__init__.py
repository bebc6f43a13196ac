"""End-to-end scenarios: scripted traffic against a running platform, with the expected outcome.

``scenario`` defines a scenario and evaluates its outcome, ``catalog`` lists those that there are,
``runner`` runs one, ``command`` is the command line.
"""
