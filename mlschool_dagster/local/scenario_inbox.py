"""The inbox of a scenario: a webhook on this machine that keeps the notifications it gets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from threading import Thread


class Inbox:
    """The notifications sent to the Apprise address ``url`` and not taken yet."""

    def __init__(self, url: str, sentences: "SimpleQueue[str]") -> None:
        self.url = url
        self._sentences = sentences

    def take(self) -> list[str]:
        """The sentences that have arrived since the last call, in their order."""
        return [self._sentences.get() for _ in range(self._sentences.qsize())]


@contextmanager
def inbox() -> Iterator[Inbox]:
    """An inbox that accepts notifications as long as the block lasts."""
    sentences: SimpleQueue[str] = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for paragraph in document["message"].split("\n\n"):
                # Time and kind, the sentence, the link.
                sentences.put(paragraph.splitlines()[1])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing: the notifications are in the log already."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, name="inbox")
        thread.start()
        try:
            yield Inbox(f"json://127.0.0.1:{server.server_port}", sentences)
        finally:
            server.shutdown()
            thread.join()
