"""Common HTTP clients with their defaults: they are answered, or refused with the reason."""

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests

from mlschool_dagster.serving.request_body import MAX_BODY
from mlschool_dagster_tests.serving.server import Server, running_server
from mlschool_dagster_tests.serving.tiny_model import ROW

JSON_TYPE = {"Content-Type": "application/json"}
LARGE = b" " * (MAX_BODY + 4 * 1024**2)
SECONDS = 60.0
TOKEN = "x" * 32


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("home")) as server:
        yield server


def body(rows: int = 1) -> bytes:
    return json.dumps({"inputs": [ROW] * rows}).encode()


def url(server: Server) -> str:
    return f"{server.client.base_url}".rstrip("/") + "/invocations"


Post = Callable[[str, bytes], tuple[int, Any]]


def by_urllib(address: str, data: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(address, data, JSON_TYPE)  # noqa: S310 - our own server
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def by_requests(address: str, data: bytes) -> tuple[int, Any]:
    answer = requests.post(address, data, headers=JSON_TYPE, timeout=SECONDS)
    return answer.status_code, answer.json()


def by_requests_in_chunks(address: str, data: bytes) -> tuple[int, Any]:
    pieces = (data[i : i + 65536] for i in range(0, len(data), 65536))
    answer = requests.post(address, pieces, headers=JSON_TYPE, timeout=SECONDS)
    return answer.status_code, answer.json()


def by_httpx(address: str, data: bytes) -> tuple[int, Any]:
    answer = httpx.post(address, content=data, headers=JSON_TYPE, timeout=SECONDS)
    return answer.status_code, answer.json()


def by_aiohttp(address: str, data: bytes) -> tuple[int, Any]:
    async def post() -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(address, data=data, headers=JSON_TYPE) as answer,
        ):
            return answer.status, await answer.json()

    return asyncio.run(post())


def by_aiohttp_that_asks_first(address: str, data: bytes) -> tuple[int, Any]:
    async def post() -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(address, data=data, headers=JSON_TYPE, expect100=True) as answer,
        ):
            return answer.status, await answer.json()

    return asyncio.run(post())


def by_curl(*options: str) -> Post:
    def post(address: str, data: bytes) -> tuple[int, Any]:
        answer = subprocess.run(
            [
                *(needed("curl"), "--silent", "--show-error", "--data-binary", "@-", *options),
                *("--header", "Content-Type: application/json", "--max-time", f"{SECONDS:g}"),
                *("--write-out", "\n%{http_code}", address),
            ],
            input=data,
            capture_output=True,
            check=True,
        )
        text, _, status = answer.stdout.rpartition(b"\n")
        return int(status), json.loads(text)

    return post


def needed(program: str) -> str:
    result = shutil.which(program)
    if result is None:
        pytest.skip(f"{program} is not installed")
    return result


CLIENTS: dict[str, Post] = {
    "urllib": by_urllib,
    "requests": by_requests,
    "requests, chunked": by_requests_in_chunks,
    "httpx": by_httpx,
    "aiohttp": by_aiohttp,
    "aiohttp, expecting 100": by_aiohttp_that_asks_first,
    "curl": by_curl(),
    "curl, HTTP/1.0": by_curl("--http1.0"),
    "curl, upgrading to HTTP/2": by_curl("--http2"),
    "curl, chunked": by_curl("--header", "Transfer-Encoding: chunked"),
    "curl, upgrading in chunks": by_curl("--http2", "--header", "Transfer-Encoding: chunked"),
    "curl, expecting 100": by_curl("--header", "Expect: 100-continue"),
}


@pytest.mark.parametrize("rows", [1, 3000])
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_is_answered(server: Server, client: str, rows: int) -> None:
    status, answer = CLIENTS[client](url(server), body(rows))
    assert (status, len(answer.get("predictions", ()))) == (200, rows), answer


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_learns_that_its_body_is_too_large(server: Server, client: str) -> None:
    status, answer = CLIENTS[client](url(server), LARGE)
    assert status == 413
    assert "split it" in answer["error"]


def test_a_client_that_knows_http_2_only_is_refused_not_left_waiting(server: Server) -> None:
    command = [needed("curl"), "--silent", "--http2-prior-knowledge", "--max-time", f"{SECONDS:g}"]
    asked = subprocess.run([*command, url(server)], capture_output=True, check=False)
    timed_out, unsupported = 28, 4
    assert asked.returncode not in (0, timed_out, unsupported)
    assert server.client.get("/ping").status_code == 200


@pytest.mark.slow
def test_java_is_answered_though_it_asks_for_http_2(server: Server, tmp_path: Path) -> None:
    rows = 3000
    (tmp_path / "body.json").write_bytes(body(rows))
    source = Path(__file__).with_name("Client.java")
    answer = subprocess.run(
        [needed("java"), str(source), url(server), str(tmp_path / "body.json")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    for line in answer.stdout.splitlines():
        status, _, text = line.partition(" ")
        assert (status, len(json.loads(text)["predictions"])) == ("200", rows)
    assert len(answer.stdout.splitlines()) == 2


def test_a_client_that_closes_its_half_of_the_connection_is_answered(server: Server) -> None:
    address = (server.client.base_url.host, server.client.base_url.port or 0)
    head = f"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body())}\r\n"
    with socket.create_connection(address, SECONDS) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body())
        connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        assert json.load(answer)["predictions"]


# A region and keys are asked for, though nothing here reads them.
AWS = {
    "region_name": "eu-central-1",
    "aws_access_key_id": "nobody",
    "aws_secret_access_key": "nothing",
}


def runtime(server: Server, **settings: Any) -> Any:
    import boto3

    address = f"{server.client.base_url}".rstrip("/")
    return boto3.client("sagemaker-runtime", endpoint_url=address, **AWS, **settings)


def test_boto3_invokes_the_endpoint(server: Server) -> None:
    client = runtime(server)
    for _ in range(2):
        answer = client.invoke_endpoint(
            EndpointName="penguins",
            Body=body(2),
            ContentType="application/json",
            Accept="application/json",
            InferenceId="of boto3",
            TargetVariant="primary",
        )
        assert answer["ContentType"] == "application/json"
        predictions = json.load(answer["Body"])["predictions"]
        assert [entry["event_id"] for entry in predictions] == ["of boto3", "of boto3#1"]
    assert [c.event_id for c in server.captures()].count("of boto3") == 1


@pytest.mark.parametrize(
    ("changes", "status", "code", "expected"),
    [
        ({"Body": b"{"}, 400, "ValidationError", "JSON"),
        ({"Body": body(2).replace(b"MALE", b"MAYBE")}, 422, "ValidationError", "not valid"),
        ({"ContentType": "text/plain"}, 415, "ValidationError", "Send the body as"),
        ({"Body": LARGE}, 413, "ValidationError", "split it"),
        ({"TargetVariant": "canary"}, 400, "ValidationError", "target variant"),
        ({"InferenceId": "smoke-test-1"}, 400, "ValidationError", "use another one"),
        ({"EndpointName": "other"}, 404, "ValidationError", "penguins"),
    ],
)
def test_boto3_shows_why_it_was_refused(
    server: Server, changes: dict[str, Any], status: int, code: str, expected: str
) -> None:
    from botocore.exceptions import ClientError

    asked = {"EndpointName": "penguins", "Body": body(), "ContentType": "application/json"}
    with pytest.raises(ClientError) as caught:
        runtime(server).invoke_endpoint(**{**asked, **changes})
    response = caught.value.response
    assert response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert response["Error"]["Code"] == code
    assert expected in str(caught.value)


def test_boto3_tries_again_where_nothing_serves_and_then_says_so(tmp_path: Path) -> None:
    from botocore.config import Config

    with running_server(tmp_path, None) as empty:
        client = runtime(empty, config=Config(retries={"total_max_attempts": 2}))
        with pytest.raises(client.exceptions.ServiceUnavailable, match="No version serves yet"):
            client.invoke_endpoint(
                EndpointName="penguins", Body=body(), ContentType="application/json"
            )


def test_boto3_presents_a_token_where_it_is_configured_to(tmp_path: Path) -> None:
    import botocore
    from botocore.config import Config
    from botocore.exceptions import ClientError

    def present(params: dict[str, Any], **_: Any) -> None:
        params["headers"]["Authorization"] = f"Bearer {TOKEN}"

    asked = {"EndpointName": "penguins", "Body": body(), "ContentType": "application/json"}
    with running_server(tmp_path, token=TOKEN) as guarded:
        with pytest.raises(ClientError, match=r"AccessDeniedException.*Bearer"):
            runtime(guarded).invoke_endpoint(**asked)
        client = runtime(guarded, config=Config(signature_version=botocore.UNSIGNED))
        client.meta.events.register("before-call.sagemaker-runtime", present)
        assert json.load(client.invoke_endpoint(**asked)["Body"])["predictions"]
