"""The report in a real browser, by `nox -s report`: no stored script runs, nothing overflows, nothing is inaccessible.

The page is that of a run made by hand, with a script in every text (conftest.py), and that of the run in the variable
REPORT_OF, if there is one.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, sync_playwright

from nemotron.report import write_report

SIZES = [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = os.environ["CHROMIUM"]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture(params=["made by hand", "given"])
def report(request: pytest.FixtureRequest, hostile_run: Path) -> Path:
    """A report: of the run that is made by hand, or of the run in the variable REPORT_OF, if there is one."""
    run = hostile_run
    if request.param == "given" and "REPORT_OF" in os.environ:
        run = Path(shutil.copytree(os.environ["REPORT_OF"], hostile_run.with_name("given")))
    return write_report(run)


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_page_is_safe_fits_and_is_accessible(browser: Browser, report: Path, width: int, scheme: str):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    title = page.title()
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert title.endswith(": report")  # a script that runs changes it, also without the policy of the page
    assert [url for url in asked if not url.startswith("data:image/svg+xml,")] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.close()


@pytest.mark.parametrize(("width", "tops"), [(1280, 1), (400, 2)])
def test_replies_are_side_by_side_where_there_is_room(browser: Browser, report: Path, width: int, tops: int):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    places = "[...document.querySelector('.beside').children].slice(0, 2).map(one => one.getBoundingClientRect().top)"
    assert len(set(page.evaluate(places))) == tops
    page.close()


def test_paper_shows_the_replies_that_the_page_folds_and_cuts_nothing(browser: Browser, report: Path):
    page = browser.new_page(viewport={"width": 718, "height": 1047})  # A4 without its margins
    page.goto(report.as_uri())
    shown = "[...document.querySelectorAll('.printed pre')].map(one => one.checkVisibility())"
    assert True not in page.evaluate(shown)
    page.emulate_media(media="print")
    assert page.evaluate("[...document.querySelectorAll('.printed pre')].every(one => one.offsetHeight > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") == 718
    page.close()
