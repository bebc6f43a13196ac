"""Secrets do not print themselves, and are taken out of whatever leaves the process."""

import base64
import copy
import json
import logging
import pickle
import subprocess
import sys
from dataclasses import asdict, dataclass
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.credentials import (
    HIDDEN,
    Secret,
    environment_of_child,
    move_tracking_password,
    public_uri,
    scrub,
)
from mlschool_dagster.errors import UserError
from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.platform import foreign_environment

PASSWORD = "pä/s?s w0rd+&%'\"@:#"  # noqa: S105 - with all that needs encoding


@dataclass
class Holder:
    secret: Secret


def test_a_secret_does_not_print_itself() -> None:
    secret = Secret(PASSWORD)
    shown = [
        repr(secret), str(secret), f"{secret}", f"{secret!r:>20}", "%s" % secret,  # noqa: UP031
        "{:>5}".format(secret), repr(Holder(secret)), repr(asdict(Holder(secret))),  # noqa: UP032
        repr([secret]), json.dumps({"secret": secret}, default=str), repr(copy.deepcopy(secret)),
    ]  # fmt: skip
    assert not [text for text in shown if PASSWORD in text or "w0rd" in text]
    for encode in (pickle.dumps, json.dumps):
        with pytest.raises(TypeError) as failure:
            encode(secret)
        assert "w0rd" not in str(failure.value)
    assert secret.reveal() == PASSWORD
    assert secret == Secret(PASSWORD)
    assert secret
    assert not Secret()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000/path", "http://host:5000/path"),
        ("http://user:word@host:5000/path", "http://host:5000/path"),
        ("http://token@host", "http://host"),
        ("postgresql://host/db?password=word", "postgresql://host/db"),
        ("postgresql://u:a@b@host/db", "postgresql://host/db"),
        ("postgresql://u:a/b@host/db", HIDDEN),
        ("postgresql:///db?host=/run&password=word", "postgresql:///db"),
        ("sqlite:////a@b/file.db", "sqlite:////a@b/file.db"),
        ("http://[broken", HIDDEN),
        ("user:word@host", HIDDEN),
    ],
)
def test_of_a_uri_only_where_it_leads_is_shown(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown


@pytest.mark.parametrize(
    "text",
    [
        "no host for http://user:word99@host:5000/path",
        "could not connect to 'postgresql://user:word99@host/db'",
        'HTTPConnectionPool(host="x"): url: /api?token=word99 (Caused by x)',
        "https://account.blob/data.csv?sv=1&sig=word99&x=2",
        "postgresql://host/db?sslpassword=word99",
        "smtp://:word99@host",
    ],
)
def test_a_uri_of_anybody_loses_its_password(text: str) -> None:
    assert "word99" not in scrub(text)
    assert HIDDEN in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "use postgresql://user:password@host/database.",
        "http://127.0.0.1:3000/runs/1?asset_key=a&tab=b",
        "a@example.org, b@example.org",
        "12:30 @ http://host:80/a@b",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert scrub(text) == text


@pytest.mark.parametrize("variable", [
    "MLSCHOOL_ENDPOINT_TOKEN", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD",
    "AWS_SECRET_ACCESS_KEY", "AZURE_CLIENT_SECRET", "DAGSTER_POSTGRES_PASSWORD", "PGPASSWORD",
    "MLSCHOOL_HISTORY", "MLSCHOOL_CAPTURE_STORE", "MLFLOW_TRACKING_URI", "MLSCHOOL_ALERTS",
])  # fmt: skip
@given(
    password=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=8).filter(
        lambda text: text.strip() == text and not text.isdigit()
    ),
    before=st.text(max_size=3),
)
def test_no_spelling_of_a_secret_is_left(variable: str, password: str, before: str) -> None:
    is_uri = variable in ("MLSCHOOL_HISTORY", "MLSCHOOL_CAPTURE_STORE", "MLFLOW_TRACKING_URI",
                          "MLSCHOOL_ALERTS")  # fmt: skip
    value = f"any://user:{quote(password, safe='')}@host/db" if is_uri else password
    spellings = [
        password, quote(password), quote(password, safe=""), quote_plus(password),
        repr(password)[1:-1], json.dumps(password)[1:-1],
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, value)
        for spelling in spellings:
            assert spelling not in scrub(f"{before} {spelling} after").replace(HIDDEN, "")
        encoded = base64.b64encode(f"{before}{password}".encode()).decode()
        assert scrub(encoded) != encoded


def test_a_webhooks_address_is_a_secret_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = (
        "https://hooks.example.org/services/T0/B0/abc",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#team",
        "mailtos://user:p%40ssword@smtp.example.org?to=team@example.org",
    )
    monkeypatch.setenv("MLSCHOOL_ALERTS", " ".join(urls))
    for text in (
        "POST https://hooks.example.org/services/T0/B0/abc",
        "/services/T0/B0/abc: 404",
        "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
        "login failed: p@ssword",
    ):
        for secret in ("abc", "A1BRTD4JD", "TIiajkdnlazkcOXrIdevi7FQ", "p@ssword"):
            assert secret not in scrub(text)
    text = "smtp.example.org refused team@example.org and hooks.example.org"
    assert scrub(text) == text


def test_a_sentence_for_the_user_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSCHOOL_ENDPOINT_TOKEN", "a-long-enough-token")
    assert "long-enough" not in str(UserError("the token a-long-enough-token is wrong"))


def test_the_password_of_mlflows_address_goes_where_mlflow_keeps_it() -> None:
    environment = {"MLFLOW_TRACKING_URI": "https://me:p%40ss@host:5000/prefix"}
    move_tracking_password(environment)
    moved = {
        "MLFLOW_TRACKING_URI": "https://host:5000/prefix",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "p@ss",
    }
    assert environment == moved
    move_tracking_password(environment)
    assert environment == moved
    for uri in ("sqlite:///a@b", "http://host", "postgresql://u:p@host/db", ""):
        environment = {"MLFLOW_TRACKING_URI": uri}
        move_tracking_password(environment)
        assert environment == {"MLFLOW_TRACKING_URI": uri}


PROGRAM = """
import logging, threading
from mlschool_dagster.credentials import scrub_logs_and_tracebacks
scrub_logs_and_tracebacks()
scrub_logs_and_tracebacks()
logging.basicConfig()
log = logging.getLogger("x")
log.warning("token is %s", "a-long-enough-token")
log.warning("%s is hidden, %d and {this} are not", "a-long-enough-token", 1)
try:
    try:
        raise ValueError("a-long-enough-token")
    except ValueError as error:
        raise OSError("http://u:other99@host") from error
except OSError:
    log.exception("failed")
def fail():
    raise KeyError("a-long-enough-token")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
raise RuntimeError("a-long-enough-token")
"""


def test_neither_a_log_nor_a_traceback_holds_a_secret() -> None:
    environment = {**foreign_environment(), "MLSCHOOL_ENDPOINT_TOKEN": "a-long-enough-token"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "long-enough" not in done.stderr + done.stdout
    assert "other99" not in done.stderr
    assert "1 and {this} are not" in done.stderr
    assert "KeyError: '***'" in done.stderr
    assert "ValueError: ***" in done.stderr
    assert done.stderr.rstrip().endswith("RuntimeError: ***")


def test_a_child_gets_what_it_needs_and_no_secret_of_anybody_else() -> None:
    needed = {"PATH": "/bin", "PYTHONPATH": "/code", "LC_ALL": "C", "MLFLOW_BACKEND_STORE_URI": "x"}
    others = {"MLSCHOOL_ENDPOINT_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x", "SOMEBODYS_KEY": "x"}
    assert environment_of_child("MLFLOW_*", environment=needed | others) == needed


def test_a_log_record_without_a_secret_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("x").warning("%s of %s", 1, 2)
    assert caplog.records[-1].getMessage() == "1 of 2"
