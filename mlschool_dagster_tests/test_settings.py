"""Where everything lives, by default and as asked for."""

import re
import textwrap
from pathlib import Path

import pytest
from pydantic import BaseModel

from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.alerts import Alerts
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.endpoint import LocalEndpointResource
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.tracking import MlflowTracking
from mlschool_dagster.settings import ROOT, Settings, unset_empty, variable

RESOURCES = (Alerts, Captures, History, LocalEndpointResource, MlflowTracking, PlatformFiles)

VARIABLES = [variable(name) for name in Settings.model_fields]
HEADER = "| variable | meaning | default |\n|---|---|---|\n"


def shown(name: str) -> str:
    """The default of the setting `name`, as a person in the checkout writes it."""
    default = str(Settings.model_fields[name].default).replace("{home}", ".mlschool")
    return default.replace(f"{ROOT}/", "").replace(":///.", ":////absolute/path/to/.")


def example() -> str:
    """The text of `.env.example`."""
    intro = (
        "# The platform's settings. Copy to .env: Dagster and make read it from the folder they\n"
        "# are started in, and it wins over the shell. The values shown are the defaults.\n"
    )
    entries = []
    for name, field in Settings.model_fields.items():
        text = re.sub(r"\[[^]]*\]\(([^)]*)\)", r"\1", str(field.description)).replace("`", "")
        lines = textwrap.wrap(f"{text[0].upper()}{text[1:]}.", 100)
        lines.append(f"{variable(name)}={shown(name)}")
        entries.append("".join(f"# {line}\n" for line in lines))
    return "\n".join([intro, *entries])


def table() -> str:
    """The table of settings in the README."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = f"`{shown(name)}`" if shown(name) else ""
        rows.append(f"| `{variable(name)}` | {field.description} | {default} |\n")
    return HEADER + "".join(rows)


def with_table(readme: str) -> str:
    """`readme` with the table of these settings in the place of the one it has."""
    before, after = readme.split(HEADER)
    return before + table() + after[re.match(r"(\|.*\n)*", after).end() :]  # type: ignore[union-attr]


def renew() -> None:
    (ROOT / ".env.example").write_text(example(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")


def test_all_state_lives_in_one_ignored_folder_by_default() -> None:
    settings = Settings.from_environment({})
    assert settings.home == ROOT / ".mlschool"
    for location in (settings.tracking_uri, settings.capture_store, str(settings.files)):
        assert str(settings.home) in location
    assert "/.mlschool/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_state_follows_its_folder(tmp_path: Path) -> None:
    settings = Settings.from_environment({"MLSCHOOL_HOME": str(tmp_path)})
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert settings.files == str(tmp_path / "files")


def test_the_endpoint_listens_on_loopback_unless_told_otherwise() -> None:
    assert Settings.from_environment({}).endpoint_host == "127.0.0.1"


def test_the_endpoint_asks_for_no_token_unless_there_is_one() -> None:
    assert Settings.from_environment({}).endpoint_token.reveal() == ""
    settings = Settings.from_environment({"MLSCHOOL_ENDPOINT_TOKEN": "secret"})
    assert settings.endpoint_token.reveal() == "secret"
    assert "secret" not in repr(settings)


def test_the_spill_is_bounded_in_megabytes() -> None:
    assert Settings.from_environment({}).spill_megabytes == 256
    settings = Settings.from_environment({"MLSCHOOL_SPILL_MEGABYTES": "2"})
    assert settings.spill_megabytes == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DAGSTER_DEPLOYMENT", "moon"),
        ("MLSCHOOL_ENDPOINT_PORT", "http"),
        ("MLSCHOOL_ENDPOINT_PORT", "0"),
        ("MLSCHOOL_ENDPOINT_PORT", "65536"),
        ("MLSCHOOL_ENDPOINT_WORKERS", "0"),
        ("MLSCHOOL_ENDPOINT_WORKERS", "-2"),
        ("MLSCHOOL_SPILL_MEGABYTES", "1.5"),
        ("MLSCHOOL_ALERT_REMINDER_HOURS", "0"),
        ("MLSCHOOL_HOSTS", "https://ml.example.org"),
        ("MLSCHOOL_HOSTS", "ml.example.org:8080"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(variable: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{variable}.*{value}"):
        Settings.from_environment({variable: value})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLSCHOOL_ALERTS", "hooks.example.org/secret"),
        ("MLSCHOOL_ALERTS", "json://host/path secret"),
        ("MLSCHOOL_ALERTS", "://secret"),
    ],
)
def test_an_address_that_cannot_be_used_is_named_and_not_shown(variable: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{variable} has no scheme") as failure:
        Settings.from_environment({variable: value})
    assert "secret" not in str(failure.value)


def test_the_addresses_of_alert_services_are_kept_and_not_shown() -> None:
    urls = "json://host/secret\n  slack://a/b/secret"
    settings = Settings.from_environment({"MLSCHOOL_ALERTS": urls})
    assert settings.alerts.reveal() == urls
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_an_empty_setting_counts_as_unset(value: str) -> None:
    variables = sorted(VARIABLES)
    assert Settings.from_environment(dict.fromkeys(variables, value)) == (
        Settings.from_environment({})
    )
    environment = {**dict.fromkeys(variables, value), "HOME": "", "MLSCHOOL_DATA": "x"}
    unset_empty(environment)
    assert environment == {"HOME": "", "MLSCHOOL_DATA": "x"}


@pytest.mark.parametrize("home", ["/", "~", ".", "..", "~nobody-of-that-name/x", __file__])
def test_a_state_folder_that_holds_more_than_state_is_refused(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"^MLSCHOOL_HOME is .*; (name|write) [^\n]*\.$"):
        Settings.from_environment({"MLSCHOOL_HOME": home})


def test_the_example_of_an_environment_says_what_is_declared() -> None:
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == example()


def test_the_table_of_settings_says_what_is_declared() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(readme) == readme


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.__name__)
def test_a_resource_describes_a_setting_as_the_environment_does(resource: type[BaseModel]) -> None:
    described = {field.description for field in resource.model_fields.values()}
    assert described & {field.description for field in Settings.model_fields.values()}


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_folder_that_no_sqlite_address_can_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^MLSCHOOL_HOME is .*; name another folder"):
        Settings.from_environment({"MLSCHOOL_HOME": str(tmp_path / name)})


def test_a_used_state_folder_belongs_to_one_model(tmp_path: Path) -> None:
    settings = Settings.from_environment({"MLSCHOOL_HOME": str(tmp_path / "home")})
    settings.make_home()
    settings.claim_home("first")
    settings.claim_home("second")
    (settings.home / "mlflow.db").touch()
    settings.claim_home("second")
    before = sorted(settings.home.iterdir())
    with pytest.raises(UserError, match=r"belongs to the model second, .* that of first; let"):
        settings.claim_home("first")
    assert sorted(settings.home.iterdir()) == before
    assert settings.make_home()


@pytest.mark.parametrize("uri", ["gs://bucket/files", "http://host/files", "memory://files"])
def test_files_at_unknown_schemes_are_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match=r"MLSCHOOL_FILES is .* is not supported; give a path"):
        Settings.from_environment({"MLSCHOOL_HOME": str(tmp_path), "MLSCHOOL_FILES": uri})


def test_files_may_be_in_a_bucket_or_at_a_file_uri(tmp_path: Path) -> None:
    def files(uri: str) -> str:
        environment = {"MLSCHOOL_HOME": str(tmp_path), "MLSCHOOL_FILES": uri}
        return Settings.from_environment(environment).files

    assert files("s3://bucket/files/") == "s3://bucket/files"
    assert files((tmp_path / "ä b").as_uri()) == files(str(tmp_path / "ä b"))


if __name__ == "__main__":
    renew()
