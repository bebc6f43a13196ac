"""What the images and the compose file must be, as far as that can be told without Docker."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.settings import ROOT

FOLDER = ROOT / "infra" / "docker"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile.*[!e]"))
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXACT_TAG = re.compile(r"^[a-z/]+:v?\d+\.\d+(\.\d+)?(-[a-z-]+)?$")
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET")
OF_DAGSTER = {"captures", "dagster-code", "dagster-webserver", "dagster-daemon"}
"""What works with Dagster's own rights, or the owner's of the captures."""
FROM_ENV_FILE = re.compile(r"\$\{(\w+):\?fill in infra/docker/\.env\}")

Instruction = tuple[str, str]


def instructions(dockerfile: Path) -> Iterator[Instruction]:
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


def said(dockerfile: Path, name: str) -> list[str]:
    return [rest for instruction, rest in instructions(dockerfile) if instruction == name]


def built_by(service: dict[str, Any]) -> Path | None:
    build = service.get("build")
    return None if build is None else ROOT / build["dockerfile"]


def test_the_dockerfiles_are_the_two_that_are_built() -> None:
    built = {built_by(service) for service in SERVICES.values()} - {None}
    assert {path.name for path in DOCKERFILES} == {"Dockerfile.serving", "Dockerfile.dagster"}
    assert built == set(DOCKERFILES)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_has_an_exact_base_a_user_without_rights_and_a_check(dockerfile: Path) -> None:
    (default,) = said(dockerfile, "ARG")
    assert EXACT_TAG.match(default.removeprefix("PYTHON_IMAGE="))
    assert said(dockerfile, "FROM") == ["${PYTHON_IMAGE}"]
    assert COMPOSE["x-build"]["args"] == {"PYTHON_IMAGE": f"${{{default.replace('=', ':-')}}}"}
    assert said(dockerfile, "USER") == ["10001:10001"]
    assert said(dockerfile, "HEALTHCHECK")
    order = [name for name, _ in instructions(dockerfile)]
    assert "RUN" not in order[order.index("USER") :]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_copies_only_what_is_there_and_let_in(dockerfile: Path) -> None:
    ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text(encoding="utf-8")
    let_in = [line[1:] for line in ignore.splitlines() if line.startswith("!")]
    copied = [source for copy in said(dockerfile, "COPY") for source in shlex.split(copy)[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert any(source == name or source.startswith(f"{name}/") for name in let_in), source
    assert all(any(s == n or s.startswith(f"{n}/") for s in copied) for n in let_in)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_installs_is_pinned(dockerfile: Path) -> None:
    installs = [run for run in said(dockerfile, "RUN") if "pip install" in run]
    assert installs
    pinned = ("--constraint constraints.txt", "--require-hashes --requirement requirements-serving")
    assert all(any(option in run for option in pinned) for run in installs)


def test_every_package_of_the_server_has_the_pinned_version_and_hashes() -> None:
    lock = (FOLDER / "requirements-serving.lock").read_text(encoding="utf-8")
    packages = [entry.replace("\\\n", " ").split() for entry in re.split(r"\n(?=\w)", lock)]
    pinned = set((ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    for version, *rest in packages:
        assert version in pinned
        assert any(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in rest), version
    lines = (FOLDER / "requirements-serving.txt").read_text(encoding="utf-8").splitlines()
    wanted = {line.partition("[")[0] for line in lines if not line.startswith("#")}
    assert wanted
    assert wanted <= {version.partition("==")[0] for version, *_ in packages}
    assert "://" not in lock


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_holds_no_secret(dockerfile: Path) -> None:
    settings = [*said(dockerfile, "ENV"), *said(dockerfile, "ARG")]
    assert not [setting for setting in settings if SECRET.search(setting)]


def test_what_is_installed_is_the_package_without_its_tests() -> None:
    """By the patterns with which setuptools chooses among the checkout's packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rule = project["tool"]["setuptools"]["packages"]["find"]
    folders = {
        path.parent.relative_to(ROOT)
        for package in ("mlschool_dagster", "mlschool_dagster_tests")
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(rule) == {"include"}
    for folder in folders:
        name = ".".join(folder.parts)
        is_installed = any(fnmatchcase(name, pattern) for pattern in rule["include"])
        assert is_installed == (folder.parts[0] == "mlschool_dagster"), name


def test_files_that_are_no_modules_are_installed_with_their_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    installed = {
        path
        for package, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
        if path.is_file()
    }
    files = (path for path in (ROOT / "mlschool_dagster").rglob("*") if path.is_file())
    assert {path for path in files if path.suffix not in (".py", ".pyc")} == installed


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_published_on_loopback_only(name: str) -> None:
    service = SERVICES[name]
    assert "network_mode" not in service
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_says_whether_it_is_healthy(name: str) -> None:
    service = SERVICES[name]
    dockerfile = built_by(service)
    own = dockerfile is not None and "command" not in service and said(dockerfile, "HEALTHCHECK")
    assert "healthcheck" in service or own or service["restart"] == "no"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gains_no_rights_and_writes_only_into_volumes(name: str) -> None:
    service = SERVICES[name]
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name != "postgres":
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] or service["secrets"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_bounded_in_memory_and_processes(name: str) -> None:
    assert SERVICES[name]["mem_limit"]
    assert SERVICES[name]["pids_limit"]


def asked_by(name: str) -> set[str]:
    """The services that a service calls by their names."""
    service = SERVICES[name]
    stated = " ".join(map(str, [*service.get("environment", {}).values(), service.get("command")]))
    asked = {other for other in SERVICES if re.search(rf"(?:@|//){other}:", stated)}
    if "DAGSTER_POSTGRES_HOST" in service.get("environment", {}):
        asked.add("postgres")
    return asked | {"prometheus": {"endpoint"}, "grafana": {"postgres", "prometheus"}}.get(
        name, set()
    )


@pytest.mark.parametrize(("one", "other"), combinations(SERVICES, 2))
def test_two_services_share_a_network_just_if_one_asks_the_other(one: str, other: str) -> None:
    shared = set(SERVICES[one]["networks"]) & set(SERVICES[other]["networks"])
    if other in asked_by(one) or one in asked_by(other):
        assert len(shared) == 1
    elif not (one in OF_DAGSTER and other in OF_DAGSTER):
        assert not shared


def test_the_endpoint_reaches_nothing_that_it_does_not_need() -> None:
    own = set(SERVICES["endpoint"]["networks"])
    near = {name for name, service in SERVICES.items() if own & set(service["networks"])}
    assert near == {"endpoint", "postgres", "dagster-code", "prometheus"}


def test_only_dagsters_own_containers_reach_the_code_location() -> None:
    """Its gRPC server asks nobody who they are, and runs what it is sent."""
    workspace = yaml.safe_load((FOLDER / "workspace.yaml").read_text(encoding="utf-8"))
    (location,) = workspace["load_from"]
    socket = location["grpc_server"]["socket"]
    (command,) = said(FOLDER / "Dockerfile.dagster", "CMD")
    assert json.loads(command)[:5] == ["dagster", "api", "grpc", "--socket", socket]
    folder = str(Path(socket).parent)
    mounted_by = {
        name
        for name, service in SERVICES.items()
        if any(mount.split(":")[1] == folder for mount in service.get("volumes", []))
    }
    assert mounted_by == {"dagster-code", "dagster-webserver", "dagster-daemon"}


def test_the_endpoint_uses_a_role_of_its_own() -> None:
    roles = {
        name: re.findall(
            r"//(\w+):", service.get("environment", {}).get("MLSCHOOL_CAPTURE_STORE", "")
        )
        for name, service in SERVICES.items()
    }
    assert [name for name, role in roles.items() if role == ["endpoint"]] == ["endpoint"]
    needs = SERVICES["endpoint"]["depends_on"]
    assert needs["captures"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_an_image_with_an_exact_tag_or_one_of_ours(name: str) -> None:
    service = SERVICES[name]
    default = re.sub(r"\$\{\w+_IMAGE:-(.*)\}", r"\1", service["image"])
    assert built_by(service) in DOCKERFILES or EXACT_TAG.match(default)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_mounts_what_exists(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source = mount.partition(":")[0]
        assert (
            (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        )


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_come_from_the_file_of_secrets(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if SECRET.search(variable):
            assert FROM_ENV_FILE.fullmatch(value)
        elif "@" in value:
            user_and_password = re.fullmatch(r"postgresql://\w+:(.+)@postgres:5432/\w+", value)
            assert user_and_password
            assert FROM_ENV_FILE.fullmatch(user_and_password[1])


def test_the_file_of_secrets_names_each_and_gives_none_away() -> None:
    lines = (FOLDER / ".env.example").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=") for line in lines if line and not line.startswith("#"))
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    assert set(settings) == set(FROM_ENV_FILE.findall(text))
    assert not any(settings.values())


def test_versions_are_at_the_same_path_for_who_writes_and_who_reads_them() -> None:
    mounts = {
        name: {mount.split(":")[0]: mount.split(":")[1] for mount in SERVICES[name]["volumes"]}
        for name in ("dagster-code", "endpoint")
    }
    for volume in ("endpoint", "versions"):
        assert mounts["dagster-code"][volume] == mounts["endpoint"][volume]


def test_the_endpoint_is_the_one_that_the_data_spec_names() -> None:
    name = load_spec(ROOT / "data" / "penguins.yaml").name
    assert SERVICES["endpoint"]["environment"]["MLSCHOOL_ENDPOINT_NAME"] == name


def test_the_instance_differs_from_the_local_one_only_in_where_things_are() -> None:
    local, docker = (
        yaml.safe_load((folder / "dagster.yaml").read_text(encoding="utf-8"))
        for folder in (ROOT, FOLDER)
    )
    for located in ("storage", "local_artifact_storage", "compute_logs"):
        assert local.pop(located) != docker.pop(located)
    # Tells runs whose process died; in a container it dies with its code location.
    local.pop("run_launcher")
    assert local == docker


def test_prometheus_scrapes_the_endpoint_with_its_token() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["endpoint:8080"]}]
    (secret,) = SERVICES["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert COMPOSE["secrets"][secret] == {"environment": "MLSCHOOL_ENDPOINT_TOKEN"}
