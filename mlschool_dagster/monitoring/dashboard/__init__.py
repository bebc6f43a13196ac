"""One page that shows what monitoring found over many windows, beside what was deployed meanwhile.

Belongs here: what the page says and draws, from metrics and events that it is given. Does not
belong here: where those come from, and any statistics of a single window.
"""
