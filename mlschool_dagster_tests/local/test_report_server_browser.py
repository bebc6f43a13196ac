"""A browser draws what the report server serves, under the policy that shuts each page off."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from mlschool_dagster.monitoring.dashboard.page import write_dashboard
from mlschool_dagster_tests.local.test_report_server import served
from mlschool_dagster_tests.monitoring import test_report_pages
from mlschool_dagster_tests.monitoring.traffic_month import dashboard_data as month

CHROMIUM = shutil.which("chromium")
TIMEOUT = 60_000
CHART = ".js-plotly-plot .main-svg"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A report server with the dashboard and the three pages of a window."""
    folder = tmp_path_factory.mktemp("files")
    window = test_report_pages.WINDOWS["ordinary"]
    test_report_pages.pages(window, test_report_pages.labels(window, 200), folder, 100)
    write_dashboard(folder / "dashboard.html", month(50))
    with served(folder) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def opened(browser: Browser, address: str) -> tuple[Page, list[str]]:
    """The page at `address`, and what it complained of or asked for beyond itself."""
    page = browser.new_page(viewport={"width": 1280, "height": 2000})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(address)
    complaints.remove(address)
    return page, complaints


@pytest.mark.parametrize("name", ["quality", "performance"])
def test_evidently_draws_its_charts(name: str, browser: Browser, url: str) -> None:
    page, complaints = opened(browser, f"{url}/{name}.html")
    page.locator(CHART).first.wait_for(timeout=TIMEOUT)
    assert complaints == []
    page.close()


def test_the_distributions_of_a_column_are_drawn_when_its_row_is_opened(
    browser: Browser, url: str
) -> None:
    page, complaints = opened(browser, f"{url}/drift.html")
    row = page.locator("tr", has_text="flipper_length_mm")
    row.locator("canvas").first.wait_for(timeout=TIMEOUT)
    row.locator("button").first.click()
    page.locator(CHART).first.wait_for(timeout=TIMEOUT)
    assert complaints == []
    page.close()


def test_the_dashboard_draws_every_figure(browser: Browser, url: str) -> None:
    page, complaints = opened(browser, f"{url}/dashboard.html")
    page.locator(f".plot{CHART}").first.wait_for(timeout=TIMEOUT)
    assert page.locator(".plot:not(.js-plotly-plot)").count() == 0
    assert complaints == []
    page.close()
