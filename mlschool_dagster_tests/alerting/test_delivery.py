"""The book and its delivery: nothing is lost, whatever a channel, the daemon or the clock does."""

import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from mlschool_dagster.alerting import delivery
from mlschool_dagster.alerting.alert import Condition, Notice
from mlschool_dagster.alerting.book import FIRST_PAUSE, KEPT, LONGEST_PAUSE, Book
from mlschool_dagster.alerting.channels import Channel, DeliveryError, LogChannel
from mlschool_dagster.alerting.delivery import MESSAGE_NOTICES, deliver
from mlschool_dagster.alerting.webhook import WebhookChannel
from mlschool_dagster_tests.alerting.samples import DAY, NOW, fine, seen, trouble, unknown
from mlschool_dagster_tests.alerting.servers import SECRET, Webhook, webhook


class Team:
    """A channel that takes what it is given unless it is down."""

    def __init__(self, name: str = "team") -> None:
        self.name = name
        self.down: Exception | None = None
        self.messages: list[list[str]] = []

    def send(self, notices: Sequence[Notice]) -> None:
        if self.down:
            raise self.down
        self.messages.append([notice.text for notice in notices])


@pytest.fixture
def server() -> Iterator[Webhook]:
    with webhook() as server:
        yield server


@contextmanager
def open_book(uri: str, *channels: Channel) -> Iterator[Book]:
    book = Book(uri, [channel.name for channel in channels])
    yield book
    book.close()


def tick(uri: str, channels: Sequence[Channel], now: datetime, *observed: object) -> None:
    """What the sensor does at `now`."""
    with open_book(uri, *channels) as book:
        book.note(observed, now, DAY)  # type: ignore[arg-type]
        deliver(book, channels, now)


def test_each_channel_is_told_once_what_begins_what_lasts_and_what_ends(uri: str) -> None:
    team, boss = Team(), Team("boss")
    tick(uri, [team, boss], NOW, trouble(1), trouble(1, "other"))
    tick(uri, [team, boss], NOW + DAY / 2, trouble(2))
    tick(uri, [team, boss], NOW + DAY, trouble(3))
    tick(uri, [team, boss], NOW + DAY, fine(4))
    tick(uri, [team, boss], NOW + 2 * DAY)
    still = "Still, since 2026-11-21 08:00 UTC: "
    assert team.messages == [
        ["check trouble", "other trouble"],
        [f"{still}check trouble", f"{still}other trouble"],
        ["check fine"],
    ]
    assert boss.messages == team.messages


def test_what_cannot_be_told_leaves_a_trouble_open_and_it_is_reminded_of(uri: str) -> None:
    team = Team()
    tick(uri, [team], NOW, unknown(1), unknown(1, "other"))
    tick(uri, [team], NOW, trouble(2))
    tick(uri, [team], NOW + DAY, unknown(3))
    still = "Still, since 2026-11-21 08:00 UTC: check trouble"
    assert team.messages == [["check trouble"], [still]]
    with open_book(uri, team) as book:
        assert [found.key for found in book.open_troubles()] == ["check"]


def test_a_channel_that_is_down_keeps_no_other_waiting_and_catches_up(uri: str) -> None:
    team, boss = Team(), Team("boss")
    boss.down = DeliveryError("it is on holiday")
    tick(uri, [boss, team], NOW, trouble(1))
    assert team.messages == [["check trouble"]]
    with open_book(uri, boss, team) as book:
        (ailing,) = book.ailing()
    assert (ailing.channel, ailing.attempts, ailing.why) == ("boss", 1, "it is on holiday")
    assert (ailing.waiting, ailing.not_before) == (1, NOW + FIRST_PAUSE)
    boss.down = None
    tick(uri, [boss, team], NOW + FIRST_PAUSE / 2, fine(2))
    assert boss.messages == []
    tick(uri, [boss, team], NOW + FIRST_PAUSE)
    assert boss.messages == [["check trouble", "check fine"]]
    assert team.messages == [["check trouble"], ["check fine"]]
    with open_book(uri, boss, team) as book:
        assert book.ailing() == []


def test_an_ailing_channel_is_tried_less_and_less_often(uri: str) -> None:
    attempts = []

    class Dead(Team):
        def send(self, notices: Sequence[Notice]) -> None:
            attempts.append(now)
            raise DeliveryError("it is dead")

    now = NOW
    tick(uri, [Dead()], now, trouble(1))
    for minute in range(1, 240, 4):
        now = NOW + timedelta(minutes=minute)
        tick(uri, [Dead()], now)
    pauses = [later - earlier for earlier, later in pairwise(attempts)]
    assert pauses == sorted(pauses)
    assert LONGEST_PAUSE <= pauses[-1] < 1.1 * LONGEST_PAUSE
    assert len(attempts) < 12


def test_a_channel_that_asks_to_be_left_alone_is(uri: str) -> None:
    team = Team()
    team.down = DeliveryError("too many", timedelta(minutes=10))
    tick(uri, [team], NOW, trouble(1))
    team.down = None
    tick(uri, [team], NOW + timedelta(minutes=9))
    assert team.messages == []
    tick(uri, [team], NOW + timedelta(minutes=10))
    assert team.messages == [["check trouble"]]


def test_whatever_a_channel_raises_is_told_without_its_words(tmp_path: Path) -> None:
    uri, team = f"sqlite:///{tmp_path}/history.db", Team()
    team.down = RuntimeError(SECRET)
    tick(uri, [team], NOW, trouble(1))
    with open_book(uri, team) as book:
        assert [ailing.why for ailing in book.ailing()] == ["it failed with RuntimeError"]


def test_a_server_that_hangs_is_not_waited_for(
    server: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "SENDING_SECONDS", 0.2)
    server.hangs = True
    uri, slow, team = f"sqlite:///{tmp_path}/history.db", WebhookChannel(server.url), Team()
    tick(uri, [slow, team], NOW, trouble(1))
    assert team.messages == [["check trouble"]]
    with open_book(uri, slow, team) as book:
        assert [ailing.channel for ailing in book.ailing()] == ["webhook"]


def test_many_troubles_are_few_messages(tmp_path: Path) -> None:
    uri, team = f"sqlite:///{tmp_path}/history.db", Team()
    tick(uri, [team], NOW, *(trouble(1, f"check {n}") for n in range(MESSAGE_NOTICES + 5)))
    tick(uri, [team], NOW)
    assert [len(message) for message in team.messages] == [MESSAGE_NOTICES, 5]


def test_what_is_over_is_forgotten_in_the_end_and_what_lasts_is_not(tmp_path: Path) -> None:
    uri, team = f"sqlite:///{tmp_path}/history.db", Team()
    tick(uri, [team], NOW, trouble(1), fine(2), trouble(1, "other"))
    tick(uri, [team], NOW + KEPT + DAY)
    with open_book(uri, team) as book:
        assert [found.key for found in book.open_troubles()] == ["other"]


def test_a_daemon_killed_while_it_tells_loses_nothing_and_tells_at_most_twice(
    server: Webhook, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/history.db"
    dying = f"""
        import os
        from mlschool_dagster.alerting.book import Book
        from mlschool_dagster.alerting.webhook import WebhookChannel
        from mlschool_dagster_tests.alerting.samples import NOW, trouble
        from mlschool_dagster_tests.alerting.test_delivery import tick

        Book.taken = lambda *_: os._exit(9)
        tick({uri!r}, [WebhookChannel({server.url!r})], NOW, trouble(1), trouble(1, "other"))
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(dying)], check=False)
    assert died.returncode == 9
    once = [":large_yellow_circle: check trouble", ":large_yellow_circle: other trouble"]
    assert server.texts() == once
    # The next daemon sees the same again, because the sensor's position was not kept either.
    channel = WebhookChannel(server.url)
    tick(uri, [channel], NOW, trouble(1), trouble(1, "other"))
    tick(uri, [channel], NOW, trouble(1), trouble(1, "other"))
    assert server.texts() == once * 2


def test_the_log_tells_how_severe_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri, log = f"sqlite:///{tmp_path}/history.db", LogChannel(logging.getLogger("alerts"))
    with caplog.at_level(logging.INFO, "alerts"):
        severe = seen(Condition.TROUBLE, 1, "other", severe=True)
        tick(uri, [log], NOW, trouble(1), severe, fine(2))
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "check trouble"),
        ("ERROR", "other trouble"),
        ("INFO", "check fine"),
    ]


def test_troubles_of_one_cause_are_one_alert_and_their_end_is_one(uri: str) -> None:
    """Twenty-five windows fail alike, in two looks; they are mended one after another."""
    team = Team()
    failing = [
        replace(trouble(number, f"run of window {number}"), cause="the disk is full")
        for number in range(1, 26)
    ]
    tick(uri, [team], NOW, *failing[:20])
    tick(uri, [team], NOW + timedelta(minutes=1), *failing[20:])
    assert team.messages == [["run of window 1 trouble (19 more alike)."]]
    tick(uri, [team], NOW + timedelta(minutes=2), trouble(1, "run of another job"))
    assert team.messages[1:] == [["run of another job trouble"]]
    # One reminder for all of them.
    for minutes in (0, 1, 1):
        tick(uri, [team], NOW + DAY + timedelta(minutes=minutes))
    assert team.messages[2:] == [["Still, since 2026-11-21 08:00 UTC: run of window 1 trouble"]]
    mended = [replace(fine(100 + number, one.key)) for number, one in enumerate(failing)]
    tick(uri, [team], NOW + DAY, *mended[:-1])
    assert len(team.messages) == 3
    tick(uri, [team], NOW + DAY, mended[-1])
    assert team.messages[3:] == [["run of window 25 fine"]]


def test_what_fails_alike_long_after_is_told_anew(uri: str) -> None:
    team = Team()
    first, second = (replace(trouble(1, name), cause="away") for name in ("one", "two"))
    tick(uri, [team], NOW, first)
    tick(uri, [team], NOW + 2 * DAY, second)
    assert team.messages[-1][0] == "two trouble"
