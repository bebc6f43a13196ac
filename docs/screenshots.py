"""The pictures in the README, taken from the platform that `make dev` runs.

``PYTHONPATH=. python docs/screenshots.py`` after `make demo`, with `make dev` running and Chromium
installed.
"""

import shutil
import sys
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp

from playwright.sync_api import FloatRect, Page, ViewportSize, sync_playwright

from mlschool_dagster.monitoring.dashboard.data import DashboardData
from mlschool_dagster.monitoring.dashboard.page import write_dashboard
from mlschool_dagster_tests.monitoring import traffic_month
from mlschool_dagster_tests.monitoring.samples import START

IMAGES = Path(__file__).parent / "images"
DAGSTER = "http://127.0.0.1:3000"
REPORTS = "http://127.0.0.1:8090"
ENDPOINT = "http://127.0.0.1:8080"
SETTLED_MILLISECONDS = 4000
MONTH = 720
"""Windows in a month."""
CLIPS: dict[str, FloatRect] = {"lineage": {"x": 575, "y": 105, "width": 1890, "height": 1320}}
USUAL, LARGE = ViewportSize(width=1500, height=950), ViewportSize(width=2500, height=1500)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def newest_window() -> str:
    """The folder name of the newest window with reports."""
    windows = Path(__file__).parents[1] / ".mlschool" / "files" / "windows"
    return max(path.name for path in windows.iterdir())


def month_page() -> str:
    """The address of a dashboard of a simulated month, since a demonstration lasts an hour."""
    shown = DashboardData(
        "penguins",
        START + timedelta(hours=1),
        traffic_month.all_metrics(MONTH),
        traffic_month.periods(MONTH),
        traffic_month.events(MONTH),
    )
    path = Path(mkdtemp()) / "dashboard.html"
    write_dashboard(path, shown)
    return path.as_uri()


def pages() -> dict[str, str]:
    """Address by picture name."""
    return {
        "lineage": f"{DAGSTER}/asset-groups",
        "cross_validation": f"{DAGSTER}/assets/cross_validation?view=overview",
        "checks": f"{DAGSTER}/assets/drift_report?view=checks",
        "drift_picture": f"{DAGSTER}/assets/drift_report?view=events",
        "deployment_ledger": f"{DAGSTER}/assets/deployment_ledger?view=overview",
        "endpoint_health": f"{DAGSTER}/assets/endpoint_health?view=overview",
        "api": f"{ENDPOINT}/docs",
        "dashboard": month_page(),
        "drift_report": f"{REPORTS}/windows/{newest_window()}/drift_report.html",
    }


def take(page: Page, name: str, address: str) -> None:
    """Open `address`, wait until nothing loads any more, and keep a picture of it."""
    # The graph does not move into view when its groups are opened.
    page.set_viewport_size(LARGE if name == "lineage" else USUAL)
    page.goto(address, wait_until="networkidle")
    page.wait_for_timeout(SETTLED_MILLISECONDS)
    invitation = page.get_by_role("button", name="Skip")
    if invitation.count():
        invitation.click()
    if name == "lineage":
        page.keyboard.press("Alt+e")
    if name == "drift_picture":
        page.get_by_text("[Show Markdown]").first.click()
    if name == "deployment_ledger":
        page.get_by_text("Show schema").first.scroll_into_view_if_needed()
    page.wait_for_timeout(SETTLED_MILLISECONDS)
    page.screenshot(path=IMAGES / f"{name}.png", clip=CLIPS.get(name))


def main() -> None:
    """Take the pictures named by the arguments, all of them without any."""
    chromium = shutil.which("chromium") or sys.exit("Chromium is missing; install it.")
    wanted = sys.argv[1:] or list(pages())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(device_scale_factor=1.5)
        for name in wanted:
            take(page, name, pages()[name])
        browser.close()


if __name__ == "__main__":
    main()
