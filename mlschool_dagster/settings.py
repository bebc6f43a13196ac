"""Where everything lives: one setting per location, by default all below one ignored folder.

Belongs here: names, meaning and defaults of the environment variables. Does not belong here:
secrets as text (what may hold one reaches Dagster as an `EnvVar`) and anything that a run
configures.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from mlschool_dagster.atomic import replacing
from mlschool_dagster.credentials import Secret
from mlschool_dagster.errors import UserError
from mlschool_dagster.owned import make_owned
from mlschool_dagster.storage import checked_uri, is_remote

ROOT = Path(__file__).resolve().parents[1]
"""The repository's root."""

DEPLOYMENTS = ("local",)

ENDPOINT_TOKEN = "MLSCHOOL_ENDPOINT_TOKEN"  # noqa: S105 - names the variable that holds it

ALERTS = "MLSCHOOL_ALERTS"

PREFIXES = ("MLSCHOOL_", "MLFLOW_", "DAGSTER_")
"""Of the variables that set something of the platform or of what it is made of."""
REST_SECONDS = "MLSCHOOL_REST_SECONDS"

MODEL_FILE = "model"
"""File of the state folder: the model, by its data spec's name, to which the folder belongs."""

PLATFORM_RECORD = "platform.json"
"""File of the state folder in which a running platform says where it is."""

MAX_WORKERS = 64
MAX_REMINDER = 24 * 365
"""Hours."""
MAX_SPILL = 1024**2
"""Megabytes."""
MAX_CONNECTIONS = 65536
MAX_SILENCE = 24 * 3600
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The platform's locations on this machine; build one with `Settings.from_environment`."""

    deployment: str
    home: Path
    dagster_home: Path
    """Folder of Dagster's instance."""
    spec: Path
    data: str
    tracking_uri: str = field(repr=False)
    capture_store: str = field(repr=False)
    capture_source: str = field(repr=False)
    """Folder or URI where others leave captures (docs/captures.md), empty if there is none."""
    label_source: str = field(repr=False)
    """The same for labels that are not left beside the captures."""
    capture_import_seconds: int
    """Between two looks for what can be imported, and so between two imports."""
    history: str = field(repr=False)
    """Database of what monitoring found and of what was done about it."""
    files: str
    """Folder or URI (s3://, abfs://) of everything that runs leave for others outside databases."""
    endpoint_host: str
    endpoint_port: int
    endpoint_workers: int
    endpoint_connections: int
    """Connections of each of its processes."""
    endpoint_keep_alive: int
    """Seconds for which a connection may be silent between two requests."""
    endpoint_preconnect: int
    """Seconds for which a connection may be silent before its first request."""
    endpoint_url: str = field(repr=False)
    """Address of an endpoint that something else starts and keeps, empty if there is none."""
    endpoint_token: Secret
    """What a client must present to the endpoint, empty if nothing."""
    spill_bytes: int
    """How much the endpoint keeps in its own folder while the capture store is unavailable."""
    files_url: str
    """Address under which `files` is served, empty if it is not."""
    hosts: tuple[str, ...]
    """Names, besides those of loopback, by which browsers reach the pages that are served."""
    dagster_url: str
    """Address of Dagster's UI for links in alerts, empty if it is not known."""
    alerts: Secret
    """Apprise URLs of the services that are notified of alerts, with blanks between them."""
    alert_reminder_hours: int
    rest_seconds: int
    """Between two monitoring runs of a window that is not over."""
    promotion: str
    """Values of the promotion policy, ``name=value``, with commas between them."""
    approvals: str
    """Which steps of a promotion wait for a human, by name, separated by commas."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """The settings that `environment` asks for; where a platform runs, it is the one meant.

        Raises:
            UserError: a variable has a value that cannot be used.
        """
        environment = {name: value for name, value in environment.items() if value.strip()}
        home = _state_folder(environment)
        environment |= running_environment(home)
        deployment = environment.get("DAGSTER_DEPLOYMENT", "local")
        if deployment not in DEPLOYMENTS:
            raise UserError(
                f"DAGSTER_DEPLOYMENT is {deployment!r}; use one of: {', '.join(DEPLOYMENTS)}."
            )
        return cls(
            deployment=deployment,
            home=home,
            dagster_home=_folder(environment, "DAGSTER_HOME", home / "dagster"),
            spec=_path(environment, "MLSCHOOL_SPEC", ROOT / "data" / "penguins.yaml"),
            data=environment.get("MLSCHOOL_DATA", str(ROOT / "data" / "penguins.csv")),
            tracking_uri=environment.get("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db"),
            capture_store=environment.get(
                "MLSCHOOL_CAPTURE_STORE", f"sqlite:///{home}/captures.db"
            ),
            capture_source=environment.get("MLSCHOOL_CAPTURE_SOURCE", ""),
            label_source=environment.get("MLSCHOOL_LABEL_SOURCE", ""),
            capture_import_seconds=_number(
                environment, "MLSCHOOL_CAPTURE_IMPORT_SECONDS", 30, 24 * 3600
            ),
            history=environment.get("MLSCHOOL_HISTORY", f"sqlite:///{home}/history.db"),
            files=_files(environment, home / "files"),
            endpoint_host=environment.get("MLSCHOOL_ENDPOINT_HOST", "127.0.0.1"),
            endpoint_port=_number(environment, "MLSCHOOL_ENDPOINT_PORT", 8080, 65535),
            endpoint_workers=_number(environment, "MLSCHOOL_ENDPOINT_WORKERS", 1, MAX_WORKERS),
            endpoint_connections=_number(
                environment, "MLSCHOOL_ENDPOINT_CONNECTIONS", 512, MAX_CONNECTIONS
            ),
            endpoint_keep_alive=_number(
                environment, "MLSCHOOL_ENDPOINT_KEEP_ALIVE", 620, MAX_SILENCE
            ),
            endpoint_preconnect=_number(
                environment, "MLSCHOOL_ENDPOINT_PRECONNECT", 620, MAX_SILENCE
            ),
            endpoint_url=environment.get("MLSCHOOL_ENDPOINT_URL", ""),
            endpoint_token=Secret(environment.get(ENDPOINT_TOKEN, "")),
            spill_bytes=_number(environment, "MLSCHOOL_SPILL_MEGABYTES", 256, MAX_SPILL) * 1024**2,
            files_url=environment.get("MLSCHOOL_FILES_URL", ""),
            hosts=_hosts(environment),
            dagster_url=_address(environment, "MLSCHOOL_DAGSTER_URL", ("http", "https")),
            alerts=_alerts(environment),
            promotion=environment.get("MLSCHOOL_PROMOTION", ""),
            approvals=environment.get("MLSCHOOL_APPROVALS", ""),
            rest_seconds=_number(environment, REST_SECONDS, 180, 3600),
            alert_reminder_hours=_number(
                environment, "MLSCHOOL_ALERT_REMINDER_HOURS", 24, MAX_REMINDER
            ),
        )

    def make_home(self) -> bool:
        """Create the state folder, for this user alone; whether it is the platform's to remove.

        It is not if it existed and held what the platform did not make.

        Raises:
            OSError: it cannot be made.
        """
        return make_owned(self.home, _is_state_folder)

    def claim_home(self, model: str) -> None:
        """Make sure that the state folder is that of the data spec named `model`, and no other's.

        A folder in which nothing has happened yet changes hands.

        Raises:
            UserError: it belongs to another model.
            OSError: it cannot be written to.
        """
        path = self.home / MODEL_FILE
        known = path.read_text(encoding="utf-8") if path.exists() else None
        if known not in (None, model) and any((self.home / name).exists() for name in _USED):
            raise UserError(
                f"The state folder {self.home} belongs to the model {known}, but the data spec is "
                f"that of {model}; let MLSCHOOL_HOME name a folder of its own for it."
            )
        if known != model:
            with replacing(path) as temporary:
                temporary.write_text(model, encoding="utf-8")


def unset_empty(environment: MutableMapping[str, str] = os.environ) -> None:
    """Remove the platform's variables that are empty: whatever else reads them sees them unset."""
    for name in [name for name in environment if name.startswith(PREFIXES)]:
        if not environment[name].strip():
            del environment[name]


def _state_folder(environment: Mapping[str, str]) -> Path:
    """The state folder, which `clean` removes: so never one that holds anything else."""
    home = _folder(environment, "MLSCHOOL_HOME", ROOT / ".mlschool")
    if home in (Path.home().resolve(), ROOT, *ROOT.parents):
        raise UserError(
            f"MLSCHOOL_HOME is {environment['MLSCHOOL_HOME']!r}, that is {home}, which holds more "
            "than the platform's state; name a folder of its own."
        )
    if found := [sign for sign in "?%" if sign in str(home)]:
        raise UserError(
            f"The state folder {home} has {found[0]!r} in its path, which means something else in "
            "the address of a SQLite file; let MLSCHOOL_HOME name another folder."
        )
    return home


_STATE = re.compile(
    r"(mlflow|captures|history)\.db(-wal|-shm|-journal|\.lock)?|platform\.json|clock"
    r"|dagster|endpoint|model|files|logs|versions|cache|mlartifacts|simulation"
)
_USED = ("mlflow.db", "captures.db", "history.db", "mlartifacts", "files", "endpoint")
_MADE_FIRST = ("dagster/dagster.yaml", "mlflow.db", "captures.db", "history.db")


def _is_state_folder(folder: Path) -> bool:
    """Whether `folder` holds a platform's state and nothing else, as it does without a marker."""
    return (
        not folder.is_symlink()
        and any((folder / name).is_file() for name in _MADE_FIRST)
        and all(_STATE.fullmatch(path.name) and not path.is_symlink() for path in folder.iterdir())
    )


def _folder(environment: Mapping[str, str], variable: str, default: Path) -> Path:
    folder = _path(environment, variable, default).resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{variable} is {folder}, which is no folder; name one.")
    return folder


def _files(environment: Mapping[str, str], default: Path) -> str:
    uri = environment.get("MLSCHOOL_FILES", str(default))
    if "://" in uri:
        uri = checked_uri(uri, "MLSCHOOL_FILES")
    return (
        uri if is_remote(uri) else str(_folder({"MLSCHOOL_FILES": uri}, "MLSCHOOL_FILES", default))
    )


def _path(environment: Mapping[str, str], variable: str, default: Path) -> Path:
    text = environment.get(variable)
    if text is None:
        return default
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"{variable} is {text!r}, and there is no such user; write the path out."
        ) from None


def running_environment(home: Path) -> dict[str, str]:
    """The variables that lead to the platform that runs on the state folder `home`.

    They win over those of a shell: of one state folder there is one platform. Empty if none runs.
    """
    try:
        document = orjson.loads((home / PLATFORM_RECORD).read_bytes())
        owner, environment = document["owner"], document["platform"]["environment"]
    except (OSError, ValueError, KeyError):
        return {}
    # Most commands run where no platform does.
    from mlschool_dagster.identity import Identity

    return dict(environment) if Identity(**owner).find() else {}


def _number(environment: Mapping[str, str], variable: str, default: int, maximum: int) -> int:
    text = environment.get(variable, str(default))
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) <= maximum:
        raise UserError(f"{variable} is {text!r}; use a number from 1 to {maximum}.")
    return int(text)


def _address(environment: Mapping[str, str], variable: str, schemes: tuple[str, ...]) -> str:
    address = environment.get(variable, "")
    if address and not _is_address(address, schemes):
        # It may hold a password, or be one.
        raise UserError(f"{variable} is no address; write it as {schemes[0]}://host:port.")
    return address


def _is_address(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _hosts(environment: Mapping[str, str]) -> tuple[str, ...]:
    text = environment.get("MLSCHOOL_HOSTS", "")
    hosts = tuple(filter(None, (part.strip().lower() for part in text.split(","))))
    for host in hosts:
        if not re.fullmatch(r"[a-z0-9.-]+|[0-9a-f:]*:[0-9a-f:.]*", host):
            raise UserError(
                f"MLSCHOOL_HOSTS has {host!r}; use names like ml.example.org, without scheme and "
                "port, with commas between them."
            )
    return hosts


def _alerts(environment: Mapping[str, str]) -> Secret:
    text = environment.get(ALERTS, "")
    for number, url in enumerate(text.split(), 1):
        # It may hold a password, or be one.
        if not re.match(r"[a-z][a-z0-9+.-]*://.", url):
            raise UserError(
                f"{ALERTS} has no scheme in URL {number}; write it as Apprise does, like "
                "json://host/path, with blanks between several."
            )
    return Secret(text)
