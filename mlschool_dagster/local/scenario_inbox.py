"""The inbox of whoever is told what goes wrong in a story: a webhook on this machine."""

import html
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from threading import Thread


class Inbox:
    """What was told at the address ``url`` and has not been taken yet."""

    def __init__(self, url: str, sentences: "SimpleQueue[str]") -> None:
        self.url = url
        self._sentences = sentences

    def take(self) -> list[str]:
        """The sentences that were told since the last look, in their order."""
        return [self._sentences.get() for _ in range(self._sentences.qsize())]


@contextmanager
def inbox() -> Iterator[Inbox]:
    """An inbox that takes alerts as long as the block lasts."""
    sentences: SimpleQueue[str] = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for block in message["blocks"]:
                sentences.put(_sentence(block["text"]["text"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nobody is to be told that somebody was told."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, name="inbox")
        thread.start()
        try:
            yield Inbox(f"http://127.0.0.1:{server.server_port}", sentences)
        finally:
            server.shutdown()
            thread.join()


def _sentence(line: str) -> str:
    """What a line in Slack's format says, without the sign before it and the link behind."""
    _, _, rest = line.partition(" ")
    said, _, _ = rest.partition(" <")
    return html.unescape(said)
