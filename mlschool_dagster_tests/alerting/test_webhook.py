"""The webhook: Slack's format, and what becomes of servers that do not take it."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from mlschool_dagster.alerting import webhook as room
from mlschool_dagster.alerting.channels import DeliveryError
from mlschool_dagster.alerting.incidents import NotificationKind
from mlschool_dagster.alerting.webhook import WebhookChannel
from mlschool_dagster_tests.alerting.samples import notification
from mlschool_dagster_tests.alerting.servers import SECRET, Webhook, webhook


@pytest.fixture
def server() -> Iterator[Webhook]:
    with webhook() as server:
        yield server


def test_all_notices_are_one_message_that_nothing_in_them_can_disturb(server: Webhook) -> None:
    well = notification("All is well.", NotificationKind.RESOLVED)
    hostile = notification("<!channel> a & b > c", link="http://127.0.0.1:3000/runs/1?a=1&b=2")
    WebhookChannel(server.url).send([hostile, well])
    (message,) = server.bodies
    assert message["text"] == "&lt;!channel&gt; a &amp; b &gt; c (and 1 more)"
    assert server.texts() == [
        ":red_circle: &lt;!channel&gt; a &amp; b &gt; c "
        "<http://127.0.0.1:3000/runs/1?a=1&amp;b=2|Look>",
        ":large_green_circle: All is well.",
    ]
    assert {block["type"] for block in message["blocks"]} == {"section"}


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (404, {}, None),
        (500, {}, None),
        (429, {"Retry-After": "30"}, timedelta(seconds=30)),
        (429, {"Retry-After": "Sat, 21 Nov 2026 09:00:00 GMT"}, None),
        (302, {"Location": "http://127.0.0.1:1/elsewhere"}, None),
    ],
)
def test_an_answer_that_is_no_yes_is_told_without_the_secret(
    server: Webhook, status: int, headers: dict[str, str], wait: timedelta | None
) -> None:
    server.status, server.headers = status, headers
    with pytest.raises(DeliveryError) as failure:
        WebhookChannel(server.url).send([notification()])
    assert str(failure.value) == f"the server answered {status}"
    assert failure.value.retry_after == wait


@pytest.mark.parametrize(
    "url",
    [
        f"http://127.0.0.1:1/{SECRET}",
        f"http://no-such-host.invalid/{SECRET}",
        f"http://127.0.0.1:1/{SECRET} with a blank",
    ],
)
def test_a_server_that_is_not_there_is_told_without_the_secret(url: str) -> None:
    with pytest.raises(DeliveryError, match="cannot be reached") as failure:
        WebhookChannel(url).send([notification()])
    assert SECRET not in str(failure.value)
    assert failure.value.__suppress_context__


def test_a_server_that_hangs_is_left_alone(
    server: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ANSWER_SECONDS", 0.2)
    server.hangs = True
    with pytest.raises(DeliveryError, match="cannot be reached"):
        WebhookChannel(server.url).send([notification()])
