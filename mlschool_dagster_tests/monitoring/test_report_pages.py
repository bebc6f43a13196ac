"""Every report has its pictures and its page, however odd the window."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlschool_dagster.capture.records import labels_frame
from mlschool_dagster.dataset.spec import CategoricalColumn
from mlschool_dagster.monitoring import plots
from mlschool_dagster.monitoring.drift import drift
from mlschool_dagster.monitoring.performance import performance
from mlschool_dagster.monitoring.quality import quality
from mlschool_dagster.monitoring.report_pages import (
    Subject,
    write_drift_page,
    write_performance_page,
    write_quality_page,
)
from mlschool_dagster_tests.monitoring.samples import SPEC, population, window

REFERENCE = population()
SUBJECT = Subject("penguins", "3", "2026-11-20-23:00", "training data of version 3")
NOTHING = {name: None if name in ("island", "sex") else np.nan for name in SPEC.input_names}
WINDOWS = {
    "ordinary": window(200),
    "empty": window(0),
    "one row": window(1),
    "two rows": window(2),
    "three rows": window(3),
    "an empty column": window(50).assign(body_mass_g=np.nan, sex=None),
    "no values": window(50).assign(**NOTHING),
    "one value": window(50).assign(**NOTHING | {"body_mass_g": [4000.0] + [np.nan] * 49}),
    "constant": window(50).assign(body_mass_g=4000.0, sex="MALE", prediction="Gentoo"),
    "hostile text": window(50).assign(island="</script><body><script>alert(1)</script>"),
    "formulas": window(50).assign(island="$10_to_$20", sex="$\\frac{$ {} _x $"),
    "nearly constant": window(50).assign(body_mass_g=[39.1000000000001] + [39.1] * 49),
    "largest numbers": window(50).assign(body_mass_g=[1e300, -1e300] * 25),
    "a million letters": window(50).assign(island="x" * 1_000_000),
    "infinite": window(50).assign(body_mass_g=[np.inf] + [4000.0] * 49),
}


def test_markup_in_known_categories_stays_text_and_the_charts_are_drawn(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    island, *others = SPEC.columns
    assert isinstance(island, CategoricalColumn)
    spec = replace(SPEC, columns=(replace(island, categories=(hostile, "Dream")), *others))
    rows = window(200).assign(island=[hostile, "Dream"] * 100)
    path = tmp_path / "quality.html"
    assert not write_quality_page(rows, rows, spec, SUBJECT, quality([rows], rows, spec), path)
    page = path.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "\\u003c/script>" in page


def labels(current: pd.DataFrame, count: int) -> pd.DataFrame:
    if not count:
        return labels_frame([])
    labelled = current.iloc[:count]
    return pd.DataFrame(
        {
            "event_id": labelled["event_id"],
            "label": labelled["species"],
            "labelled_at": labelled["captured_at"],
            "source": "test",
        }
    )


def pages(
    current: pd.DataFrame, ground_truth: pd.DataFrame, folder: Path, samples: int
) -> dict[str, str]:
    """The text of all three pages."""
    folder.mkdir(exist_ok=True)
    common = (REFERENCE, SPEC, SUBJECT)
    write_quality_page(
        current, *common, quality([current], REFERENCE, SPEC), folder / "quality.html", samples
    )
    write_drift_page(
        current, *common, drift(current, REFERENCE, SPEC), folder / "drift.html", samples
    )
    write_performance_page(
        *common,
        performance([current], [ground_truth], SPEC, {}),
        folder / "performance.html",
        samples,
    )
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def assert_sound(page: str, rows: int) -> None:
    assert page.count("<body>") == 1
    assert "penguins, version 3" in page
    assert "2026-11-20-23:00" in page
    assert f"{rows} in the window" in page
    assert "alert(1)</script>" not in page


def test_charts_are_bounded_counts_are_not_and_nothing_is_loaded(tmp_path: Path) -> None:
    current = WINDOWS["ordinary"]
    texts = pages(current, labels(current, 200), tmp_path, 50)
    for text in texts.values():
        assert_sound(text, 200)
        assert not re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)\s*=", text)
    assert "The charts draw 50 of the window&#39;s 200 rows." in texts["drift"]


def test_what_is_not_drawn_is_named(tmp_path: Path) -> None:
    texts = pages(WINDOWS["an empty column"], labels_frame([]), tmp_path, 500)
    assert "Not drawn, because they have no value: body_mass_g, sex." in texts["drift"]
    assert "No charts: they need at least 2 labelled rows with values." in texts["performance"]


def test_the_quality_page_names_what_was_refused(tmp_path: Path) -> None:
    current, path = WINDOWS["two rows"], tmp_path / "quality.html"
    refused = quality([current], REFERENCE, SPEC, {"malformed": 3, "sex: must be a string": 1})
    write_quality_page(current, REFERENCE, SPEC, SUBJECT, refused, path)
    assert "Refused, by reason: malformed (3), sex: must be a string (1)." in path.read_text()


def test_an_empty_window_says_why_nothing_is_drawn(tmp_path: Path) -> None:
    for text in pages(WINDOWS["empty"], labels_frame([]), tmp_path, 500).values():
        assert_sound(text, 0)
        assert "No charts" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", WINDOWS)
def test_every_window_has_its_pages(name: str, tmp_path: Path) -> None:
    current = WINDOWS[name]
    for count in sorted({0, 2, len(current)}):
        for text in pages(current, labels(current, count), tmp_path / str(count), 500).values():
            assert_sound(text, len(current))


REPRESENTATIVE = ("ordinary", "empty", "no values", "infinite", "formulas", "nearly constant")


@pytest.mark.parametrize(
    "name",
    [n if n in REPRESENTATIVE else pytest.param(n, marks=pytest.mark.slow) for n in WINDOWS],
)
def test_every_window_has_its_pictures(name: str) -> None:
    current = WINDOWS[name]
    ground_truth = labels(current, len(current) // 2)
    pictures = [
        plots.distributions(current, REFERENCE, SPEC, drift(current, REFERENCE, SPEC)),
        plots.missing_shares(quality([current], REFERENCE, SPEC)),
        plots.accuracy(performance([current], [ground_truth], SPEC, {})),
    ]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
