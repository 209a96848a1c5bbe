"""Twelve charts of four runs that are live: drawn in place, without a gap, and not at all when nothing came."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.conftest import ROOT
from tests.bench import page_data
from tests.browser.conftest import App, NewTab, Tab, started
from tests.waiting import until

pytestmark = pytest.mark.browser
CHARTS, RUNS = 12, 4
ADDRESS = "/compare?" + "&".join(f"run=live-{number}" for number in range(RUNS)) + "&metrics=."


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[App]:
    """The app on four live runs, of which one metric gets a new step every two seconds."""
    writer = subprocess.Popen(
        [sys.executable, page_data.__file__, "live", str(tmp_path / "runs"), str(RUNS), str(CHARTS), "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
    )
    until((tmp_path / "ready").exists, "the four runs")
    with started(tmp_path / "runs") as running:
        yield running
    assert writer.stdin is not None
    writer.stdin.close()
    writer.wait(timeout=30)


def test_what_moved_is_redrawn_in_place_and_nothing_is_sent_when_nothing_came(new_tab: NewTab, moving: App):
    tab = new_tab(of=moving, height=3400)
    heard: list[int] = []
    tab.page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: heard.append(len(frame))))
    tab.open(ADDRESS)
    tab.wait(f"() => document.querySelectorAll('{LINES}').length >= {CHARTS * RUNS}")
    tab.wait("() => !document.querySelector('[data-testid=stSkeleton]')")
    one = set(page_data.names_of(CHARTS)[:1])
    for _ in range(20):  # now and then the common x axis grows, which is seen in every chart
        if (seen := looked_on(tab))[0] == one and seen[1] < CHARTS:
            break
    assert seen[0] == one, "only what moved was sent again"
    assert 0 < seen[1] < CHARTS, "and drawn"
    (moving.runs.parent / "still").touch()
    for _ in range(20):  # until the diagnoses are made, and the table beside the charts tells of the last step
        heard.clear()
        if (seen := looked_on(tab)) == (set(), 0) and not heard:
            break
    assert seen == (set(), 0) and set(tab.frames) == {204} and heard == [], "nothing is sent or drawn when nothing came"


def looked_on(tab: Tab) -> tuple[set[str], int]:
    """Which charts were sent, and how often one was drawn, while two questions of the charts were answered."""
    tab.page.evaluate(WATCH)
    tab.frames.clear()
    tab.until(lambda: len(tab.frames) >= 3, "what two questions of the charts brought")
    seen = tab.page.evaluate("window.__seen")
    assert seen["fewest"] == CHARTS, "no chart was ever missing"
    assert tab.page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].every((plot) => plot.__mark)")
    return set(tab.page.evaluate(SENT)), seen["drawn"]


SENT = """() => [...document.querySelector('.gm-grid').__gm.slots.values()]
    .filter((slot) => window.__data.get(slot.id) !== slot.data).map((slot) => slot.id)"""
LINES = ".js-plotly-plot .scatterlayer path.js-line"
WATCH = """() => {
    cancelAnimationFrame(window.__look);
    const seen = window.__seen = { fewest: 99, drawn: 0 }, slots = document.querySelector('.gm-grid').__gm.slots;
    window.__data = new Map([...slots.values()].map((slot) => [slot.id, slot.data]));
    for (const plot of document.querySelectorAll('.js-plotly-plot')) {
        plot.__mark = 1;
        plot.on('plotly_afterplot', () => { seen.drawn += 1; });
    }
    const look = () => {
        const there = new Set([...document.querySelectorAll('LINES')].map((line) => line.closest('.js-plotly-plot')));
        seen.fewest = Math.min(seen.fewest, there.size);
        window.__look = requestAnimationFrame(look);
    };
    look();
}""".replace("LINES", LINES)
