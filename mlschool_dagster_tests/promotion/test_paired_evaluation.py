"""Pairing: only what both versions said to the same requests is held against each other."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mlschool_dagster.capture.records import Role
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.promotion.evidence import PairedEvidence
from mlschool_dagster.promotion.paired_evaluation import evaluate_pairs, evidence_token
from mlschool_dagster_tests.capture.samples import NOON, capture, label
from mlschool_dagster_tests.promotion.samples import CHALLENGER, CHAMPION

HOUR = timedelta(hours=1)
OTHER, CLASSES = "Adelie", ("Adelie", "Chinstrap", "Gentoo")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CaptureStore]:
    store = open_store(f"sqlite:///{tmp_path}/captures.db")
    yield store
    store.close()


def at_their_word(confidence: Any) -> Any:
    return confidence


def found(store: CaptureStore, hours: float = 0, until: float = 3) -> PairedEvidence:
    return evaluate_pairs(
        store,
        (CHAMPION, at_their_word),
        (CHALLENGER, at_their_word),
        NOON + hours * HOUR,
        NOON + until * HOUR,
        CLASSES,
    )


def answer(
    store: CaptureStore,
    event_id: str,
    hours: float = 0.5,
    shadow: str = "",
    role: Role = Role.PRIMARY,
) -> str:
    """An answered request, and what the challenger said of it in the shadow; its class."""
    given = capture(event_id, hours * HOUR)
    version = CHAMPION if role is Role.PRIMARY else CHALLENGER
    given = replace(given, model_version=version, role=role, confidence=0.8)
    beside = replace(given, model_version=CHALLENGER, role=Role.SHADOW, confidence=0.9)
    store.append([given, replace(beside, prediction=shadow or given.prediction)])
    return given.prediction


def test_nothing_captured_is_no_evidence(store: CaptureStore) -> None:
    assert found(store) == PairedEvidence()


def test_who_was_right_is_counted_where_labels_came(store: CaptureStore) -> None:
    told = answer(store, "both right")
    answer(store, "gained", shadow=OTHER)
    answer(store, "lost", shadow=OTHER)
    answer(store, "unlabelled", hours=1.5)
    store.append_labels(
        [
            replace(label("both right"), label=told),
            replace(label("gained"), label=OTHER),
            replace(label("lost"), label=told),
        ]
    )
    evidence = found(store)
    assert (evidence.pairs, evidence.agreeing, evidence.labelled) == (4, 2, 3)
    assert (evidence.gained, evidence.lost) == (1, 1)
    assert evidence.confidence == {0.1: 4}


def test_what_the_canary_answered_itself_is_no_pair(store: CaptureStore) -> None:
    answer(store, "by the canary", role=Role.CANARY)
    evidence = found(store)
    assert (evidence.canary_rows, evidence.pairs) == (1, 0)


def test_what_came_before_the_canary_or_after_now_does_not_count(store: CaptureStore) -> None:
    for event_id, hours in (("before", 0.2), ("during", 0.8), ("after", 2.5)):
        answer(store, event_id, hours=hours)
    assert found(store, hours=0.5, until=1.2).pairs == 1


def test_another_version_is_no_part_of_it(store: CaptureStore) -> None:
    given = replace(capture("other", HOUR), model_version="7")
    store.append([given, replace(given, role=Role.SHADOW, model_version="8")])
    assert found(store).pairs == 0


def test_the_token_changes_with_whatever_lands(store: CaptureStore) -> None:
    def token() -> str:
        return evidence_token(store, NOON, NOON + 2 * HOUR)

    empty = token()
    told = answer(store, "a")
    captured = token()
    store.append_labels([replace(label("a"), label=told)])
    labelled = token()
    assert len({empty, captured, labelled}) == 3
    answer(store, "outside", hours=3.5)
    assert token() == labelled


def test_a_label_that_is_no_class_speaks_for_nobody(store: CaptureStore) -> None:
    answer(store, "strange", shadow=OTHER)
    store.append_labels([replace(label("strange"), label="gentoo")])
    assert (found(store).pairs, found(store).labelled) == (1, 0)
