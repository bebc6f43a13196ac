"""A run that fails where a secret is in reach leaves it nowhere: no file, no output, no alert."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import dagster as dg
import pytest

from mlschool_dagster.definitions import build_definitions
from mlschool_dagster_tests.alerting.servers import Webhook, webhook
from mlschool_dagster_tests.platform import Platform, platform_at
from mlschool_dagster_tests.serving.server import free_port

PASSWORD = "s3cr€t/w%rd+of&mine"  # noqa: S105
TOKEN = "token-of-32-characters-0123456789"  # noqa: S105


def spellings(secret: str) -> set[bytes]:
    """How a secret may stand in a file."""
    texts = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1],
             json.dumps(secret)[1:-1]}  # fmt: skip
    cores = {base64.b64encode(b"\0" * n + secret.encode())[8:-8] for n in range(3)}
    return {text.encode() for text in texts} | cores


def leaks(content: bytes) -> set[bytes]:
    """Spellings of a secret in `content`."""
    known = spellings(PASSWORD) | spellings(TOKEN) | {b"hooks-secret"}
    return {spelling for spelling in known if spelling in content}


@pytest.fixture
def webhooks() -> Iterator[Webhook]:
    with webhook() as state:
        yield state


@pytest.fixture
def secretive(
    untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, webhooks: Webhook
) -> Iterator[Platform]:
    """A platform whose every setting that can hold a secret holds one, and leads nowhere."""
    with platform_at(tmp_path / "home") as platform:
        nowhere = f"127.0.0.1:{free_port()}"
        userinfo = f"user:{quote(PASSWORD, safe='')}"
        for name, value in {
            "MLFLOW_TRACKING_URI": f"http://{userinfo}@{nowhere}",
            "MLSCHOOL_CAPTURE_STORE": f"postgresql://{nowhere}/db?user=u&password={quote_plus(PASSWORD)}",
            "MLSCHOOL_ENDPOINT_TOKEN": TOKEN,
            "MLSCHOOL_ENDPOINT_URL": f"http://{userinfo}@{nowhere}",
            "MLSCHOOL_ALERTS": f"{webhooks.url} mailto://{userinfo}@{nowhere}?from=a@example.org",
            "AZURE_CLIENT_SECRET": TOKEN,
        }.items():
            monkeypatch.setenv(name, value)
        # What loading the definitions makes of them is for this test alone.
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        definitions = build_definitions()
        monkeypatch.setitem(vars(platform), "definitions", definitions)
        yield platform


@dg.op(out=dg.Out(dg.Nothing), config_schema={"way": str})
def careless(context: dg.OpExecutionContext) -> None:
    """Shows a secret in one of the ways in which code of any origin does."""
    way = context.op_config["way"]
    context.log.error(f"told {PASSWORD} and %s", TOKEN)
    context.add_output_metadata({"uri": f"http://user:{quote(PASSWORD)}@host", TOKEN: TOKEN})
    dg.get_dagster_logger().warning(TOKEN)
    basic = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    if way == "raised":
        raise ValueError(f"401 for http://host/?token={TOKEN}, Authorization: Basic {basic}")
    if way == "chained":
        try:
            raise OSError(PASSWORD, TOKEN)
        except OSError as error:
            raise KeyError(repr(PASSWORD)) from error
    raise dg.Failure(PASSWORD, metadata={"token": TOKEN, "json": {"a": [PASSWORD]}})


@dg.job(executor_def=dg.in_process_executor)
def careless_job() -> None:
    careless()


def files(home: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def tick(platform: Platform, cursor: str | None) -> str | None:
    """Let the failure sensor report what has happened."""
    repository = platform.definitions.get_repository_def()
    resources = dict(platform.definitions.resources or {})
    with dg.build_sensor_context(
        instance=platform.instance,
        cursor=cursor,
        repository_def=repository,
        resources={name: resources[name] for name in ("alerts", "history")},
    ) as context:
        return (
            platform.definitions.resolve_sensor_def("failure_sensor").evaluate_tick(context).cursor
        )


def test_no_failure_leaves_a_secret_anywhere(
    secretive: Platform, webhooks: Webhook, capfd: pytest.CaptureFixture[str]
) -> None:
    cursor = tick(secretive, None)
    failing = {
        "training_job": {},
        "deployment_job": {},
        "labeling_job": {},
        "traffic_job": {},
        "batch_job": {},
        "retention_job": {"retention": {"capture_days": 1}},
    }
    ended = {job: secretive.run(job, config) for job, config in failing.items()}
    assert [job for job, result in ended.items() if result.success] == []
    for way in ("raised", "chained", "failure"):
        run_config = {"ops": {"careless": {"config": {"way": way}}}}
        assert not careless_job.execute_in_process(
            run_config, instance=secretive.instance, raise_on_error=False
        ).success
    tick(secretive, cursor)
    assert len(webhooks.texts()) >= 1
    captured = capfd.readouterr()
    assert leaks((captured.out + captured.err).encode()) == set()
    assert leaks(json.dumps(webhooks.bodies, ensure_ascii=False).encode()) == set()
    assert {
        path: found for path, text in files(secretive.home).items() if (found := leaks(text))
    } == {}


def test_what_a_run_writes_is_for_its_user_alone(secretive: Platform) -> None:
    secretive.run("labeling_job")
    assert secretive.home.stat().st_mode & 0o777 == 0o700
