"""The capture store, opened for as long as it is used."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import dagster as dg
from pydantic import Field

from mlschool_dagster.capture.store import CaptureStore, open_store


class Captures(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Captured traffic and its labels."""

    uri: str = Field(
        description="Where captures and labels are kept: sqlite:///path or postgresql://..."
    )

    @contextmanager
    def open(self) -> Iterator[CaptureStore]:
        """The store, closed with the block.

        Raises:
            UserError: the store cannot be opened.
        """
        with closing(open_store(self.uri)) as store:
            yield store
