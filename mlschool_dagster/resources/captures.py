"""The capture store, opened for as long as it is used."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import dagster as dg

from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.settings import setting


class Captures(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Captured traffic and its labels."""

    uri: str = setting("capture_store")

    @contextmanager
    def open(self) -> Iterator[CaptureStore]:
        """The store, closed with the block.

        Raises:
            UserError: the store cannot be opened.
        """
        with closing(open_store(self.uri)) as store:
            yield store
