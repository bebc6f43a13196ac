"""Data: what is trained on, as it was read and as it is chosen."""
