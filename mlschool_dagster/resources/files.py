"""The platform's files: data sets, published versions, snapshots of windows, reports."""

import hashlib
import json
from functools import cached_property
from pathlib import Path

import dagster as dg
from pydantic import Field

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.settings import setting
from mlschool_dagster.storage import Location, content_digests, is_remote, location, publish

FIRST_WINDOW = "first_window"
DIGITS = 16
"""Digits of a digest that the name of a published version has."""


class PlatformFiles(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Names of all files that one run leaves for another, below one root; and where caches are."""

    root: str = setting("files")
    version_cache: str = Field(description="Folder into which registered versions are fetched.")
    cache: str = Field(description="Folder of copies of remote files.")
    url: str = setting("files_url")
    compilation_cache: str = Field(description="Folder of JAX's persistent compilation cache.")

    @cached_property
    def top(self) -> Location:
        """The root.

        Raises:
            UserError: its scheme is not supported, or needs a package that is not installed.
        """
        return self.location(self.root)

    def location(self, uri: str) -> Location:
        """A location anywhere, by path or URI.

        Raises:
            UserError: as `top`.
        """
        return location(uri, Path(self.cache))

    def dataset(self, name: str, digest: str) -> Location:
        """The data set `name` with that content (`content_digest`)."""
        return self.datasets / name / f"{digest}.parquet"

    @property
    def datasets(self) -> Location:
        """The folder of all data sets, which has a folder for each name."""
        return self.top / "data"

    def batch(self, run_id: str) -> Location:
        """The folder of what the Dagster run `run_id` predicts."""
        return self.batches / run_id

    @property
    def batches(self) -> Location:
        """The folder of what all runs predict, a folder each."""
        return self.top / "batch_predictions"

    def publish(self, model: str, version: str, folder: Path) -> str:
        """Copy the version folder `folder` to where other machines can read it.

        Its name has a digest of its content, since another registry may give the same number again.

        Returns:
            The URI of the copy.
        """
        digests = json.dumps(content_digests(folder), sort_keys=True)
        digest = hashlib.sha256(digests.encode()).hexdigest()[:DIGITS]
        place = self.top / "versions" / model / f"{version}-{digest}"
        publish(folder, place)
        return place.uri if is_remote(place.uri) else Path(place.uri).as_uri()

    def ground_truth(self, run_id: str) -> Location:
        """The folder of the ground-truth log of the traffic that the run `run_id` simulates."""
        return self.ground_truths / run_id

    @property
    def ground_truths(self) -> Location:
        """The folder of the ground-truth logs of all runs."""
        return self.top / "ground_truth"

    @property
    def versions(self) -> Path:
        """The local folder into which registered versions are fetched."""
        return Path(self.version_cache)

    @property
    def windows(self) -> Location:
        """The folder of the windows, which has a folder for each."""
        return self.top / "windows"

    def window(self, window: Window, name: str) -> Location:
        """The file `name` of a window."""
        return self.windows / window.folder / name

    def new_in_window(self, window: Window, name: str) -> Location:
        """The file `name` of a window, to be written, in a folder that retention may remove."""
        (self.windows / window.folder).make_owned()
        return self.window(window, name)

    @property
    def first_window(self) -> Location:
        """The file that says where the windows begin."""
        return self.top / FIRST_WINDOW

    def link(self, page: Location) -> dg.MetadataValue:
        """A link that opens `page` in the browser, or its URI when the root is not served."""
        if not self.url:
            return dg.MetadataValue.path(page.uri)
        return dg.MetadataValue.url(self.url + page.uri.removeprefix(self.top.uri))
