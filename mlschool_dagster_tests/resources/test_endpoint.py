"""The endpoint as a resource: who is shown the token, and where it is reached."""

from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mlschool_dagster.deployment.endpoint import State
from mlschool_dagster.resources.endpoint import LocalEndpointResource
from mlschool_dagster_tests.serving.server import free_port


@dataclass
class Listener:
    """A server that answers anything, and what it was shown as authorization."""

    url: str
    authorizations: list[str | None]


@pytest.fixture
def listener() -> Iterator[Listener]:
    authorizations: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorizations.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"up 1\n")

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield Listener(f"http://127.0.0.1:{server.server_port}", authorizations)
        server.shutdown()
        thread.join()


def endpoint(home: Path, url: str = "") -> LocalEndpointResource:
    return LocalEndpointResource(
        home=str(home),
        name="penguins",
        host="127.0.0.1",
        port=free_port(),
        capture_store=f"sqlite:///{home}/captures.db",
        token="a-token",  # noqa: S106
        url=url,
    )


def test_an_endpoint_that_something_else_keeps_is_shown_the_token(
    tmp_path: Path, listener: Listener
) -> None:
    endpoint(tmp_path, listener.url).connect().status()
    assert set(listener.authorizations) == {"Bearer a-token"}


def test_an_endpoint_that_is_not_there_is_absent(tmp_path: Path) -> None:
    assert endpoint(tmp_path).connect().status().state is State.ABSENT
