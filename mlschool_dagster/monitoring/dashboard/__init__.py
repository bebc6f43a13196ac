"""One page about the newest windows: is the model healthy, since when not, and what to do.

Belongs here: verdicts, figures and layout of that page, made from metrics and events that it is
given. Does not belong here: reading them, and any statistic of a single window.
"""
