"""The bell: silent until it is turned on, then a notification for each new incident, with text as text."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.app import runs_for_tests as made
from tests.browser.conftest import ARTIFACTS, READY, App

NOTED = """
window.told = [];
class Told { constructor(title, options) { window.told.push([title, options.body]); } close() {} }
Told.permission = 'granted';
Told.requestPermission = async () => 'granted';
window.Notification = Told;
"""


class Writer:
    """A run that goes on, and whose loss can be made NaN."""

    def __init__(self, runs: Path) -> None:
        self.run = made.Recorded(runs, "<b>bell</b>", run_id="bell", planned=100_000, start=time.time())
        self.bad, self._over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._write)
        self.thread.start()

    def _write(self) -> None:
        step = 0
        while not self._over.is_set():
            step += 1
            self.run.row(step, math.nan if self.bad.is_set() else 1.5 + 4 * math.exp(-step / 300))
            self.run.writer.heartbeat(step=step, state="training", step_time_s=0.05, planned_steps=100_000)
            if step > 100:
                self._over.wait(0.05)
        self.run.end("stopped", step, "the test is over")

    def end(self) -> None:
        self._over.set()
        self.thread.join()


@pytest.fixture
def writer(app: App) -> Iterator[Writer]:
    made_one = Writer(app.runs)
    yield made_one
    made_one.end()


def test_a_new_incident_is_told_to_whoever_turned_the_bell_on(browser: Browser, app: App, writer: Writer) -> None:
    context = browser.new_context()
    context.add_init_script(NOTED)
    on, off = context.new_page(), browser.new_context().new_page()
    off.add_init_script(NOTED)
    try:
        for page in (on, off):
            page.set_default_timeout(90_000)
            page.goto(f"{app.address}/run?run=bell")
            page.wait_for_selector(READY)
            page.get_by_role("button", name="Bell off").wait_for()
        on.get_by_role("button", name="Bell off").click()
        on.get_by_role("button", name="Bell: critical").wait_for()
        on.wait_for_function("document.querySelector('h2')?.textContent.includes('healthy')")
        assert on.evaluate("window.told") == []
        on.screenshot(path=ARTIFACTS / "bell.png")
        writer.bad.set()
        on.wait_for_function("window.told.length >= 1")
        ((title, body), *_) = on.evaluate("window.told")
        assert title == "<b>bell</b>: critical" and body
        assert off.evaluate("window.told") == []
        on.reload()
        on.get_by_role("button", name="Bell: critical").wait_for()
        on.wait_for_function("document.querySelector('h2')?.textContent.includes('incident')")
        assert on.evaluate("window.told") == [], "what was there when the page was opened is no news"
    finally:
        context.close()
        off.context.close()
