"""A small real sweep, begun in the page and watched to its end; and a dry run of the launch form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import ARTIFACTS, App, NewTab, Tab, started
from tests.trainer.launch.conftest import processes_of
from tests.waiting import until
from trainer.sweep import open_sweep

pytestmark = pytest.mark.browser

SMALL = "task.kind=mlp\nmodel.n_layer=1\nmodel.d_model=16\nsteps=20\nevaluation.every_steps=20\nthreads=1"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[App]:
    """The app on a folder of its own, whose trainings are gone when the test is over."""
    with started(tmp_path / "runs") as running:
        yield running
    for process in processes_of(tmp_path):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def test_a_sweep_is_begun_in_the_page_and_watched_to_its_end(new_tab: NewTab, alone: App):
    tab = new_tab(of=alone)
    tab.open("/sweeps")
    tab.says("There are no sweeps of your own yet")
    fill(tab, "Vary, one field a line", "optimizer.lr=1e-6,1e-2\noptimizer.weight_decay=0,0.1")
    fill(tab, "Change for all trials, one field a line", SMALL)
    fill(tab, "Trials", "2")
    fill(tab, "At the same time", "2")
    tab.page.get_by_role("button", name="Begin", exact=True).click()
    tab.wait("() => new URL(location).searchParams.has('sweep')")
    tab.says("2 of 2 trials ended (2 complete)", "best ", "finished")
    sweep = open_sweep(alone.runs, re.findall(r"sweep=([^&]+)", tab.page.url)[0])
    assert sweep.state == "finished" and sweep.best is not None
    tab.says(f"in trial {sweep.best.number}", "Fields and metric")
    plots = "[...document.querySelectorAll('[data-testid=stPlotlyChart] .js-plotly-plot')]"
    tab.wait(f"() => {plots}.some((plot) => plot.data?.[0]?.type === 'parcoords')")
    axes = tab.page.evaluate(
        f"{plots}.find((plot) => plot.data[0].type === 'parcoords').data[0].dimensions.map((one) => one.label)"
    )
    assert [re.sub("<[^>]*>", "", axis).strip() for axis in axes][-1:] == ["val_loss"] and len(axes) == 3
    best = tab.page.evaluate(
        f"{plots}.flatMap((plot) => plot.data).filter((t) => t.name === 'best so far').map((t) => Array.from(t.y))"
    )
    assert min(best[0]) == pytest.approx(sweep.best.value, rel=1e-5)
    (ARTIFACTS / "states").mkdir(parents=True, exist_ok=True)
    tab.page.screenshot(path=ARTIFACTS / "states" / "sweep.png")
    tab.page.get_by_role("button", name="All sweeps").click()
    tab.wait("() => !new URL(location).searchParams.has('sweep')")
    until(lambda: not processes_of(alone.runs), "no process left")


def test_a_dry_run_tells_what_the_form_would_take_and_starts_nothing(new_tab: NewTab, alone: App):
    tab = new_tab(of=alone)
    tab.open("/launch?preset=charmlp")
    expect(tab.page.get_by_role("button", name="Dry run")).to_be_enabled()
    tab.page.get_by_role("button", name="Dry run").click()
    tab.says("Dry run: a few real steps are taken")
    tab.page.get_by_test_id("stDataFrame").first.wait_for()
    tab.wait("() => !document.querySelector('[data-testid=stApp]').innerText.includes('a few real steps are taken')")
    assert not list(alone.runs.glob("*")), "nothing is written"


def fill(tab: Tab, label: str, words: str) -> None:
    """Type into a field of the form, and leave it."""
    field = tab.page.get_by_label(label, exact=True)
    field.fill(words)
    field.blur()
    tab.rest()
