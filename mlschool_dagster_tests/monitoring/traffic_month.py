"""A believable month of one model's windows: a quiet one, drift, retraining, an outage, relief."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.dashboard.data import DashboardData, Event, ServingPeriod
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.monitoring.statistics import wilson_interval
from mlschool_dagster_tests.monitoring.samples import SPEC, START

COLUMNS = (*SPEC.input_names, "prediction", "confidence")
SEGMENTS = {
    "island=Biscoe": 0.03,
    "island=Dream": 0.05,
    "island=Torgersen": 0.10,
    "sex=FEMALE": 0.04,
    "sex=MALE": 0.055,
    "sex=missing": 0.09,
    "role=canary": 0.05,
    "version=3": 0.045,
}
DRIFTING = "flipper_length_mm"
CONFIRMED_AT = 20.0
ACCURACY_THRESHOLD = 0.9


def windows(count: int) -> list[Window]:
    """`count` windows up to `START`."""
    return [Window(START - LENGTH * back) for back in reversed(range(count))]


def fill(history: MetricsHistory, count: int) -> None:
    """Record `count` windows up to `START` as the reports would."""
    for index, window in enumerate(windows(count)):
        for report, metrics in of_window(window, index / count).items():
            history.record(window, report, metrics)


def of_window(window: Window, progress: float) -> dict[str, list[Metric]]:
    """What each report says of `window`, `progress` of the month having gone by."""
    rng = random.Random(window.key)
    return {
        "traffic_volume": _traffic(window, progress, rng),
        "data_quality_report": list(_quality(window, progress, rng)),
        "drift_report": list(_drift(window, progress, rng)),
        "performance_report": [
            *_estimated(window, progress, rng),
            *_performance(window, progress, rng),
        ],
    }


def _check(window: Window, name: str, failed: bool | None) -> Metric:
    value = None if failed is None else float(not failed)
    return Metric(window, MetricName.CHECK, value, 0, column=name, finding=failed is True)


def periods(count: int) -> list[ServingPeriod]:
    """Three versions, the last one still on."""
    starts = [_at(count, share) for share in (-0.1, 0.3, 0.72)]
    ends = [*starts[1:], None]
    return [
        ServingPeriod(str(n), a, b) for n, (a, b) in enumerate(zip(starts, ends, strict=True), 1)
    ]


def events(count: int) -> list[Event]:
    """What was deployed meanwhile, and the rollout of the third version."""
    rollout = ("rollout", "3", "promotion_sensor")
    events = [
        (-0.1, "primary", "1", "3f2a9c1e", "deployed", "the first"),
        (0.29, "canary", "2", "b81d02aa", "canary", "a tenth of the requests"),
        (0.3, "primary", "2", "b81d02aa", "deployed", "more data"),
        (0.66, *rollout, "requested", "drift confirmed in flipper_length_mm"),
        (0.67, *rollout, "trained", "base data and 1,204 labelled captures"),
        (
            0.68,
            *rollout,
            "compared",
            "right on 396 of 412 rows, champion on 361 (McNemar, p = 0.0003)",
        ),
        (0.70, "canary", "3", "c04e77d1", "canary", "challenger after confirmed drift"),
        (0.70, *rollout, "canary", "a tenth of the requests"),
        (0.72, "primary", "3", "c04e77d1", "deployed", "promoted: better on 412 labelled rows"),
        (0.72, *rollout, "promoted", "no worse in 6 windows"),
    ]
    return [
        Event(_at(count, share), subject, what, version, by, why)
        for share, subject, version, by, what, why in events
    ]


def _at(count: int, share: float) -> datetime:
    return START - LENGTH * (count - 1) + timedelta(hours=round(count * share))


def _drifted(progress: float) -> float:
    return max(0.0, min(1.0, (progress - 0.5) / 0.12)) if progress < 0.72 else 0.0


def _traffic(window: Window, progress: float, rng: random.Random) -> list[Metric]:
    usual = 400 + 300 * math.sin((window.start.hour - 6) / 24 * 2 * math.pi)
    low, high = usual * 0.6, usual * 1.4
    outage = 0.86 < progress < 0.875
    rows = 0.0 if outage else float(round(rng.gauss(usual, usual * 0.1)))
    return [
        Metric(
            window,
            MetricName.ROWS,
            rows,
            int(rows),
            lower=low,
            upper=high,
            finding=not low <= rows <= high,
        ),
        Metric(window, MetricName.ROW_RATE, rows, int(rows)),
    ]


def _quality(window: Window, progress: float, rng: random.Random) -> Iterator[Metric]:
    broken = 0.4 < progress < 0.42
    yield _check(window, "data_quality", broken)
    yield Metric(window, MetricName.QUALITY_FINDINGS, 2.0 if broken else 0.0, 400, finding=broken)
    yield Metric(window, MetricName.REFUSED_SHARE, rng.betavariate(1, 90), 400, threshold=0.05)
    yield Metric(window, MetricName.DUPLICATE_SHARE, rng.betavariate(1, 300), 400)
    for column in SPEC.input_names:
        missing = 0.31 if broken and column == "sex" else rng.betavariate(1, 60)
        yield Metric(window, MetricName.MISSING_SHARE, missing, 400, column=column)
        strange = 0.09 if broken and column == "body_mass_g" else rng.betavariate(1, 900)
        yield Metric(window, MetricName.OUT_OF_RANGE_SHARE, strange, 400, column=column)


def _drift(window: Window, progress: float, rng: random.Random) -> Iterator[Metric]:
    drifted = _drifted(progress)
    for column in COLUMNS:
        pull = {DRIFTING: 0.6, "body_mass_g": 0.25, "confidence": 0.2}.get(column, 0.0) * drifted
        effect = rng.betavariate(2, 40) + pull
        yield Metric(
            window, MetricName.DRIFT_EFFECT, effect, 400, column=column, finding=effect > 0.2
        )
        yield Metric(
            window, MetricName.DRIFT_P_VALUE, 0.001 if pull else rng.random(), 400, column=column
        )
        log_evidence = rng.gauss(-0.4, 0.4) + 18 * pull * drifted
        yield Metric(
            window,
            MetricName.DRIFT_EVIDENCE,
            10**log_evidence,
            400,
            column=column,
            threshold=CONFIRMED_AT,
            finding=10**log_evidence > CONFIRMED_AT,
        )
    together = 10 ** (rng.gauss(-0.3, 0.3) + 9 * drifted)
    yield Metric(window, MetricName.DRIFT_EFFECT, 0.05 + 0.4 * drifted, 400, finding=drifted > 0.3)
    yield _check(window, "no_drift", drifted > 0.3)
    yield _check(window, "no_confirmed_drift", together > CONFIRMED_AT)
    yield Metric(
        window,
        MetricName.DRIFT_EVIDENCE,
        together,
        400,
        threshold=CONFIRMED_AT,
        finding=together > CONFIRMED_AT,
    )


def _estimated(window: Window, progress: float, rng: random.Random) -> Iterator[Metric]:
    accuracy = 0.955 - 0.08 * _drifted(progress) + rng.gauss(0, 0.006)
    yield _check(window, "estimated_accuracy", accuracy + 0.018 < ACCURACY_THRESHOLD)
    yield Metric(
        window,
        MetricName.ESTIMATED_ACCURACY,
        accuracy,
        400,
        lower=accuracy - 0.018,
        upper=min(1.0, accuracy + 0.018),
        threshold=ACCURACY_THRESHOLD,
        finding=accuracy + 0.018 < ACCURACY_THRESHOLD,
    )


def _performance(window: Window, progress: float, rng: random.Random) -> Iterator[Metric]:
    coverage = 0.0 if progress > 0.97 else min(1.0, 0.85 + rng.gauss(0, 0.04))
    yield Metric(window, MetricName.LABEL_COVERAGE, coverage, 400)
    if not coverage:
        yield _check(window, "accuracy", None)
        return
    for name in ("segments", "fairness", "known_labels"):
        yield _check(window, name, False)
    yield Metric(window, MetricName.LABEL_DELAY, 18 + rng.gauss(0, 2), 340)
    loss = 0.12 * _drifted(progress)
    right = sum(rng.random() < 0.955 - loss for _ in range(200))
    lower, upper = wilson_interval(right, 200)
    yield _check(window, "accuracy", upper < ACCURACY_THRESHOLD)
    promised = wilson_interval(330, 344)
    yield Metric(
        window,
        MetricName.CROSS_VALIDATED_ACCURACY,
        330 / 344,
        344,
        lower=promised[0],
        upper=promised[1],
        finding=upper < promised[0],
    )
    yield Metric(
        window,
        MetricName.REALISED_ACCURACY,
        right / 200,
        200,
        lower=lower,
        upper=upper,
        threshold=ACCURACY_THRESHOLD,
        finding=upper < ACCURACY_THRESHOLD,
    )
    for segment, share in SEGMENTS.items():
        wrong = sum(rng.random() < share + loss for _ in range(40))
        yield Metric(window, MetricName.ERROR_SHARE, wrong / 40, 40, segment=segment)


def all_metrics(count: int) -> Sequence[Metric]:
    """All of `count` windows up to `START`, in their order, without a database."""
    return [
        metric
        for index, window in enumerate(windows(count))
        for metrics in of_window(window, index / count).values()
        for metric in metrics
    ]


def dashboard_data(count: int, until: int | None = None) -> DashboardData:
    """A month of `count` windows as of its window number `until`, by default its last."""
    last = windows(count)[(until or count) - 1]
    return DashboardData(
        "penguins",
        last.end,
        [metric for metric in all_metrics(count) if metric.window <= last],
        [
            replace(p, until=p.until if p.until and p.until <= last.end else None)
            for p in periods(count)
            if p.since <= last.end
        ],
        [event for event in events(count) if event.at <= last.end],
    )
