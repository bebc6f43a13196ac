"""The platform's own files: frozen data, frozen windows, reports."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.retention import is_window_folder
from mlschool_dagster.owned import make_owned
from mlschool_dagster.settings import setting

FIRST_WINDOW = "first_window"
"""File, among the platform's own, that says where the windows begin."""


class PlatformFiles(dg.ConfigurableResource):  # type: ignore[type-arg]
    """One folder for what assets keep outside MLflow, and how a browser reaches it."""

    root: str = Field(description="Folder that holds frozen data, windows and reports.")
    version_cache: str = Field(description="Folder into which registered versions are fetched.")
    url: str = setting("files_url")
    compilation_cache: str = Field(description="Folder of JAX's persistent compilation cache.")

    def dataset(self, name: str) -> Path:
        """Where the data set `name` is kept as it was last read."""
        return Path(self.root) / "data" / f"{name}.parquet"

    @property
    def batch(self) -> Path:
        """Where batch predictions go unless told otherwise."""
        return Path(self.root) / "batch_predictions"

    @property
    def versions(self) -> Path:
        """Where registered versions are kept once they have been fetched."""
        return Path(self.version_cache)

    def window(self, window: Window, name: str) -> Path:
        """Where the file `name` of a window is kept."""
        return self.windows / window.folder / name

    def new_in_window(self, window: Window, name: str) -> Path:
        """Where to write the file `name` of a window, in a folder that retention may remove."""
        path = self.window(window, name)
        make_owned(path.parent, is_window_folder)
        return path

    @property
    def windows(self) -> Path:
        """Where the files of windows are kept, a folder each."""
        return Path(self.root) / "windows"

    @property
    def first_window(self) -> Path:
        """Where it is kept where the windows begin."""
        return Path(self.root) / FIRST_WINDOW

    def link(self, path: Path) -> dg.MetadataValue:
        """A link that opens `path` in the browser, or its path when the folder is not served."""
        if not self.url:
            return dg.MetadataValue.path(path)
        return dg.MetadataValue.url(f"{self.url}/{path.relative_to(self.root).as_posix()}")
