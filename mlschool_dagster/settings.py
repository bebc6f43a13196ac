"""The platform's settings: every environment variable, with its type, default and meaning.

Belongs here: each variable once. The fields of resources, ``.env.example`` and the table in
README.md are made from these declarations. Does not belong here: what a run configures, and
secrets as text (what may hold one reaches Dagster as an `EnvVar`).
"""

import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import orjson
from annotated_types import Ge, Le
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from mlschool_dagster.atomic import replacing
from mlschool_dagster.credentials import Secret
from mlschool_dagster.errors import UserError
from mlschool_dagster.owned import make_owned
from mlschool_dagster.storage import checked_uri, is_remote

ROOT = Path(__file__).resolve().parents[1]
"""The repository's root."""

PREFIXES = ("MLSCHOOL_", "MLFLOW_", "DAGSTER_")
"""Of the variables that set something of the platform or of what it is made of."""
ENDPOINT_TOKEN = "MLSCHOOL_ENDPOINT_TOKEN"  # noqa: S105 - names the variable that holds it
ALERTS = "MLSCHOOL_ALERTS"
REST_SECONDS = "MLSCHOOL_REST_SECONDS"

MODEL_FILE = "model"
"""File of the state folder: the model, by its data spec's name, to which the folder belongs."""

PLATFORM_RECORD = "platform.json"
"""File of the state folder in which a running platform says where it is."""

_IDLE_SECONDS = 620
"""Longer than load balancers keep idle connections, so that none is closed under a request: AWS's
keeps them for 60 seconds, nginx for 60, Azure's for 240, Google's for 600."""
_MAX_SILENCE = 24 * 3600
"""Seconds."""


# A validator's sentence goes on after the name of its variable.


def _user_path(text: object) -> Path:
    try:
        return Path(str(text)).expanduser()
    except RuntimeError:
        raise ValueError(f"is {text!r}, and there is no such user; write the path out.") from None


def _folder(path: Path) -> Path:
    folder = path.resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"is {folder}, which is no folder; name one.")
    return folder


def _state_folder(home: Path) -> Path:
    """The state folder, which `clean` removes: so never one that holds anything else."""
    if home in (Path.home().resolve(), ROOT, *ROOT.parents):
        raise ValueError(
            f"is {home}, which holds more than the platform's state; name a folder of its own."
        )
    if signs := [sign for sign in "?%" if sign in str(home)]:
        raise ValueError(
            f"is {home}, and {signs[0]!r} means something else in the address of a SQLite file; "
            "name another folder."
        )
    return home


def _address(*schemes: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            parts = urlsplit(text)
            good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if text and not good:
            # It may hold a password, or be one.
            raise ValueError(f"is no address; write it as {schemes[0]}://host:port.")
        return text

    return check


def _parts(text: object) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in str(text).split(","))))


def _hosts(names: tuple[str, ...]) -> tuple[str, ...]:
    hosts = tuple(name.lower() for name in names)
    for host in hosts:
        if not re.fullmatch(r"[a-z0-9.-]+|[0-9a-f:]*:[0-9a-f:.]*", host):
            raise ValueError(
                f"has {host!r}; use names like ml.example.org, without scheme "
                "and port, with commas between them."
            )
    return hosts


def _services(text: str) -> str:
    for number, url in enumerate(text.split(), 1):
        # It may hold a password, or be one.
        if not re.match(r"[a-z][a-z0-9+.-]*://.", url):
            raise ValueError(
                f"has no scheme in URL {number}; write it as Apprise does, like json://host/path, "
                "with blanks between several."
            )
    return text


UserPath = Annotated[Path, BeforeValidator(_user_path)]


def _files(text: str) -> str:
    uri = checked_uri(text, "MLSCHOOL_FILES")
    return uri if is_remote(uri) else str(_folder(_user_path(uri)))


Folder = Annotated[UserPath, AfterValidator(_folder)]
StateFolder = Annotated[Folder, AfterValidator(_state_folder)]
Strings = Annotated[tuple[str, ...], BeforeValidator(_parts)]
HttpUrl = Annotated[str, AfterValidator(_address("http", "https"))]
Hidden = Annotated[Secret, BeforeValidator(Secret)]


def _variable(name: str, default: Any, description: str, **constraints: Any) -> Any:
    """Declare the setting that the environment variable `name` holds.

    ``{home}`` in a default stands for the state folder.
    """
    return Field(default, validation_alias=name, description=description, **constraints)


class Settings(BaseModel):
    """The settings of this process; build them with `Settings.from_environment`."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, validate_default=True)

    deployment: Literal["local"] = _variable(
        "DAGSTER_DEPLOYMENT", "local", "where the platform runs, which picks its resources"
    )
    home: StateFolder = _variable(
        "MLSCHOOL_HOME",
        ROOT / ".mlschool",
        "the state folder: Dagster's instance, MLflow's database, captures, reports, logs",
    )
    dagster_home: Folder = _variable(
        "DAGSTER_HOME",
        "{home}/dagster",
        "folder of Dagster's instance; unset: `./dagster.yaml` counts, which keeps it there",
    )
    spec: UserPath = _variable(
        "MLSCHOOL_SPEC",
        ROOT / "data" / "penguins.yaml",
        "the data spec: columns, ranges, categories, target ([docs/data.md](docs/data.md))",
    )
    data: str = _variable(
        "MLSCHOOL_DATA",
        str(ROOT / "data" / "penguins.csv"),
        "a CSV or Parquet file, or a folder of them ([how cells are read](docs/data.md))",
    )
    tracking_uri: str = _variable(
        "MLFLOW_TRACKING_URI",
        "sqlite:///{home}/mlflow.db",
        "MLflow's tracking and registry: a SQLite file, or the address of a server, whose password is shown nowhere",  # noqa: E501
        repr=False,
    )
    capture_store: str = _variable(
        "MLSCHOOL_CAPTURE_STORE",
        "sqlite:///{home}/captures.db",
        "captures and labels: `sqlite:///path`, or `postgresql://…` (install the extra `postgres`)",
        repr=False,
    )
    capture_source: str = _variable(
        "MLSCHOOL_CAPTURE_SOURCE",
        "",
        "folder, or URI that fsspec knows (`s3://…`), where others leave captures as JSON lines ([format](docs/captures.md)); unset: nothing is imported",  # noqa: E501
        repr=False,
    )
    label_source: str = _variable(
        "MLSCHOOL_LABEL_SOURCE",
        "",
        "the same for labels, where they are not left beside the captures",
        repr=False,
    )
    capture_import_seconds: int = _variable(
        "MLSCHOOL_CAPTURE_IMPORT_SECONDS",
        30,
        "seconds between two checks for importable objects, and so between two imports",
        ge=1,
        le=24 * 3600,
    )
    history: str = _variable(
        "MLSCHOOL_HISTORY",
        "sqlite:///{home}/history.db",
        "what monitoring measured, deployments, promotions and alerts: `sqlite:///path`, or `postgresql://…`",
        repr=False,
    )
    rest_seconds: int = _variable(
        REST_SECONDS,
        180,
        "seconds between two monitoring runs of a window that is not over",
        ge=1,
        le=3600,
    )
    approvals: str = _variable(
        "MLSCHOOL_APPROVALS",
        "",
        "steps of a promotion that wait for a human (`approval_job`): any of `retraining,canary,promotion`",  # noqa: E501
    )
    promotion: str = _variable(
        "MLSCHOOL_PROMOTION",
        "",
        "the promotion policy where it differs from its defaults: `canary_share=0.2,minimum_rows=500`; `mlschool_dagster/promotion/config.py` has every field",  # noqa: E501
    )
    clock: str = _variable(
        "MLSCHOOL_CLOCK",
        "",
        "for simulations only: a file with the seconds by which the clock is ahead",
    )
    files: Annotated[str, AfterValidator(_files)] = _variable(
        "MLSCHOOL_FILES",
        "{home}/files",
        "folder or URI (`s3://`, `abfs://`) of what runs leave for each other: data, versions, snapshots, reports",  # noqa: E501
    )
    files_url: str = _variable(
        "MLSCHOOL_FILES_URL", "", "address under which that folder is served, for links in the UI"
    )
    dagster_url: HttpUrl = _variable(
        "MLSCHOOL_DAGSTER_URL",
        "",
        "address of Dagster's UI, for links in alerts; `make dev` knows its own",
    )
    hosts: Annotated[Strings, AfterValidator(_hosts)] = _variable(
        "MLSCHOOL_HOSTS",
        "",
        "names, besides localhost, by which browsers reach the pages that the platform serves and clients the endpoint: for a proxy in front; requests for other names are refused",  # noqa: E501
    )
    alerts: Annotated[Hidden, BeforeValidator(_services)] = _variable(
        ALERTS,
        "",
        "services that are notified of alerts, besides the log: [Apprise URLs](https://appriseit.com/services/) with blanks between them, like `slack://a/b/c jsons://host/path mailtos://user:password@host?from=a@example.org&to=b@example.org`",  # noqa: E501
    )
    alert_reminder_hours: int = _variable(
        "MLSCHOOL_ALERT_REMINDER_HOURS",
        24,
        "hours after which an incident that goes on is notified again; later reminders wait twice as long each",  # noqa: E501
        ge=1,
        le=24 * 365,
    )
    endpoint_host: str = _variable(
        "MLSCHOOL_ENDPOINT_HOST",
        "127.0.0.1",
        "address on which the endpoint listens; anything but loopback exposes it to the network",
    )
    endpoint_port: int = _variable(
        "MLSCHOOL_ENDPOINT_PORT", 8080, "port on which the endpoint listens", ge=1, le=65535
    )
    endpoint_workers: int = _variable(
        "MLSCHOOL_ENDPOINT_WORKERS", 1, "processes of the endpoint that answer", ge=1, le=64
    )
    endpoint_connections: int = _variable(
        "MLSCHOOL_ENDPOINT_CONNECTIONS",
        512,
        "connections of each of these processes; beyond them, a new one replaces the one that has been idle longest",  # noqa: E501
        ge=1,
        le=65536,
    )
    endpoint_keep_alive: int = _variable(
        "MLSCHOOL_ENDPOINT_KEEP_ALIVE",
        _IDLE_SECONDS,
        "seconds for which a connection may be silent between two requests: longer than a load balancer in front keeps idle ones",  # noqa: E501
        ge=1,
        le=_MAX_SILENCE,
    )
    endpoint_preconnect: int = _variable(
        "MLSCHOOL_ENDPOINT_PRECONNECT",
        _IDLE_SECONDS,
        "seconds for which a connection may be silent before its first request",
        ge=1,
        le=_MAX_SILENCE,
    )
    endpoint_token: Hidden = _variable(
        ENDPOINT_TOKEN,
        "",
        "what clients must present (`Authorization: Bearer …`), at least 16 characters; needed beyond loopback",  # noqa: E501
    )
    endpoint_url: str = _variable(
        "MLSCHOOL_ENDPOINT_URL",
        "",
        "address of a server that something else (Docker Compose) starts and keeps, and that follows the same state folder; unset: materializing `endpoint` starts one",  # noqa: E501
        repr=False,
    )
    spill_megabytes: int = _variable(
        "MLSCHOOL_SPILL_MEGABYTES",
        256,
        "megabytes of captures that the endpoint keeps in its own folder while the capture store is unavailable",  # noqa: E501
        ge=1,
        le=1024**2,
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """The settings that `environment` asks for; where a platform runs, it is the one meant.

        Raises:
            UserError: a variable has a value that cannot be used.
        """
        given = {name: value for name, value in environment.items() if value.strip()}
        try:
            home = TypeAdapter(StateFolder).validate_python(
                given.get("MLSCHOOL_HOME", cls.model_fields["home"].default)
            )
        except ValidationError as error:
            raise UserError(_sentence(error, "MLSCHOOL_HOME")) from None
        defaults = {
            variable(name): field.default.replace("{home}", str(home))
            for name, field in cls.model_fields.items()
            if isinstance(field.default, str)
        }
        try:
            return cls.model_validate(defaults | given | running_environment(home))
        except ValidationError as error:
            raise UserError(_sentence(error)) from None

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


def variable(name: str) -> str:
    """The environment variable that holds the setting `name`."""
    alias = Settings.model_fields[name].validation_alias
    assert isinstance(alias, str)  # noqa: S101 - each is declared with its variable
    return alias


def checked(name: str, text: str) -> Any:
    """The value of the setting `name` that `text` stands for.

    Raises:
        UserError: it has a value that cannot be used.
    """
    field = Settings.model_fields[name]
    declared: Any = Annotated[field.annotation, None, *field.metadata]
    try:
        return TypeAdapter(declared).validate_python(text)
    except ValidationError as error:
        raise UserError(_sentence(error, variable(name))) from None


def setting(name: str, default: Any = None) -> Any:
    """Declare the field of a resource that takes the setting `name`.

    It has the setting's bounds and description, and its default if it needs none of its own type;
    none where that depends on the state folder.
    """
    field = Settings.model_fields[name]
    if default is None:
        default = ... if "{home}" in str(field.default) else field.default
    declared = Field(default, description=field.description)
    declared.metadata = [limit for limit in field.metadata if isinstance(limit, Ge | Le)]
    return declared


def _sentence(error: ValidationError, variable: str = "") -> str:
    """Message about the first invalid variable: what is wrong and what to do."""
    first = error.errors(include_url=False)[0]
    name = variable or "".join(str(part) for part in first["loc"][:1])
    if first["type"] == "value_error":
        return f"{name} {first['ctx']['error']}".strip()
    if first["type"] == "literal_error":
        return f"{name} is {first['input']!r}; use one of: {first['ctx']['expected']}."
    (field,) = (f for f in Settings.model_fields.values() if f.validation_alias == name)
    bounds = {type(limit): limit for limit in field.metadata}
    return f"{name} is {first['input']!r}; use a number from {bounds[Ge].ge} to {bounds[Le].le}."


def unset_empty(environment: MutableMapping[str, str] = os.environ) -> None:
    """Remove the platform's variables that are empty: whatever else reads them sees them unset."""
    for name in [name for name in environment if name.startswith(PREFIXES)]:
        if not environment[name].strip():
            del environment[name]


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
