"""What the fixture `logged` gives."""

from typing import NamedTuple


class Logged(NamedTuple):
    tracking_uri: str
    run_id: str
    model_uri: str
