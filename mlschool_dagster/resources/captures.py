"""The capture store, opened for as long as it is used, and the sources that are imported."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.settings import setting

if TYPE_CHECKING:
    from mlschool_dagster.capture.sources import CaptureSource, VersionLookup


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


class CaptureSources(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Location of captures and labels written by others, in the platform's format."""

    uri: str = setting("capture_source")
    labels_uri: str = setting("label_source")
    endpoint: str = Field(default="", description="Endpoint of captures that do not name theirs.")

    @property
    def are_set(self) -> bool:
        """Whether there is anything to import from."""
        return bool(self.uri or self.labels_uri)

    def sources(self, version_of: "VersionLookup" = lambda *_: None) -> "list[CaptureSource]":
        """The sources that are set; `version_of` knows versions of captures that name none.

        Raises:
            UserError: no driver is installed for a URI.
        """
        from mlschool_dagster.capture.json_lines import JsonLines
        from mlschool_dagster.capture.sources import FsspecFiles, JsonLinesSource

        places = {self.labels_uri: "MLSCHOOL_LABEL_SOURCE", self.uri: "MLSCHOOL_CAPTURE_SOURCE"}
        parse = JsonLines(self.endpoint, version_of)
        return [
            JsonLinesSource(FsspecFiles(uri, variable), parse)
            for uri, variable in reversed(places.items())
            if uri
        ]
