"""What promotion and freshness ask of every store: answers beside shadow and truth."""

from dataclasses import replace
from datetime import timedelta

import pytest

from mlschool_dagster.capture import sql
from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX, Role
from mlschool_dagster.capture.store import CaptureStore
from mlschool_dagster.capture.windows import Window
from mlschool_dagster_tests.capture.samples import NOON, WINDOW, capture, label

HOUR = timedelta(hours=1)


def test_answers_come_with_what_the_shadow_said_and_the_newest_label(store: CaptureStore) -> None:
    shadow = replace(
        capture("a", role=Role.SHADOW), model_version="4", prediction="Adelie", confidence=0.5
    )
    store.append([capture("a"), shadow, capture("b", role=Role.CANARY), capture("c", HOUR)])
    store.append([capture(f"{SMOKE_TEST_PREFIX}1", role=Role.CANDIDATE)])
    # The newest label is the one of the latest time, not the one that landed last.
    store.append_labels([label("a", "Adelie", HOUR), label("a", "Chinstrap")])
    (frame,) = store.stream_answers(WINDOW)
    assert frame.columns.to_list() == [
        *("event_id", "captured_at", "model_version", "role", "prediction", "confidence"),
        *("shadow_model_version", "shadow_prediction", "shadow_confidence", "label"),
    ]
    shadowed, canary = frame.to_dict("records")
    assert shadowed == {
        "event_id": "a",
        "captured_at": NOON,
        "model_version": "3",
        "role": "primary",
        "prediction": "Gentoo",
        "confidence": 0.75,
        "shadow_model_version": "4",
        "shadow_prediction": "Adelie",
        "shadow_confidence": 0.5,
        "label": "Adelie",
    }
    assert canary["role"] == "canary"
    assert frame.loc[1, "shadow_model_version":].isna().all()


def test_answers_come_in_order_of_arrival_and_in_bounded_frames(
    store: CaptureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "CHUNK", 3)
    names = [f"{number}" for number in range(8)]
    store.append([capture(name) for name in names])
    store.append([capture(name, role=Role.SHADOW) for name in reversed(names)])
    frames = list(store.stream_answers(WINDOW))
    assert [frame["event_id"].to_list() for frame in frames] == [names[:3], names[3:6], names[6:]]
    assert all(frame["shadow_prediction"].notna().all() for frame in frames)


def test_a_window_without_traffic_has_no_answers(store: CaptureStore) -> None:
    store.append([capture("alone", role=Role.SHADOW)])
    assert list(store.stream_answers(WINDOW)) == []


def test_the_last_capture_is_the_latest_however_late_others_land(store: CaptureStore) -> None:
    assert store.last_captured(WINDOW) is None
    late, last, early = timedelta(minutes=59), timedelta(minutes=40), timedelta(minutes=5)
    store.append([capture("last", last), capture("next", HOUR)])
    store.append([capture("early", early), capture("beside", late, role=Role.SHADOW)])
    store.append([capture(f"{SMOKE_TEST_PREFIX}1", late)])
    assert store.last_captured(WINDOW) == NOON + last
    assert store.last_captured(Window(WINDOW.end)) == NOON + HOUR
