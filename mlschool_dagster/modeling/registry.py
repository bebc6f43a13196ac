"""The registered versions of one model, by MLflow's registry.

A version is found by its number or by an alias: ``challenger`` is the newest, ``champion`` the one
that serves.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mlschool_dagster.errors import UserError
from mlschool_dagster.garbage import no_garbage_collection
from mlschool_dagster.modeling.version_folder import REFERENCE_FILE, VERSION_FOLDER

if TYPE_CHECKING:
    import pandas as pd

CHALLENGER = "challenger"
CHAMPION = "champion"

ORIGIN_FILE = "origin.json"
"""Written into a fetched version folder: which version it is, by `RegisteredVersion`."""


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
    folder = destination / version
    origin = _read(folder / ORIGIN_FILE)
    return folder if origin and json.loads(origin)["name"] == model_name else None


class Registry:
    """The versions of `model_name` in the registry at `tracking_uri`.

    It has its own client, whatever MLflow's global tracking URI is, and leaves that as it was.
    """

    def __init__(self, tracking_uri: str, model_name: str) -> None:
        with no_garbage_collection():
            from mlflow import MlflowClient

        self.tracking_uri = tracking_uri
        self.model_name = model_name
        self._client = MlflowClient(tracking_uri, tracking_uri)

    def register(self, model_uri: str, run_id: str, tags: Mapping[str, str]) -> str:
        """Make the logged model a new version, and it the challenger.

        Returns:
            The version's number.
        """
        if not self._is_registered():
            self._client.create_registered_model(self.model_name)
        with _global_tracking_uri(self.tracking_uri):
            version = self._client.create_model_version(
                self.model_name,
                source=model_uri,
                run_id=run_id,
                tags=dict(tags),
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
        for found in self._versions():
            if str(found.version) == number:
                return RegisteredVersion(
                    name=self.model_name,
                    version=number,
                    run_id=found.run_id,
                    source=found.source,
                    tags=dict(found.tags),
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

        A folder of that number that came from another registry is replaced.

        Raises:
            UserError: there is no such version.
        """
        from filelock import FileLock

        found = self.resolve(version)
        folder = destination / found.version
        origin = json.dumps(asdict(found), indent=2, sort_keys=True)
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
            downloaded = self._download(found, VERSION_FOLDER, Path(temporary))
            (downloaded / ORIGIN_FILE).write_text(origin, encoding="utf-8")
            if folder.exists():
                folder.rename(Path(temporary, "replaced"))
            downloaded.rename(folder)
        return folder

    def reference(self, version: str) -> "pd.DataFrame":
        """What the version was trained on, with out-of-fold predictions; see `reference_frame`.

        Raises:
            UserError: there is no such version.
        """
        import pandas as pd

        with TemporaryDirectory() as temporary:
            found = self.resolve(version)
            path = self._download(found, f"{VERSION_FOLDER}/{REFERENCE_FILE}", Path(temporary))
            return pd.read_parquet(path)

    def _download(self, found: RegisteredVersion, path: str, destination: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        uri = self._client.get_model_version_download_uri(found.name, found.version)
        return Path(
            download_artifacts(
                artifact_uri=f"{uri}/artifacts/{path}",
                dst_path=str(destination),
                tracking_uri=self.tracking_uri,
            )
        )

    def _is_registered(self) -> bool:
        return bool(self._client.search_registered_models(f"name = '{self.model_name}'"))

    def _aliases(self) -> dict[str, str]:
        if not self._is_registered():
            return {}
        # A search does not tell the aliases.
        model = self._client.get_registered_model(self.model_name)
        return {alias: str(number) for alias, number in model.aliases.items()}

    def _versions(self) -> list[Any]:
        return list(self._client.search_model_versions(f"name = '{self.model_name}'"))

    def _choices(self) -> str:
        numbers = sorted((str(found.version) for found in self._versions()), key=int)
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


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
