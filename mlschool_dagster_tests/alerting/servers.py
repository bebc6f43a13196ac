"""Real servers that take alerts, or do not."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "hooks-secret"  # noqa: S105


@dataclass
class Webhook:
    """A webhook that answers with ``status`` and ``headers``, or hangs; and what it was sent."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def texts(self) -> list[str]:
        """The text of every notification, with its link, in order."""
        return [
            paragraph.partition("\n")[2]
            for body in self.bodies
            for paragraph in body["message"].split("\n\n")
        ]


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A webhook on the loopback address."""
    state = Webhook()
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if state.hangs:
                done.wait(30)
                return
            if state.status == 200:
                state.bodies.append(json.loads(body))
            self.send_response(state.status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    state.url = f"json://127.0.0.1:{server.server_port}/services/{SECRET}"
    try:
        yield state
    finally:
        done.set()
        server.shutdown()
        thread.join()
        server.server_close()
