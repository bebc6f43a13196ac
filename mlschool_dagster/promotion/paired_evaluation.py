"""Paired evaluation of champion and challenger: their predictions on the same requests."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from mlschool_dagster.capture.records import Role
from mlschool_dagster.capture.store import CaptureStore
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.promotion.evidence import PairedEvidence

if TYPE_CHECKING:
    import pandas as pd

Chances = Callable[[Any], Any]
"""Maps an array of confidences to probabilities of being right."""

DECIMALS = 2
"""Decimals to which differences of confidence are rounded."""


def evaluate_pairs(
    store: CaptureStore,
    champion: tuple[str, Chances],
    challenger: tuple[str, Chances],
    since: datetime,
    until: datetime,
    classes: Sequence[str],
) -> PairedEvidence:
    """The evidence in what was captured from `since` to `until` (timezone-aware).

    `champion` and `challenger` are versions with the calibration of their confidences. Pairs are
    the requests that the champion answered as the primary and the challenger shadowed; labels that
    are none of `classes` count as none.
    """
    total: Counter[str] = Counter()
    confidence: Counter[float] = Counter()
    for window in _windows(since, until):
        for answers in store.stream_answers(window):
            fresh = answers[answers["captured_at"] >= since]
            of_canary = (fresh["role"] == Role.CANARY) & (fresh["model_version"] == challenger[0])
            of_primary = (fresh["role"] == Role.PRIMARY) & (fresh["model_version"] == champion[0])
            pairs = fresh[of_primary & (fresh["shadow_model_version"] == challenger[0])]
            total.update(canary_rows=int(of_canary.sum()), **_counts(pairs, classes))
            chances = challenger[1](pairs["shadow_confidence"]) - champion[1](pairs["confidence"])
            confidence.update(chances.round(DECIMALS).tolist())
    return PairedEvidence(**total, confidence=dict(confidence))


def evidence_token(store: CaptureStore, since: datetime, until: datetime) -> str:
    """A token of what `evaluate_pairs` would read; it changes when captures or labels arrive."""
    tokens = [
        f"{window.key} {store.captures_token(window)} {store.labels_token(window)}"
        for window in _windows(since, until)
    ]
    return sha256("\n".join(tokens).encode()).hexdigest()


def _windows(since: datetime, until: datetime) -> Iterator[Window]:
    window = Window.of(since)
    while window.start <= until:
        yield window
        window = Window(window.end)


def _counts(pairs: "pd.DataFrame", classes: Sequence[str]) -> dict[str, int]:
    agree = pairs["prediction"] == pairs["shadow_prediction"]
    labelled = pairs["label"].isin(classes)
    champion = labelled & (pairs["prediction"] == pairs["label"])
    challenger = labelled & (pairs["shadow_prediction"] == pairs["label"])
    return {
        "pairs": len(pairs),
        "agreeing": int(agree.sum()),
        "labelled": int(labelled.sum()),
        "gained": int((challenger & ~champion).sum()),
        "lost": int((champion & ~challenger).sum()),
    }
