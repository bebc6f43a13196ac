"""The registered versions of one model, by MLflow's registry.

A version is named by its number or by an alias: ``challenger`` is the newest, ``champion`` the one
that serves.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mlschool_dagster.errors import UserError
from mlschool_dagster.garbage import no_garbage_collection
from mlschool_dagster.modeling.version_folder import (
    FILES,
    NEEDED,
    REFERENCE_FILE,
    VERSION_FOLDER,
)
from mlschool_dagster.owned import make_owned

if TYPE_CHECKING:
    import pandas as pd

CHALLENGER = "challenger"
CHAMPION = "champion"

PUBLISHED_TAG = "published"
"""Tag of a version: the URI at which its folder is published."""
RUN_TAG = "dagster_run_id"
"""Tag of a version: the Dagster run that registered it."""

REMOTE = ("http:", "https:", "databricks")
"""Prefixes of the URI of a registry that is a server, perhaps on another machine."""

ORIGIN_FILE = "origin.json"
"""Written into a fetched version folder: the fields of its `RegisteredVersion`, without tags."""


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version of a registered model: its number, the MLflow run and the model it came from."""

    name: str
    version: str
    run_id: str
    source: str
    tags: dict[str, str]


def fetched(model_name: str, version: str, destination: Path) -> Path | None:
    """The folder of a version that `Registry.fetch` has left at `destination`, None without one.

    It asks no registry and does not import MLflow, which would cost more than all statistics of a
    small window. So it is for a version that is known to have been deployed from there.
    """
    if not _is_number(version):
        return None
    folder = destination / version
    origin = None if folder.is_symlink() else _read(folder / ORIGIN_FILE)
    return folder if origin and json.loads(origin)["name"] == model_name else None


class Registry:
    """The versions of `model_name` in the registry at `tracking_uri`.

    It has its own client, whatever MLflow's global tracking URI is, and leaves that as it was. A
    server is followed to files of this machine only below the folder `artifacts`, the platform's
    own.
    """

    def __init__(self, tracking_uri: str, model_name: str, artifacts: Path | None = None) -> None:
        with no_garbage_collection():
            from mlflow import MlflowClient

        self.tracking_uri = tracking_uri
        self.model_name = model_name
        self._artifacts = artifacts
        self._client = MlflowClient(tracking_uri, tracking_uri)

    def register(
        self, model_uri: str, run_id: str, tags: Mapping[str, str], description: str = ""
    ) -> str:
        """Make the logged model a new version, and it the challenger.

        MLflow shows the `description`, which is Markdown. A repeated attempt of one Dagster run (by
        the tag `RUN_TAG`) finds the version that the attempt before it has registered.

        Returns:
            The version's number.
        """
        if not self._is_registered():
            self._client.create_registered_model(self.model_name)
        for known in self._versions() if RUN_TAG in tags else ():
            if known.tags.get(RUN_TAG) == tags[RUN_TAG]:
                return str(known.version)
        with _global_tracking_uri(self.tracking_uri):
            version = self._client.create_model_version(
                self.model_name,
                source=model_uri,
                run_id=run_id,
                tags=dict(tags),
                description=description,
                # A tracking server refuses a logged model as the source without its id beside it.
                model_id=model_uri.removeprefix("models:/"),
            ).version
        self._client.set_registered_model_alias(self.model_name, CHALLENGER, version)
        return str(version)

    def resolve(self, version: str) -> RegisteredVersion:
        """The version of that number or alias.

        Raises:
            UserError: there is none; the sentence names those that exist.
        """
        number = self._aliases().get(version, version)
        for registered in self._versions() if _is_number(number) else ():
            if str(registered.version) == number:
                return RegisteredVersion(
                    name=self.model_name,
                    version=number,
                    run_id=registered.run_id,
                    source=registered.source,
                    tags=dict(registered.tags),
                )
        raise UserError(f"Model {self.model_name} has no version {version!r}; {self._choices()}.")

    def promote(self, version: str) -> None:
        """Make the version the champion; it is then no longer the challenger.

        Raises:
            UserError: there is no such version.
        """
        number = self.resolve(version).version
        self._client.set_registered_model_alias(self.model_name, CHAMPION, number)
        if CHALLENGER in self.aliases(number):
            self._client.delete_registered_model_alias(self.model_name, CHALLENGER)

    def tag(self, version: str, tags: Mapping[str, str]) -> None:
        """Add `tags` to the version, in place of those of the same name.

        Raises:
            UserError: there is no such version.
        """
        number = self.resolve(version).version
        for name, value in tags.items():
            self._client.set_model_version_tag(self.model_name, number, name, value)

    def aliases(self, version: str) -> list[str]:
        """The aliases of the version with that number or alias.

        Raises:
            UserError: there is no such version.
        """
        number = self.resolve(version).version
        return sorted(alias for alias, target in self._aliases().items() if target == number)

    def has_alias(self, alias: str) -> bool:
        """Whether some version has `alias`."""
        return alias in self._aliases()

    def fetch(self, version: str, destination: Path) -> Path:
        """The version folder, at ``destination/<number>``: downloaded once, whole or not at all.

        A folder of that number that was fetched from another registry is replaced.

        Raises:
            UserError: there is no such version, the registry names files of this machine although
                it is on another one, or something else is where the folder belongs.
        """
        from filelock import FileLock

        registered = self.resolve(version)
        folder = destination / registered.version
        origin = json.dumps(
            {name: value for name, value in asdict(registered).items() if name != "tags"},
            indent=2,
            sort_keys=True,
        )
        if _read(folder / ORIGIN_FILE) == origin:
            return folder
        destination.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(f"{destination}.lock"),
            TemporaryDirectory(prefix=".fetch-", dir=destination) as temporary,
        ):
            # Another process may have been faster.
            if _read(folder / ORIGIN_FILE) == origin:
                return folder
            if folder.is_symlink() or (folder.exists() and not make_owned(folder)):
                raise UserError(
                    f"{folder} is where version {registered.version} belongs, and was not "
                    "made by the platform; move it elsewhere."
                )
            fresh = Path(temporary, registered.version)
            make_owned(fresh)
            self._download(registered, FILES, fresh)
            (fresh / ORIGIN_FILE).write_text(origin, encoding="utf-8")
            if folder.exists():
                folder.rename(Path(temporary, "replaced"))
            fresh.rename(folder)
        return folder

    def reference(self, version: str) -> "pd.DataFrame":
        """The reference of the version; see `reference_frame`.

        Raises:
            UserError: there is no such version.
        """
        import pandas as pd

        registered = self.resolve(version)
        with TemporaryDirectory() as temporary:
            self._download(registered, [REFERENCE_FILE], Path(temporary))
            return pd.read_parquet(Path(temporary, REFERENCE_FILE))

    def _download(
        self, registered: RegisteredVersion, names: Collection[str], destination: Path
    ) -> None:
        """Take those files of the version folder that have one of `names`, and nothing else.

        Where they are is the registry's word, which is not followed to files of this machine unless
        the platform keeps its artifacts there.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        with _global_tracking_uri(self.tracking_uri):
            uri = self._client.get_model_version_download_uri(registered.name, registered.version)
            repository = get_artifact_repository(uri, tracking_uri=self.tracking_uri)
            # URIs that stand for others (models:, runs:) have repositories that hold another.
            store = repository
            while hasattr(store, "repo"):
                store = store.repo
            if isinstance(store, LocalArtifactRepository) and not self._may_read(
                store.artifact_dir
            ):
                raise UserError(
                    f"The registry says that version {registered.version} of {registered.name} is "
                    "in a folder of this machine; let the MLflow server keep artifacts itself "
                    "(mlflow server --serve-artifacts) and register the version again."
                )
            folder = f"artifacts/{VERSION_FOLDER}"
            for listed in repository.list_artifacts(folder):
                name = PurePosixPath(listed.path).name
                if name in names:
                    with TemporaryDirectory(dir=destination) as temporary:
                        path = repository.download_artifacts(f"{folder}/{name}", temporary)
                        Path(path).rename(destination / name)
        missing = [n for n in NEEDED if n in names and not (destination / n).is_file()]
        if missing:
            raise UserError(
                f"Version {registered.version} of {registered.name} has no {', '.join(missing)} in "
                "MLflow's artifacts; run the training job again."
            )

    def _may_read(self, folder: str) -> bool:
        if not self.tracking_uri.startswith(REMOTE):
            return True
        own = self._artifacts
        return own is not None and Path(folder).resolve().is_relative_to(own.resolve())

    def _is_registered(self) -> bool:
        return bool(self._client.search_registered_models(f"name = '{self.model_name}'"))

    def _aliases(self) -> dict[str, str]:
        if not self._is_registered():
            return {}
        # A search does not return the aliases.
        model = self._client.get_registered_model(self.model_name)
        return {alias: str(number) for alias, number in model.aliases.items()}

    def _versions(self) -> list[Any]:
        return list(self._client.search_model_versions(f"name = '{self.model_name}'"))

    def _choices(self) -> str:
        versions = (str(registered.version) for registered in self._versions())
        numbers = sorted(filter(_is_number, versions), key=int)
        if not numbers:
            return "none is registered yet: run the training job"
        aliases = (f"{alias} (version {number})" for alias, number in self._aliases().items())
        return f"choose among {', '.join([*numbers, *aliases])}"


@contextmanager
def _global_tracking_uri(tracking_uri: str) -> Iterator[None]:
    """For MLflow's SQL registry, which looks the source of a new version up by the global URI."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def _is_number(version: str) -> bool:
    """Whether `version` can be the number of a version, which names its folder."""
    return re.fullmatch(r"[1-9][0-9]{0,17}", version) is not None


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
