"""Replay: every captured row makes a pair, whichever version answered it, and nothing else does."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from mlschool_dagster.capture import sql
from mlschool_dagster.capture.records import Capture, Label, Role
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.errors import UserError
from mlschool_dagster.promotion.evidence import PairedEvidence
from mlschool_dagster.promotion.paired_evaluation import ReplayedVersion, replay, replay_token
from mlschool_dagster_tests.capture.samples import NOON
from mlschool_dagster_tests.promotion.samples import CHALLENGER, CHAMPION
from mlschool_dagster_tests.serving.tiny_model import ROW, SPEC, tiny_model

HOUR = timedelta(hours=1)
CLASSES = SPEC.target.classes
MODELS = {CHAMPION: tiny_model(1), CHALLENGER: tiny_model(2)}
ROLES = {CHAMPION: Role.PRIMARY, CHALLENGER: Role.CANARY}


@pytest.fixture
def store(uri: str) -> Iterator[CaptureStore]:
    store = open_store(uri)
    yield store
    store.close()


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReplayedVersion, ReplayedVersion]:
    folder = tmp_path_factory.mktemp("versions")
    for number, model in MODELS.items():
        model.save(folder / number)
    return (
        ReplayedVersion(CHAMPION, folder / CHAMPION),
        ReplayedVersion(CHALLENGER, folder / CHALLENGER),
    )


Versions = tuple[ReplayedVersion, ReplayedVersion]


def answer(version: str, event_id: str, mass: float, hours: float = 0.5) -> Capture:
    """What `version` answers to a penguin of that mass, captured `hours` after noon."""
    inputs = {**ROW, "body_mass_g": mass}
    (probabilities,) = MODELS[version].probabilities([inputs]).tolist()
    return Capture(
        event_id=event_id,
        captured_at=NOON + hours * HOUR,
        endpoint="penguins",
        model_version=version,
        inputs=inputs,
        prediction=CLASSES[probabilities.index(max(probabilities))],
        confidence=max(probabilities),
        probabilities=dict(zip(CLASSES, probabilities, strict=True)),
        role=ROLES[version],
    )


def evidence(
    store: CaptureStore, versions: Versions, hours: float = 0, until: float = 3
) -> PairedEvidence:
    return replay(store, *versions, NOON + hours * HOUR, NOON + until * HOUR, CLASSES)


def labelled(captures: Sequence[Capture], labels: Sequence[str]) -> list[Label]:
    return [
        Label(capture.event_id, label, NOON + 5 * HOUR, "expert")
        for capture, label in zip(captures, labels, strict=True)
    ]


MASSES = np.random.default_rng(3).uniform(1000, 9000, size=60).round().tolist()


def traffic(canary_share: float) -> list[Capture]:
    """The same requests, of which the canary answers a share."""
    drawn = np.random.default_rng(4).random(len(MASSES))
    return [
        answer(CHALLENGER if lot < canary_share else CHAMPION, f"event {number}", mass, number / 30)
        for number, (mass, lot) in enumerate(zip(MASSES, drawn, strict=True))
    ]


def test_without_captures_there_is_no_evidence(store: CaptureStore, versions: Versions) -> None:
    assert evidence(store, versions) == PairedEvidence()


@pytest.mark.parametrize("chunk", [7, 10_000])
def test_the_evidence_is_the_same_whoever_answered(
    tmp_path: Path, versions: Versions, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "CHUNK", chunk)
    found = {}
    for share in (0.0, 0.3, 1.0):
        store = open_store(f"sqlite:///{tmp_path}/{share}.db")
        captures = traffic(share)
        store.append(captures)
        truth = [answer(CHALLENGER, "", mass).prediction for mass in MASSES]
        store.append_labels(labelled(captures[:40], truth[:40]))
        found[share] = evidence(store, versions)
        assert found[share].canary_rows == sum(c.role is Role.CANARY for c in captures)
        store.close()
    assert len({replace(one, canary_rows=0, confidence=()) for one in found.values()}) == 1  # type: ignore[arg-type]
    assert found[0.0].confidence == found[0.3].confidence == found[1.0].confidence
    champion = [answer(CHAMPION, "", mass).prediction for mass in MASSES]
    differ = [before != after for before, after in zip(champion, truth, strict=True)]
    assert 0 < sum(differ[:40]) < 40
    paired = found[0.3]
    assert (paired.pairs, paired.labelled) == (60, 40)
    assert paired.agreeing == 60 - sum(differ)
    assert (paired.gained, paired.lost) == (sum(differ[:40]), 0)


def test_only_what_champion_and_canary_answered_since_then_counts(
    store: CaptureStore, versions: Versions
) -> None:
    counted = [answer(CHAMPION, "a", 4000, 0.8), answer(CHALLENGER, "b", 4000, 0.8)]
    others = [
        answer(CHAMPION, "before", 4000, 0.2),
        answer(CHAMPION, "after", 4000, 2.5),
        replace(answer(CHAMPION, "other version", 4000), model_version="7"),
        replace(answer(CHALLENGER, "as primary", 4000), role=Role.PRIMARY),
        replace(answer(CHALLENGER, "smoke-test-1", 4000), role=Role.CANDIDATE),
        replace(counted[0], model_version=CHALLENGER, role=Role.SHADOW),
    ]
    store.append([*counted, *others])
    found = evidence(store, versions, hours=0.5, until=1.2)
    assert (found.pairs, found.canary_rows) == (2, 1)


def test_a_label_that_is_no_class_does_not_count(store: CaptureStore, versions: Versions) -> None:
    captures = [answer(CHAMPION, name, 4000) for name in "abc"]
    store.append(captures)
    known = captures[2].prediction
    store.append_labels(labelled(captures, ["gentoo", "Emperor", known]))
    found = evidence(store, versions)
    assert (found.pairs, found.labelled) == (3, 1)


def test_the_newest_label_counts(store: CaptureStore, versions: Versions) -> None:
    pairs = [(answer(CHAMPION, "a", mass), answer(CHALLENGER, "a", mass)) for mass in MASSES]
    capture, other = next(pair for pair in pairs if pair[0].prediction != pair[1].prediction)
    store.append([capture])
    first, second = labelled([capture, capture], [capture.prediction, other.prediction])
    store.append_labels([replace(second, labelled_at=NOON + 6 * HOUR), first])
    found = evidence(store, versions)
    assert (found.labelled, found.gained, found.lost) == (1, 1, 0)


def test_a_column_that_requests_lack_is_named(store: CaptureStore, versions: Versions) -> None:
    capture = answer(CHAMPION, "a", 4000)
    del capture.inputs["sex"]
    store.append([capture])
    with pytest.raises(UserError, match=f"Version {CHALLENGER} needs the column 'sex'"):
        evidence(store, versions)


def test_the_token_changes_with_whatever_arrives(store: CaptureStore) -> None:
    def token() -> str:
        return replay_token(store, NOON, NOON + 2 * HOUR)

    empty = token()
    store.append([capture := answer(CHAMPION, "a", 4000)])
    captured = token()
    store.append_labels(labelled([capture], [capture.prediction]))
    with_label = token()
    assert len({empty, captured, with_label}) == 3
    store.append([answer(CHAMPION, "outside", 4000, 3.5)])
    assert token() == with_label
