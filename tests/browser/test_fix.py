"""The whole way in the page: a training that explodes is launched, its incident opened, the fix tried, and judged."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import expect

from tests.browser.conftest import ARTIFACTS, App, Tab
from tests.trainer.launch.conftest import until
from trainer.launch import status

pytestmark = pytest.mark.browser
PATIENCE_MS = 120_000
"""A bound on waiting, not an expectation: two trainings on a machine that may be busy."""


def test_from_the_alarm_to_a_fix_that_is_verified_without_leaving_the_page(tab: Tab, app: App):
    page = tab.page
    tab.open("/launch?preset=explosion")
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url(re.compile(r"/run\?run="), timeout=PATIENCE_MS)
    run_id = run_of(page.url)

    alarm, advice = page.get_by_role("button", name="Why, and what to do"), page.get_by_text("What to do", exact=True)
    expect(alarm).to_be_visible(timeout=PATIENCE_MS)
    while not advice.is_visible():  # the header runs anew when the training ends, and a click may fall into that
        if alarm.is_visible():
            alarm.click()
        with contextlib.suppress(PlaywrightTimeout):
            advice.wait_for(timeout=10_000)
    until(lambda: not status(app.runs / run_id).running, "the end of the training")
    expect(
        page.get_by_text(re.compile(r"A child run with the change above, from the checkpoint of step 60"))
    ).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Try this fix").click()
    expect(page.get_by_text("✓ gone")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text(re.compile(r"\d+ steps past step \d+ without it; loss \d"))).to_be_visible()
    told = [json.loads(path.read_text()) for path in sorted((app.runs / run_id / "afterwards").iterdir())]
    child = app.runs / told[0]["run"]
    tab.charts()  # the child over its parent
    page.wait_for_function(
        "document.querySelector('.gm-chart[data-id=train_loss] .js-plotly-plot')?.data.some((t) => t.x.length > 60)"
    )
    page.screenshot(path=ARTIFACTS / "fix-gone.png", full_page=True)
    assert [(event["kind"], event["run"]) for event in told] == [("fix", child.name), ("fix_outcome", child.name)]
    assert told[1]["word"] == "gone"

    page.get_by_role("button", name=child.name).click()
    tab.wait("(run) => new URL(location).searchParams.get('run') === run", child.name)
    expect(page.get_by_text(re.compile("Tries a fix, as recommended: "))).to_be_visible(timeout=PATIENCE_MS)
    until(lambda: not status(child).running, "the end of the child")


def run_of(address: str) -> str:
    found = re.search(r"[?&]run=([A-Za-z0-9._-]+)", address)
    assert found is not None
    return found[1]
