"""Captures and labels to fill stores with, and what other processes do to a store."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlschool_dagster.capture.records import Capture, Label, Role
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import InputValue

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window.of(NOON)


def capture(
    event_id: str,
    after: timedelta = timedelta(),
    mass: InputValue = 5800,
    role: Role = Role.PRIMARY,
    sampling_share: float = 1.0,
) -> Capture:
    return Capture(
        event_id=event_id,
        captured_at=NOON + after,
        endpoint="penguins",
        model_version="3",
        inputs={"island": "Biscoe", "body_mass_g": mass, "sex": None},
        prediction="Gentoo",
        confidence=0.75,
        probabilities={"Adelie": 0.125, "Chinstrap": 0.125, "Gentoo": 0.75},
        role=role,
        sampling_share=sampling_share,
    )


def label(event_id: str, value: str = "Gentoo", after: timedelta = timedelta()) -> Label:
    return Label(event_id, value, NOON + timedelta(days=1) + after, "expert")


def event_ids(store: CaptureStore, window: Window = WINDOW) -> list[str]:
    """The events of `window`, in order of arrival."""
    return list(store.read(window)["event_id"])


def append_many(uri: str, writer: str, batches: int, size: int) -> None:
    """Append batches of captures in two windows, as one of several writing processes."""
    store = open_store(uri)
    for batch in range(batches):
        store.append(
            [
                capture(f"{writer}-{batch}-{i}", timedelta(hours=batch % 2, seconds=i))
                for i in range(size)
            ]
        )
    store.close()


def label_all(uri: str, expected: int) -> None:
    """Label whatever has none, until `expected` captures are labelled."""
    store = open_store(uri)
    labelled = 0
    while labelled < expected:
        labelled += store.append_labels(label(c.event_id) for c in store.unlabelled())
    store.close()


def append_and_acknowledge(uri: str, acknowledged: Path) -> None:
    """Append one capture after another for ever, noting each once it is said to be durable."""
    store = open_store(uri)
    with acknowledged.open("a", encoding="utf-8", buffering=1) as notes:
        for event_id in _numbers():
            store.append([capture(event_id)])
            notes.write(f"{event_id}\n")


def _numbers() -> Iterator[str]:
    number = 0
    while True:
        yield str(number)
        number += 1
