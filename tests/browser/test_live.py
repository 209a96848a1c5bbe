"""Twelve charts of four runs that are live: drawn in place, without a gap, and not at all when nothing came."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.conftest import ROOT
from tests.bench import page_data
from tests.browser.conftest import App, NewTab, Tab, started

pytestmark = pytest.mark.browser
CHARTS, RUNS = 12, 4
ADDRESS = "/compare?" + "&".join(f"run=live-{number}" for number in range(RUNS)) + "&metrics=."


@pytest.fixture(params=[1, 0])
def moving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[App, int]]:
    """The app on four live runs, of whose metrics so many get a new step every two seconds."""
    command = [sys.executable, page_data.__file__, "live", str(tmp_path / "runs")]
    writer = subprocess.Popen(
        [*command, str(RUNS), str(CHARTS), str(request.param)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline and writer.poll() is None
        time.sleep(0.05)
    with started(tmp_path / "runs") as running:
        yield running, request.param
    assert writer.stdin is not None
    writer.stdin.close()
    writer.wait(timeout=30)


def test_charts_that_moved_are_redrawn_in_place_and_the_others_are_not_sent(new_tab: NewTab, moving: tuple[App, int]):
    app, count = moving
    tab = new_tab(of=app, height=3400)
    tab.open(ADDRESS)
    tab.wait(f"() => document.querySelectorAll('{LINES}').length >= {CHARTS * RUNS}")
    tab.wait("() => !document.querySelector('[data-testid=stSkeleton]')")
    expected = set(page_data.names_of(CHARTS)[:count])
    for _ in range(20):  # until the diagnoses are made: their marks belong to every chart
        tab.page.evaluate(WATCH)
        tab.frames.clear()
        two_answers(tab)
        seen, sent = tab.page.evaluate("window.__seen"), set(tab.page.evaluate(SENT))
        assert seen["fewest"] == CHARTS, "no chart was ever missing"
        assert tab.page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].every((plot) => plot.__mark)")
        if sent == expected:
            break
    assert sent == expected, "only what moved was sent again"
    if not count:
        assert set(tab.frames) == {204} and seen["drawn"] == 0, "nothing is sent or drawn when nothing came"


def two_answers(tab: Tab) -> None:
    """Wait for what two questions of the charts brought."""
    deadline = time.monotonic() + 60
    while len(tab.frames) < 3:
        assert time.monotonic() < deadline
        tab.page.wait_for_timeout(100)


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
