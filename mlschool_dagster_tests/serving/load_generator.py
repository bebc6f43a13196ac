"""Clients that keep a server busy, and remember exactly what they were answered."""

import http.client
import json
import threading
import time
from collections import Counter
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

from mlschool_dagster_tests.serving.server import TIMEOUT, wait_for
from mlschool_dagster_tests.serving.tiny_model import ROW

RETRY_SECONDS = 0.02


class LoadGenerator:
    """`clients` that post one row after the other to `url`, each under an event id of its own.

    A broken connection says nothing of its request, so the client asks again under the same
    id, until it is answered; so it does, if `retry_503`, when it is answered 503. All that is
    answered is in ``answered`` (event id to version); what else was said is in ``refused``.
    """

    def __init__(self, url: str, clients: int = 8, retry_503: bool = False) -> None:
        self.aim(url)
        self._retry_503 = retry_503
        self.stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(clients)]
        self.answered: dict[str, str] = {}
        self.refused: list[tuple[int, str]] = []
        self.broken = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Finish what is asked and ask no more."""
        self.stopped.set()
        for thread in self._threads:
            thread.join()

    def aim(self, url: str) -> None:
        """Connect to `url` from now on."""
        self._address = urlsplit(url).netloc

    def wait_for_answers(self, more: int) -> None:
        """Return once `more` requests than now are answered."""
        enough = len(self.answered) + more
        wait_for(lambda: len(self.answered) >= enough)

    @property
    def versions(self) -> Counter[str]:
        """How many answers each version gave."""
        return Counter(list(self.answered.values()))

    def _work(self) -> None:
        name = uuid4().hex
        connection = self._connect()
        number = 0
        while not self.stopped.is_set():
            number += 1
            connection = self._ask(connection, f"{name}-{number}")
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, timeout=TIMEOUT)

    def _ask(
        self, connection: http.client.HTTPConnection, event_id: str
    ) -> http.client.HTTPConnection:
        deadline = time.monotonic() + 2 * TIMEOUT
        while time.monotonic() < deadline:
            try:
                status, text = _post(connection, event_id)
            except (OSError, http.client.HTTPException):
                self.broken += 1
                connection.close()
                connection = self._connect()
                time.sleep(RETRY_SECONDS)
                continue
            if status == 200:
                self.answered[event_id] = json.loads(text)["model_version"]
                return connection
            if status != 503 or not self._retry_503:
                self.refused.append((status, text))
                return connection
            time.sleep(RETRY_SECONDS)
        self.refused.append((0, "never answered"))
        return connection


def _post(connection: http.client.HTTPConnection, event_id: str) -> tuple[int, str]:
    body: dict[str, Any] = {"dataframe_records": [ROW]}
    headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Inference-Id": event_id}
    connection.request("POST", "/invocations", json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, response.read().decode()
