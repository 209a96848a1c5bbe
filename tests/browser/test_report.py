"""The HTML report as a person opens it: a file in a real Chromium, with a watch over what it asks for."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page

from app.report import page as report
from app.report.content import content_of_run
from tests.app import runs_for_tests as made
from tests.browser.conftest import ARTIFACTS

pytestmark = pytest.mark.browser
SIZES = [("light", 1100), ("dark", 1100), ("light", 390)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The reports of a broken run, and of one whose every name is an attack, with the page's own policy and without."""
    folder = tmp_path_factory.mktemp("reports")
    contents = {"broken": content_of_run(made.nan_run(folder)), "hostile": content_of_run(made.hostile_run(folder))}
    pages = {name: report.render([content]) for name, content in contents.items()}
    pages["hostile-unguarded"] = pages["hostile"].replace(report.POLICY, "")
    assert pages["hostile-unguarded"] != pages["hostile"]
    for name, html in pages.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return folder


def opened(browser: Browser, address: str, scheme: str, width: int) -> tuple[Page, list[str]]:
    """The page, and what it asked for or complained of beside itself."""
    context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
    tab = context.new_page()
    tab.set_viewport_size({"width": width, "height": 1000})
    said: list[str] = []
    tab.on("request", lambda request: request.url == address or said.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(address, wait_until="load")
    return tab, said


@pytest.mark.parametrize("name", ["hostile", "hostile-unguarded"])
def test_a_report_fetches_and_runs_nothing(browser: Browser, files, name):
    tab, said = opened(browser, (files / f"{name}.html").as_uri(), "light", 1100)
    assert made.HOSTILE[0] in tab.inner_text("h1")
    assert tab.evaluate("window.hacked") is None
    assert tab.evaluate("document.querySelectorAll('script, img, a, link, iframe, object, base').length") == 0
    assert said == []
    tab.context.close()


@pytest.mark.parametrize(("scheme", "width"), SIZES)
def test_a_report_is_readable_in_both_schemes_and_widths(browser: Browser, files, scheme, width):
    tab, said = opened(browser, (files / "broken.html").as_uri(), scheme, width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    dark = sum(tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")) < 300
    assert dark == (scheme == "dark")
    drawn = "[...document.querySelectorAll('svg path.line')].map((path) => path.getBoundingClientRect().width)"
    assert max(tab.evaluate(drawn)) > 0.6 * width
    small = "[...document.querySelectorAll('.plot span')].map((s) => parseFloat(getComputedStyle(s).fontSize))"
    assert min(tab.evaluate(small)) >= 10
    ARTIFACTS.mkdir(exist_ok=True)
    tab.screenshot(path=ARTIFACTS / f"report-{scheme}-{width}.png", full_page=True)
    assert said == []
    tab.context.close()


def test_a_printed_report_shows_what_is_folded_away(browser: Browser, files):
    tab, _ = opened(browser, (files / "broken.html").as_uri(), "dark", 1100)
    folded = tab.locator("details p").first
    assert not folded.is_visible()
    tab.emulate_media(media="print", color_scheme="light")
    assert folded.bounding_box() is not None and folded.is_visible()
    assert len(tab.pdf(format="A4")) > 10_000
    tab.context.close()
