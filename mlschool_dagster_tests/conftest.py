"""Fixtures for every package."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import hypothesis
import pytest

from mlschool_dagster import clock
from mlschool_dagster.dataset.spec import DataSpec, load_spec
from mlschool_dagster.dataset.tables import read_data
from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.platform import Platform, platform_at, trained_home, untouched_home
from mlschool_dagster_tests.postgres import PostgresServer
from mlschool_dagster_tests.worlds import DATA

if TYPE_CHECKING:
    import pandas as pd

# How long an example takes says more about what else the machine does. New examples are drawn by
# whoever asks for them (`--hypothesis-profile exploring`), never under somebody's other change.
hypothesis.settings.register_profile(
    "exploring", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "steady", hypothesis.settings.get_profile("exploring"), derandomize=True
)
hypothesis.settings.load_profile("steady")


# The tests are installed nowhere, and some of the processes that they start import them.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
)

PLATFORMS = ("test_platform.py", "test_readme.py", "test_scenarios.py")
"""Whose tests run whole platforms, which choose their ports alike: never two at a time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file together where they run in parallel, and platforms one by one."""
    for item in items:
        file = "platforms" if item.path.name in PLATFORMS else str(item.path)
        item.add_marker(pytest.mark.xdist_group(file))


@pytest.fixture(scope="session")
def spec() -> DataSpec:
    """The spec of the penguins."""
    return load_spec(DATA / "penguins.yaml")


@pytest.fixture(scope="session")
def penguins(spec: DataSpec) -> "pd.DataFrame":
    """The penguins as they are read for training."""
    return read_data(str(DATA / "penguins.csv"), spec)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that nobody stops; whoever uses it takes a schema of their own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server that speaks S3's protocol and keeps everything in memory."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket, which this process and its children can use."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid4().hex}"
    boto3.client("s3").create_bucket(
        Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return f"s3://{bucket}"


@pytest.fixture
def clock_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that moves this process' clock by the seconds written to it."""
    path = tmp_path / "clock"
    path.write_text("0")
    monkeypatch.setattr(clock, "_OFFSET_FILE", path)
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for the platform's own tables where nothing is yet, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/folder/history.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.fresh_uri()


@pytest.fixture(scope="session")
def fresh_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in it; creating one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def tracking_uri(fresh_mlflow_database: Path, tmp_path: Path) -> str:
    """The tracking URI of an empty MLflow database of the test's own."""
    shutil.copy(fresh_mlflow_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory, fresh_mlflow_database: Path) -> Path:
    """The state of a platform on which nothing has happened yet, to be copied."""
    return untouched_home(tmp_path_factory.mktemp("untouched") / "home", fresh_mlflow_database)


@pytest.fixture
def platform(untouched: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform on which nothing has happened yet."""
    with platform_at(shutil.copytree(untouched, tmp_path / "home")) as platform:
        yield platform


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, fresh_mlflow_database: Path) -> Path:
    """The state of a platform with one registered version, to be copied."""
    return trained_home(tmp_path_factory.mktemp("trained") / "home", fresh_mlflow_database)


@pytest.fixture
def trained_platform(trained: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform with one registered version."""
    with platform_at(shutil.copytree(trained, tmp_path / "home")) as platform:
        yield platform


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for the loopback address with its key, in one file."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path
