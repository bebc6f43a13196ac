"""Data sets that one run leaves for another: Parquet files named by the digest of their content.

So a run reads exactly what the run before it wrote, whatever others have written since.
"""

from typing import TYPE_CHECKING

from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.storage import Location

if TYPE_CHECKING:
    import pandas as pd


def write_dataset(files: PlatformFiles, name: str, frame: "pd.DataFrame") -> tuple[str, Location]:
    """Keep `frame` as the data set `name`.

    Returns:
        The digest of its content, by which it is read, and where it is.
    """
    from mlschool_dagster.dataset.tables import content_digest

    digest = content_digest(frame)
    place = files.dataset(name, digest)
    with place.writing() as path:
        frame.to_parquet(path)
    return digest, place


def read_dataset(files: PlatformFiles, name: str, digest: str) -> "pd.DataFrame":
    """The data set `name` with the content that `digest` stands for.

    Raises:
        UserError: it is not there.
    """
    import pandas as pd

    place = files.dataset(name, digest)
    try:
        return pd.read_parquet(place.local())
    except FileNotFoundError:
        raise UserError(f"{name} is not at {place.uri} any more; materialize it again.") from None
