"""Another page is asked for while parts of this one ask for themselves, as often as they can."""

from __future__ import annotations

import pytest
from playwright.sync_api import BrowserContext

from tests.browser.conftest import App, Tab

pytestmark = pytest.mark.browser
TURNS = 8
OFTEN = """
const slowly = window.setInterval;
window.setInterval = (act, every, ...more) => slowly(act, every >= 1500 ? 60 : every, ...more);
"""
"""A part that runs again every two seconds or more does so sixteen times a second."""


def test_no_page_stays_white_that_is_asked_for_among_others(window: BrowserContext, app: App):
    page = window.new_page()
    page.set_default_timeout(30_000)
    page.add_init_script(OFTEN)
    tab = Tab(page, app)
    tab.open("/")
    try:
        for turn in range(TURNS):
            page.locator(f'.gm-runs tr[data-run="{app.ids["healthy"]}"] a').click()
            tab.charts()
            page.wait_for_timeout(50 * turn)  # so that they meet in other ways
            if turn % 2:
                page.go_back()
            else:
                page.get_by_role("link", name="Runs").first.click()
            page.locator(".gm-runs tr").first.wait_for()
    finally:
        page.close()
