"""The dashboard in a browser: all of it is drawn, moves together, and no data becomes program."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from mlschool_dagster.monitoring.dashboard.data import DashboardData
from mlschool_dagster.monitoring.dashboard.page import write_dashboard
from mlschool_dagster_tests.monitoring.samples import START
from mlschool_dagster_tests.monitoring.traffic_month import dashboard_data as month

CHROMIUM = shutil.which("chromium")
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><b>%{y}</b></script>"
SHOWN_FROM = "place => new Date(place.layout.xaxis.range[0]).getTime()"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def opened(
    browser: Browser, data: DashboardData, folder: Path, width: int = 1280, **options: Any
) -> tuple[Page, list[str]]:
    """The page of `data` once it is drawn, and whatever it complained of or asked for."""
    path = folder / "dashboard.html"
    write_dashboard(path, data)
    page = browser.new_page(viewport={"width": width, "height": 800}, **options)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(path.as_uri())
    complaints.remove(path.as_uri())
    return page, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_by_day_and_by_night(
    scheme: str, browser: Browser, tmp_path: Path
) -> None:
    page, complaints = opened(browser, month(200), tmp_path, color_scheme=scheme)
    assert page.locator(".plot").count() == 8
    assert page.locator(".plot .main-svg").first.is_visible()
    assert page.locator(".plot:not(.js-plotly-plot)").count() == 0
    text = page.locator("#accuracy .xtick text").first
    brightness = text.evaluate("label => parseInt(getComputedStyle(label).fill.split('(')[1])")
    assert (brightness > 128) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    page.close()


def test_on_a_phone_figures_have_the_width_and_fingers_move_the_page(
    browser: Browser, tmp_path: Path
) -> None:
    page, complaints = opened(browser, month(60), tmp_path, width=390, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for place in page.locator(".plot").all():
        drawn = place.evaluate("place => place._fullLayout.xaxis._length / place.clientWidth")
        assert drawn > 0.55
        assert place.evaluate("place => place._fullLayout.dragmode") is False
        inside = "place => place._fullLayout.yaxis._length"
        assert place.evaluate(inside) > 50
    assert complaints == []
    page.close()


def test_figures_over_windows_move_together(browser: Browser, tmp_path: Path) -> None:
    page, complaints = opened(browser, month(200), tmp_path)
    places = page.locator("#drift .plot, #traffic .plot, #quality .plot, #labels .plot")
    whole = {place.evaluate(SHOWN_FROM) for place in places.all()}
    page.get_by_role("button", name="1 day").click()
    page.wait_for_function(
        f"({SHOWN_FROM})(document.querySelector('#labels .plot')) > {whole.pop()}"
    )
    (from_,) = {place.evaluate(SHOWN_FROM) for place in places.all()}
    assert not whole
    until = page.evaluate(
        "new Date(document.querySelector('#drift .plot').layout.xaxis.range[1]).getTime()"
    )
    assert until - from_ == 24 * 3600 * 1000
    assert complaints == []
    page.close()


def test_no_data_becomes_program(browser: Browser, tmp_path: Path) -> None:
    honest = month(60)
    hostile = replace(
        honest,
        model=HOSTILE,
        metrics=[
            replace(metric, column=metric.column and HOSTILE, segment=metric.segment and HOSTILE)
            for metric in honest.metrics
        ],
        periods=[replace(period, version=HOSTILE) for period in honest.periods],
        events=[replace(event, version=HOSTILE, why=HOSTILE) for event in honest.events],
    )
    page, complaints = opened(browser, hostile, tmp_path)
    assert page.title() == f"{HOSTILE}: monitoring"
    marks = page.locator("#drift .plot .annotation-text")
    assert marks.count() > 0
    for place in page.locator(".plot .draglayer .nsewdrag").all():
        place.hover()
    assert page.locator("img[src=x], image[href=x]").count() == 0
    assert complaints == []
    page.close()


def test_without_any_window_the_page_says_so(browser: Browser, tmp_path: Path) -> None:
    page, complaints = opened(browser, DashboardData("penguins", START), tmp_path)
    assert page.get_by_text("No window has been monitored yet").is_visible()
    assert page.locator(".plot").count() == 0
    assert complaints == []
    page.close()
