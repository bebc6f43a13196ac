"""The roles of the compose file's PostgreSQL: each may do what it needs, and nothing else."""

import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest

from mlschool_dagster.capture.store import open_store
from mlschool_dagster.errors import UserError
from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.capture.samples import WINDOW, capture, label
from mlschool_dagster_tests.platform import foreign_environment
from mlschool_dagster_tests.postgres import PostgresServer

ROLES = ("dagster", "mlflow", "captures", "history", "grafana", "endpoint")
PASSWORD = "only-for-tests"  # noqa: S105
AT_HOME = {(role, role) for role in ("dagster", "mlflow", "captures", "history")}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server set up as the compose file's, without any tables yet."""
    with PostgresServer() as server:
        passwords = {f"{role.upper()}_POSTGRES_PASSWORD": PASSWORD for role in ROLES}
        subprocess.run(
            [ROOT / "infra" / "docker" / "databases.sh"],
            env={**server.administration(), **passwords},
            check=True,
        )
        yield server


def address(server: PostgresServer, role: str, database: str) -> str:
    return f"postgresql://{role}:{PASSWORD}@127.0.0.1:{server.port}/{database}"


def set_up(uri: str, writer: str = "endpoint") -> "subprocess.CompletedProcess[str]":
    """What the service `captures` does."""
    return subprocess.run(
        [sys.executable, "-m", "mlschool_dagster.capture", f"--writer={writer}"],
        env={**foreign_environment(), "PYTHONPATH": str(ROOT), "MLSCHOOL_CAPTURE_STORE": uri},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_role_enters_only_its_own_database(server: PostgresServer) -> None:
    entered = set()
    for role in ROLES:
        for database in ("dagster", "mlflow", "captures", "history", "postgres", "template1"):
            try:
                psycopg.connect(address(server, role, database)).close()
            except psycopg.OperationalError as error:
                assert "permission denied for database" in str(error)
            else:
                entered.add((role, database))
    assert entered == AT_HOME | {("grafana", "history"), ("endpoint", "captures")}


def test_the_endpoints_role_suffices_for_its_store_and_deletes_nothing(
    server: PostgresServer,
) -> None:
    owners, endpoints = (address(server, role, "captures") for role in ("captures", "endpoint"))
    for _ in range(2):
        done = set_up(owners)
        assert (done.returncode, done.stderr) == (0, "")
    store = open_store(endpoints)
    store.append([])
    store.append([capture("a"), capture("b")])
    assert set(store.append([capture("b")]).duplicates) == {"b"}
    for _ in range(2):
        store.count_refusals(WINDOW, {"malformed": 2})
    assert store.refusals(WINDOW) == {"malformed": 4}
    with pytest.raises(UserError):
        store.delete(WINDOW)
    with pytest.raises(UserError):
        store.append_labels([label("a")])
    store.close()
    with psycopg.connect(endpoints, autocommit=True) as connection:
        for statement in (
            "DELETE FROM captures",
            "DELETE FROM refusals",
            "UPDATE captures SET prediction = ''",
            "UPDATE store SET version = 0",
            "TRUNCATE captures",
            "DROP TABLE captures",
            "SELECT * FROM labels",
            "CREATE TABLE more (number int)",
            "CREATE ROLE another",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    owner = open_store(owners)
    assert owner.count(WINDOW) == 2
    owner.append_labels([label("a")])
    assert owner.delete(WINDOW) == 2
    owner.close()


def test_who_cannot_set_it_up_says_so_in_a_sentence(server: PostgresServer) -> None:
    for uri, writer, said in (
        (address(server, "captures", "captures"), "nobody-there", "'nobody-there'"),
        (address(server, "endpoint", "captures"), "grafana", "connect as its owner"),
        ("sqlite:///captures.db", "endpoint", "MLSCHOOL_CAPTURE_STORE"),
    ):
        done = set_up(uri, writer)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
        assert PASSWORD not in done.stderr
