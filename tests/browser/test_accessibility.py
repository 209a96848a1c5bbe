"""What axe finds in the parts that are ours: nothing serious, in light and in dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page

from app.report import page as report
from app.report.content import content_of_run
from tests.app import runs_for_tests as made
from tests.browser.conftest import App, Tab

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.browser

OURS = [".gm-runs", ".gm-grid"]
STREAMLITS = [
    '[data-testid="stPageLink"]',
    '[data-selected="true"]',
    '[data-testid="stSliderThumbValue"]',
    "[data-tag-index]",
]
"""A disabled link of Streamlit is grey like a disabled button, which axe knows to leave alone. And one primary colour
has to serve as a filled button under white words and, where something is chosen, as words on the dark page: both at
4.5:1 no colour can be on this page, and it is chosen for the buttons."""
SCHEMES: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")
PAGES = {
    "runs": "/?differ=true",
    "story": "/run?run={nan}",
    "incident": "/run?run={nan}&section=Incidents",
    "compare": "/compare?run={healthy}&run={nan}",
    "launch": "/launch",
    "layers": "/run?run={measured}&section=Layers",
    "landscape": "/run?run={measured}&section=Landscape",
    "system": "/run?run={resumed}&section=System",
    "ranks": "/run?run=ranks&section=Ranks",
    "config": "/run?run={resumed}&section=Config",
    "log": "/run?run={resumed}&section=Log",
    "sweeps": "/sweeps",
}


def serious(page: Page, context: Any = None, rules: Sequence[str] = ()) -> list[str]:
    """What axe calls serious or critical, as ``rule: element``; of ``rules`` alone when some are named."""
    options: dict[str, Any] = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = axe.Axe().run(page, context, options=options).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node.get('failureSummary', '')[:300]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("name", list(PAGES))
def test_axe_finds_nothing_serious_in_what_is_ours(tab: Tab, app: App, name: str):
    tab.open(PAGES[name].format(**app.ids))
    if name in ("story", "compare"):
        tab.charts()
    tab.wait("() => !document.querySelector('[data-testid=stSkeleton]')")
    found: list[tuple[str, str]] = []
    for scheme in SCHEMES:
        tab.in_scheme(scheme)
        tab.wait("() => !document.querySelector('[data-stale=true]')")
        there = [part for part in OURS if tab.page.locator(part).count()]
        if there:
            own = {"include": [[part] for part in there], "exclude": [[".main-svg"]]}
            rules = [] if scheme == "light" else ["color-contrast"]  # the others do not ask for colours
            found += [(scheme, one) for one in serious(tab.page, own, rules)]
        # The words and badges that we put into Streamlit's own elements.
        words = {"include": [['[data-testid="stMain"]']], "exclude": [[part] for part in (*there, *STREAMLITS)]}
        found += [(scheme, one) for one in serious(tab.page, words, ["color-contrast"])]
    assert found == [], "\n".join(map(str, found))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing_serious_in_a_report(browser: Browser, tmp_path: Path, scheme):
    (tmp_path / "report.html").write_text(report.render([content_of_run(made.nan_run(tmp_path))]), encoding="utf-8")
    page = browser.new_page(color_scheme=scheme, bypass_csp=True)
    page.goto((tmp_path / "report.html").as_uri())
    assert serious(page) == []
    page.close()
