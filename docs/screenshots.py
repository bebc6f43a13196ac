"""The pictures in the README, taken from the platform that `make dev` runs.

``PYTHONPATH=. python docs/screenshots.py`` after `make demo`, with `make dev` running and Chromium
installed.
"""

import shutil
import sys
from pathlib import Path
from tempfile import mkdtemp

from playwright.sync_api import FloatRect, Page, ViewportSize, sync_playwright

from mlschool_dagster.monitoring.dashboard.page import write_dashboard
from mlschool_dagster_tests.monitoring.traffic_month import dashboard_data

IMAGES = Path(__file__).parent / "images"
DAGSTER = "http://127.0.0.1:3000"
REPORTS = "http://127.0.0.1:8090"
ENDPOINT = "http://127.0.0.1:8080"
SETTLED_MILLISECONDS = 4000
MONTH, DRIFTED = 720, 500
"""Windows in a month, and the one at the end of which its dashboard is shown."""
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


PAGES = {
    "lineage": f"{DAGSTER}/asset-groups",
    "cross_validation": f"{DAGSTER}/assets/cross_validation?view=overview",
    "checks": f"{DAGSTER}/assets/drift_report?view=checks",
    "drift_picture": f"{DAGSTER}/assets/drift_report?view=events",
    "deployment_ledger": f"{DAGSTER}/assets/deployment_ledger?view=overview",
    "endpoint_health": f"{DAGSTER}/assets/endpoint_health?view=overview",
    "api": f"{ENDPOINT}/docs",
    "dashboard": "the dashboard of a simulated month, since a demonstration lasts an hour",
    "drift_report": "the report of the newest window",
}
"""Address by picture name, or what `address` makes or looks up."""


def address(name: str) -> str:
    """The address of the page of a picture."""
    if name == "dashboard":
        path = Path(mkdtemp()) / "dashboard.html"
        write_dashboard(path, dashboard_data(MONTH, until=DRIFTED))
        return path.as_uri()
    if name == "drift_report":
        windows = Path(__file__).parents[1] / ".mlschool" / "files" / "windows"
        newest = max(path.name for path in windows.iterdir())
        return f"{REPORTS}/windows/{newest}/drift_report.html"
    return PAGES[name]


def take(page: Page, name: str) -> None:
    """Open the page of a picture, wait until nothing loads any more, and keep a picture of it."""
    # The graph does not move into view when its groups are opened.
    page.set_viewport_size(LARGE if name == "lineage" else USUAL)
    page.goto(address(name), wait_until="networkidle")
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
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(device_scale_factor=1.5)
        for name in sys.argv[1:] or PAGES:
            take(page, name)
        browser.close()


if __name__ == "__main__":
    main()
