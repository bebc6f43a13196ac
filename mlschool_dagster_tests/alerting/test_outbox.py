"""Outbox and delivery: nothing is lost, whatever a channel, the daemon or the clock does."""

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

from mlschool_dagster.alerting import outbox as outbox_module
from mlschool_dagster.alerting.channels import (
    Channel,
    DeliveryError,
    LogChannel,
    apprise_channels,
)
from mlschool_dagster.alerting.incidents import Condition, Notification
from mlschool_dagster.alerting.outbox import (
    FIRST_PAUSE,
    KEPT,
    LONGEST_PAUSE,
    MESSAGE_NOTIFICATIONS,
    AlertOutbox,
    deliver,
)
from mlschool_dagster_tests.alerting.samples import DAY, NOW, firing, make_signal, ok, undecided
from mlschool_dagster_tests.alerting.servers import SECRET, Webhook, webhook


class Team:
    """A channel that takes what it is given unless it is down."""

    def __init__(self, name: str = "team") -> None:
        self.name = name
        self.down: Exception | None = None
        self.messages: list[list[str]] = []

    def send(self, notifications: Sequence[Notification]) -> None:
        if self.down:
            raise self.down
        self.messages.append([notification.text for notification in notifications])


@pytest.fixture
def server() -> Iterator[Webhook]:
    with webhook() as server:
        yield server


@contextmanager
def open_outbox(uri: str, *channels: Channel) -> Iterator[AlertOutbox]:
    outbox = AlertOutbox(uri, [channel.name for channel in channels])
    yield outbox
    outbox.close()


def tick(uri: str, channels: Sequence[Channel], now: datetime, *observed: object) -> None:
    """What the sensor does at `now`."""
    with open_outbox(uri, *channels) as outbox:
        outbox.record(observed, now, DAY)  # type: ignore[arg-type]
        deliver(outbox, channels, now)


def test_each_channel_gets_each_notification_once(uri: str) -> None:
    team, boss = Team(), Team("boss")
    tick(uri, [team, boss], NOW, firing(1), firing(1, "other"))
    tick(uri, [team, boss], NOW + DAY / 2, firing(2))
    tick(uri, [team, boss], NOW + DAY, firing(3))
    tick(uri, [team, boss], NOW + DAY, ok(4))
    tick(uri, [team, boss], NOW + 2 * DAY)
    still = "Still, since 2026-11-21 08:00 UTC: "
    assert team.messages == [
        ["check firing", "other firing"],
        [f"{still}check firing", f"{still}other firing"],
        ["check ok"],
    ]
    assert boss.messages == team.messages


def test_an_undecided_signal_leaves_an_incident_open_and_reminders_go_on(uri: str) -> None:
    team = Team()
    tick(uri, [team], NOW, undecided(1), undecided(1, "other"))
    tick(uri, [team], NOW, firing(2))
    tick(uri, [team], NOW + DAY, undecided(3))
    still = "Still, since 2026-11-21 08:00 UTC: check firing"
    assert team.messages == [["check firing"], [still]]
    with open_outbox(uri, team) as outbox:
        assert [found.key for found in outbox.open_incidents()] == ["check"]


def test_a_channel_that_is_down_keeps_no_other_waiting_and_catches_up(uri: str) -> None:
    team, boss = Team(), Team("boss")
    boss.down = DeliveryError("it is on holiday")
    tick(uri, [boss, team], NOW, firing(1))
    assert team.messages == [["check firing"]]
    with open_outbox(uri, boss, team) as outbox:
        (failure,) = outbox.failures()
    assert (failure.channel, failure.attempts, failure.why) == ("boss", 1, "it is on holiday")
    assert (failure.queued, failure.not_before) == (1, NOW + FIRST_PAUSE)
    boss.down = None
    tick(uri, [boss, team], NOW + FIRST_PAUSE / 2, ok(2))
    assert boss.messages == []
    tick(uri, [boss, team], NOW + FIRST_PAUSE)
    assert boss.messages == [["check firing", "check ok"]]
    assert team.messages == [["check firing"], ["check ok"]]
    with open_outbox(uri, boss, team) as outbox:
        assert outbox.failures() == []


def test_a_failing_channel_is_retried_less_and_less_often(uri: str) -> None:
    attempts = []

    class Dead(Team):
        def send(self, notifications: Sequence[Notification]) -> None:
            attempts.append(now)
            raise DeliveryError("it is dead")

    now = NOW
    tick(uri, [Dead()], now, firing(1))
    for minute in range(1, 240, 4):
        now = NOW + timedelta(minutes=minute)
        tick(uri, [Dead()], now)
    pauses = [later - earlier for earlier, later in pairwise(attempts)]
    assert pauses == sorted(pauses)
    assert LONGEST_PAUSE <= pauses[-1] < 1.1 * LONGEST_PAUSE
    assert len(attempts) < 12


def test_an_unexpected_exception_of_a_channel_is_named_without_its_message(tmp_path: Path) -> None:
    uri, team = f"sqlite:///{tmp_path}/history.db", Team()
    team.down = RuntimeError(SECRET)
    tick(uri, [team], NOW, firing(1))
    with open_outbox(uri, team) as outbox:
        assert [failure.why for failure in outbox.failures()] == ["it failed with RuntimeError"]


def test_a_server_that_hangs_is_not_waited_for(
    server: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "SENDING_SECONDS", 0.2)
    server.hangs = True
    (slow,) = apprise_channels([server.url])
    uri, team = f"sqlite:///{tmp_path}/history.db", Team()
    tick(uri, [slow, team], NOW, firing(1))
    assert team.messages == [["check firing"]]
    with open_outbox(uri, slow, team) as outbox:
        assert [failure.channel for failure in outbox.failures()] == ["JSON"]


def test_many_notifications_are_few_messages(tmp_path: Path) -> None:
    uri, team = f"sqlite:///{tmp_path}/history.db", Team()
    tick(uri, [team], NOW, *(firing(1, f"check {n}") for n in range(MESSAGE_NOTIFICATIONS + 5)))
    tick(uri, [team], NOW)
    assert [len(message) for message in team.messages] == [MESSAGE_NOTIFICATIONS, 5]


def test_resolved_incidents_are_deleted_in_the_end_and_open_ones_are_not(tmp_path: Path) -> None:
    uri, team = f"sqlite:///{tmp_path}/history.db", Team()
    tick(uri, [team], NOW, firing(1), ok(2), firing(1, "other"))
    tick(uri, [team], NOW + KEPT + DAY)
    with open_outbox(uri, team) as outbox:
        assert [found.key for found in outbox.open_incidents()] == ["other"]


def test_a_daemon_killed_while_it_delivers_loses_nothing_and_repeats_at_most_once(
    server: Webhook, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/history.db"
    dying = f"""
        import os
        from mlschool_dagster.alerting.outbox import AlertOutbox
        from mlschool_dagster.alerting.channels import apprise_channels
        from mlschool_dagster_tests.alerting.samples import NOW, firing
        from mlschool_dagster_tests.alerting.test_outbox import tick

        AlertOutbox.mark_delivered = lambda *_: os._exit(9)
        tick({uri!r}, apprise_channels([{server.url!r}]), NOW, firing(1), firing(1, "other"))
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(dying)], check=False)
    assert died.returncode == 9
    once = ["check firing", "other firing"]
    assert server.texts() == once
    # The next daemon sees the same again, because the sensor's position was not kept either.
    (channel,) = apprise_channels([server.url])
    tick(uri, [channel], NOW, firing(1), firing(1, "other"))
    tick(uri, [channel], NOW, firing(1), firing(1, "other"))
    assert server.texts() == once * 2


def test_the_log_has_a_level_by_severity(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri, log = f"sqlite:///{tmp_path}/history.db", LogChannel(logging.getLogger("alerts"))
    with caplog.at_level(logging.INFO, "alerts"):
        severe = make_signal(Condition.FIRING, 1, "other", severe=True)
        tick(uri, [log], NOW, firing(1), severe, ok(2))
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "check firing"),
        ("ERROR", "other firing"),
        ("INFO", "check ok"),
    ]


def test_incidents_of_one_cause_are_notified_once_and_resolved_once(uri: str) -> None:
    """Twenty-five windows fail alike, in two evaluations; they are resolved one after another."""
    team = Team()
    failing = [
        replace(firing(number, f"run of window {number}"), cause="the disk is full")
        for number in range(1, 26)
    ]
    tick(uri, [team], NOW, *failing[:20])
    tick(uri, [team], NOW + timedelta(minutes=1), *failing[20:])
    assert team.messages == [["run of window 1 firing (19 more alike)."]]
    tick(uri, [team], NOW + timedelta(minutes=2), firing(1, "run of another job"))
    assert team.messages[1:] == [["run of another job firing"]]
    # One reminder for all of them.
    for minutes in (0, 1, 1):
        tick(uri, [team], NOW + DAY + timedelta(minutes=minutes))
    assert team.messages[2:] == [["Still, since 2026-11-21 08:00 UTC: run of window 1 firing"]]
    mended = [replace(ok(100 + number, one.key)) for number, one in enumerate(failing)]
    tick(uri, [team], NOW + DAY, *mended[:-1])
    assert len(team.messages) == 3
    tick(uri, [team], NOW + DAY, mended[-1])
    assert team.messages[3:] == [["run of window 25 ok (24 more alike)."]]
    # What fails alike later is another group.
    again = replace(firing(300, "run of window 7"), cause="the disk is full")
    tick(uri, [team], NOW + 3 * DAY, again, replace(ok(301, again.key)))
    assert team.messages[4][:2] == ["run of window 7 firing", "run of window 7 ok"]


def test_an_incident_of_the_same_cause_long_after_is_notified_anew(uri: str) -> None:
    team = Team()
    first, second = (replace(firing(1, name), cause="away") for name in ("one", "two"))
    tick(uri, [team], NOW, first)
    tick(uri, [team], NOW + 2 * DAY, second)
    assert team.messages[-1][0] == "two firing"
