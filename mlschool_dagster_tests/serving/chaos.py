"""A real server under traffic while everything around it breaks, and an account of what came of it.

What is broken, and in which order, is drawn from a seed; what meets what is up to the machine. Each
request has an id of the client's, and a third come again: with the same rows, which must be
answered as they were, or with others, which must be refused.
"""

import random
import resource
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil
import psycopg

from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.store import open_store
from mlschool_dagster.serving.desired_state import DesiredState, write_desired_state
from mlschool_dagster_tests.postgres import PostgresServer
from mlschool_dagster_tests.serving.server import Server, release, running_server, wait_for
from mlschool_dagster_tests.serving.store_outage import Place
from mlschool_dagster_tests.serving.tiny_model import ROW

CLIENTS = 4
MASSES = (3000, 4000, 5000, 6000)
FAULT_SECONDS = 1.5
"""How long each thing stays broken, and about how long it is whole in between."""

Rows = tuple[int, ...]
"""The masses of a request's rows, which distinguish one request from another."""


@dataclass
class Asked:
    """What became of one request id: its rows when it was first answered, and each answer."""

    rows: Rows | None = None
    answers: list[dict[str, Any]] = field(default_factory=list)
    others_answered: int = 0
    is_short: bool = False


class Clients:
    """Threads that send requests to ``url`` until the block ends."""

    def __init__(self, seed: int) -> None:
        self.url = ""
        self.is_short = False
        """Whether the server lacks what it needs to remember just now."""
        self.asked: dict[str, Asked] = {}
        self.statuses: Counter[str] = Counter()
        self._seed = seed
        self._pool: list[str] = []
        self._stores = self._repeating = 0
        self._may_repeat = True
        self._turn = threading.Lock()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(i,)) for i in range(CLIENTS)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Ask for nothing again that is asked until the end: the next store knows nothing of it."""
        self._may_repeat = False
        wait_for(lambda: not self._repeating)
        yield
        with self._turn:
            self._stores += 1
            self._pool.clear()
            self._may_repeat = True

    def _work(self, number: int) -> None:
        draw = random.Random(f"{self._seed}-{number}")
        # A connection for each request, so that any worker may get it.
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(timeout=30, trust_env=False, limits=limits) as client:
            for count in range(10**9):
                if self._ending.is_set():
                    return
                stores, fresh = self._stores, f"{number}-{count}"
                name, rows = self._next(draw, fresh)
                try:
                    self._send(client, name, rows)
                except httpx.HTTPError:
                    self.statuses["broken"] += 1
                    self._ending.wait(0.05)
                self._release(name, stores, is_fresh=name == fresh)

    def _next(self, draw: random.Random, fresh: str) -> tuple[str, Rows]:
        """A request of nobody's who is just being asked: two at once would be a race of ours."""
        rows = tuple(draw.choices(MASSES, k=draw.choice((1, 1, 1, 2, 3))))
        again, same = draw.random() < 0.35, draw.random() < 0.75
        with self._turn:
            if not again or not self._pool or not self._may_repeat:
                self.asked[fresh] = Asked()
                return fresh, rows
            self._repeating += 1
            name = self._pool.pop(draw.randrange(len(self._pool)))
            known = self.asked[name].rows
        return name, known if same and known is not None else rows

    def _send(self, client: httpx.Client, name: str, rows: Rows) -> None:
        asked, is_short = self.asked[name], self.is_short
        try:
            answer = client.post(
                f"{self.url}/invocations",
                json={"inputs": [{**ROW, "body_mass_g": mass} for mass in rows]},
                headers={"x-request-id": name},
            )
        finally:
            if asked.rows is None:
                asked.is_short = asked.is_short or is_short or self.is_short
        self.statuses[str(answer.status_code)] += 1
        if answer.status_code == 200:
            if asked.rows is None:
                asked.rows = rows
            if asked.rows == rows:
                asked.answers.append(answer.json())
            else:
                asked.others_answered += 1

    def _release(self, name: str, stores: int, *, is_fresh: bool) -> None:
        with self._turn:
            self._repeating -= not is_fresh
            # What was first asked while it could not be remembered is counted, and not asked again.
            if stores == self._stores and not self.asked[name].is_short:
                self._pool.append(name)


class Store(Protocol):
    """A capture store that can be made unusable."""

    uri: str

    def faults(self) -> Mapping[str, Callable[[Clients], None]]:
        """What can be done to it, each undone when it returns."""

    def captures(self) -> list[Capture]:
        """All that is kept, in whatever has been the store."""


class SqliteFile:
    """A store in a file."""

    def __init__(self, folder: Path) -> None:
        self._place = Place(folder)
        self._file = folder / "folder/captures.db"
        self._moved: list[Path] = []
        self.uri = self._place.uri

    def faults(self) -> Mapping[str, Callable[[Clients], None]]:
        return {
            "store unavailable": self._unavailable,
            "store locked": self._locked,
            "store locked by one who reads": self._read,
            "store moved": self._move,
        }

    def captures(self) -> list[Capture]:
        captures = []
        for uri in (self.uri, *(f"sqlite:///{path}" for path in self._moved)):
            store = open_store(uri)
            captures += list(store.unlabelled())
            store.close()
        return captures

    def _unavailable(self, clients: Clients) -> None:
        self._place.take_offline()
        time.sleep(FAULT_SECONDS)
        self._place.bring_online()

    def _locked(self, clients: Clients) -> None:
        with closing(sqlite3.connect(self._file, isolation_level=None, timeout=30)) as other:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(FAULT_SECONDS)
            other.execute("ROLLBACK")

    def _read(self, clients: Clients) -> None:
        with closing(sqlite3.connect(self._file, isolation_level=None, timeout=30)) as other:
            other.execute("BEGIN")
            other.execute("SELECT COUNT(*) FROM captures").fetchall()
            time.sleep(FAULT_SECONDS)

    def _move(self, clients: Clients) -> None:
        with clients.forgetting():
            self._moved.append(self._file.rename(self._file.with_name(f"{len(self._moved)}.db")))
        time.sleep(FAULT_SECONDS)


class PostgresDatabase:
    """A store in a server of its own."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.uri = server.fresh_uri()

    def faults(self) -> Mapping[str, Callable[[Clients], None]]:
        return {
            "store unavailable": self._unavailable,
            "store locked": self._locked,
            "store suspended": self._suspend,
        }

    def captures(self) -> list[Capture]:
        store = open_store(self.uri)
        captures = list(store.unlabelled())
        store.close()
        return captures

    def _unavailable(self, clients: Clients) -> None:
        self._server.stop("immediate")
        time.sleep(FAULT_SECONDS)
        self._server.start()

    def _locked(self, clients: Clients) -> None:
        with psycopg.connect(self.uri) as other:
            other.execute("LOCK TABLE captures")
            time.sleep(FAULT_SECONDS)

    def _suspend(self, clients: Clients) -> None:
        processes = [
            process
            for process in psutil.process_iter(["name"])
            if process.info["name"] == "postgres"
            and any(c.laddr.port == self._server.port for c in process.net_connections("tcp"))
        ]
        for process in processes:
            process.suspend()
        time.sleep(FAULT_SECONDS)
        for process in processes:
            process.resume()


class Chaos:
    """Breaks a server of two workers in all ways, `rounds` times in orders drawn from `seed`."""

    def __init__(self, home: Path, store: Store, seed: int) -> None:
        self._home = home
        self._store = store
        self._seed = seed
        self._versions = [release(home, version) for version in ("1", "2")]
        self._clock = home / "clock"
        self._offset = 0.0
        self._swaps = 0
        self._server: Server
        self._running = ExitStack()

    def run(self, rounds: int) -> "Account":
        """Do it all, make everything whole again, and give account."""
        injections = 0
        order = random.Random(self._seed)
        self._set_clock()
        self._swap()
        clients = Clients(self._seed)
        with self._running, ExitStack() as traffic:
            self._start(clients)
            traffic.enter_context(clients)
            for _ in range(rounds):
                faults = list(self._faults().items())
                order.shuffle(faults)
                for _, inject in faults:
                    injections += 1
                    self._swap()
                    inject(clients)
                    time.sleep(FAULT_SECONDS * order.random())
            traffic.close()
            wait_for(lambda: self._server.health()["spilled_bytes"] == 0)
        return account(clients, self._store.captures(), injections)

    def _faults(self) -> Mapping[str, Callable[[Clients], None]]:
        return {
            "worker killed": self._kill_worker,
            "server killed": self._kill_server,
            "worker stopped": self._stop_worker,
            "clock ahead": lambda clients: self._set_clock(3600),
            "clock back": lambda clients: self._set_clock(-3600),
            "disk full": self._short(resource.RLIMIT_FSIZE, lambda worker: 64 * 1024),
            "no descriptors": self._short(resource.RLIMIT_NOFILE, lambda w: w.num_fds() + 1),
            "no memory": self._short(
                resource.RLIMIT_AS, lambda worker: worker.memory_info().vms + 1024**2
            ),
            **self._store.faults(),
        }

    def _start(self, clients: Clients) -> None:
        self._server = self._running.enter_context(
            running_server(self._home, None, store=self._store.uri, workers=2)
        )
        clients.url = str(self._server.client.base_url).rstrip("/")

    def _workers(self) -> list[psutil.Process]:
        wait_for(lambda: len(self._server.workers) == 2)
        return self._server.workers

    def _swap(self) -> None:
        self._swaps += 1
        version = self._versions[self._swaps % 2]
        write_desired_state(self._home, DesiredState({Role.PRIMARY: version}))

    def _set_clock(self, ahead: float = 0.0) -> None:
        self._offset += ahead
        following = self._clock.with_name("clock.next")
        following.write_text(str(self._offset))
        following.replace(self._clock)

    def _kill_worker(self, clients: Clients) -> None:
        self._workers()[0].kill()
        time.sleep(FAULT_SECONDS)

    def _stop_worker(self, clients: Clients) -> None:
        worker = self._workers()[0]
        worker.suspend()
        time.sleep(FAULT_SECONDS)
        worker.resume()

    def _kill_server(self, clients: Clients) -> None:
        processes = [psutil.Process(self._server.process.pid), *self._server.workers]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._server.process.wait()
        self._start(clients)

    def _short(
        self, limit: int, most: Callable[[psutil.Process], int]
    ) -> Callable[[Clients], None]:
        """Leave the workers only `most` of something for a while."""

        def shorten(clients: Clients) -> None:
            clients.is_short = True
            before = []
            for worker in self._workers():
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    _, hard = resource.prlimit(worker.pid, limit)
                    before.append(
                        (worker, resource.prlimit(worker.pid, limit, (most(worker), hard)))
                    )
            time.sleep(FAULT_SECONDS)
            for worker, limits in before:
                # It may have died of it.
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    if worker.is_running():
                        resource.prlimit(worker.pid, limit, limits)
            time.sleep(0.2)
            clients.is_short = False

        return shorten


@dataclass(frozen=True)
class Account:
    """What came of a run, over all requests that were answered 200.

    ``kept_beside`` are rows of an attempt that was never answered, beside those of the answer.
    """

    injections: int
    statuses: Mapping[str, int]
    acknowledged: int
    rows: int
    lost: list[str]
    kept_twice: list[str]
    kept_otherwise: list[str]
    kept_beside: list[str]
    answered_otherwise: list[str]
    others_answered: list[str]
    unfit: list[str]

    def table(self) -> str:
        """The account as Markdown."""
        lines = [
            ("injections", self.injections),
            ("requests acknowledged", self.acknowledged),
            ("rows acknowledged", self.rows),
            ("rows lost", len(self.lost)),
            ("rows kept twice", len(self.kept_twice)),
            ("rows kept other than answered", len(self.kept_otherwise)),
            ("rows kept beside an attempt that was never answered", len(self.kept_beside)),
            ("ids answered in two ways", len(self.answered_otherwise)),
            ("ids answered for other rows", len(self.others_answered)),
        ]
        return "\n".join(
            ["| what | how many |", "|---|---|", *(f"| {w} | {n} |" for w, n in lines)]
        )


def account(clients: Clients, captures: Sequence[Capture], injections: int) -> Account:
    """Compare the answers that clients received with the stored captures."""
    kept: defaultdict[str, list[Capture]] = defaultdict(list)
    for capture in captures:
        kept[capture.event_id.partition("~")[0]].append(capture)
    answered = {name: asked for name, asked in clients.asked.items() if asked.answers}
    lost, twice, otherwise, beside = [], [], [], []
    for asked in answered.values():
        first = asked.answers[0]
        for row in first["predictions"]:
            event_id, stored = row["event_id"], kept[row["event_id"]]
            answer = row["prediction"], row["probabilities"], first["model_version"]
            same = [c for c in stored if (c.prediction, c.probabilities, c.model_version) == answer]
            if not stored:
                lost.append(event_id)
            elif not same:
                otherwise.append(event_id)
            elif len(same) > 1:
                twice.append(event_id)
            elif len(stored) > 1:
                beside.append(event_id)
    return Account(
        injections=injections,
        statuses=dict(clients.statuses),
        acknowledged=len(answered),
        rows=sum(len(asked.answers[0]["predictions"]) for asked in answered.values()),
        lost=lost,
        kept_twice=twice,
        kept_otherwise=otherwise,
        kept_beside=beside,
        answered_otherwise=[
            n for n, a in answered.items() if any(x != a.answers[0] for x in a.answers)
        ],
        others_answered=[name for name, asked in answered.items() if asked.others_answered],
        unfit=[s for s in clients.statuses if s not in ("200", "409", "500", "503", "broken")],
    )
