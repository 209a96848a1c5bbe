"""Every page and every state of one: its own words, nothing thrown, nothing beyond its edge; pictures of each.

The pictures are for the eye: light, dark and narrow, in tests/browser/artifacts/states.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from app.report import page as report
from app.report.content import content_of_run
from tests.app import runs_for_tests as made
from tests.browser.conftest import ARTIFACTS, App, NewTab, Tab, started

pytestmark = pytest.mark.browser


def all_nan_run(runs: Path) -> None:
    """No finite loss and no finite norm was ever recorded."""
    run = made.Recorded(runs, "never finite", run_id="never-finite", planned=50)
    for step in range(1, 51):
        run.row(step, float("nan"), norm=float("inf"), layers=np.full(len(made.LAYERS), np.nan))
    run.end("crashed", 50, "the loss is NaN")


def stale_run(runs: Path) -> None:
    """Its last sign of life, from another machine, was a quarter of an hour ago."""
    began = time.time() - 3600
    run = made.Recorded(runs, "gone quiet", run_id="gone-quiet", planned=500, start=began)
    for step in range(1, 41):
        run.row(step, 3.0 - step / 100)
    run.writer.heartbeat(step=40, state="training", step_time_s=0.05, planned_steps=500)
    run.writer.close()
    for path in (run.path / "attempts" / "0000").rglob("*.json"):
        record = json.loads(path.read_text())
        if "host" in record:
            record |= {"host": "another-machine", "boot_id": "0" * 32, "created": began}
            record |= {"time": time.time() - 900, "state": "training"} if path.name == "heartbeat.json" else {}
            path.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def states(app: App) -> App:
    """The app of all tests, with runs in further states."""
    if not (app.runs / "never-finite").exists():
        all_nan_run(app.runs)
        stale_run(app.runs)
    return app


@dataclass(frozen=True)
class State:
    """Where a state is seen, and what says that it is this one."""

    address: str
    says: tuple[str, ...]
    charts: bool = False


STATES = {
    "runs filtered away": State("/?search=nothing_has_this_name", ("No run matches", "clear the search to see them")),
    "runs not understood": State("/?search=state:runing", ("no run is ever 'runing'", "finished, stopped, crashed")),
    "runs with every state": State(
        "/", ("finished", "crashed", "stale", " min ago", "unreadable", "Upgrade: pip install")
    ),
    "run finished": State("/run?run={healthy}", ("finished",), charts=True),
    "run crashed": State("/run?run={nan}", ("crashed", "the loss is NaN", "91 NaN"), charts=True),
    "run stale": State("/run?run=gone-quiet", ("stale", "Last sign of life"), charts=True),
    "run without points": State("/run?run={half}", ("No step yet",)),
    "run never finite": State("/run?run=never-finite", ("50 NaN", "50 ∞"), charts=True),
    "run in part unreadable": State("/run?run={torn}", ("torn",), charts=True),
    "run of a newer format": State("/run?run={newer}", ("This cannot be shown", "is written in format 99", "Upgrade")),
    "run unknown": State("/run?run=nothing-here", ("No run with the id", "gradiometer runs")),
    "run resumed": State("/run?run={resumed}", ("2 attempts", "superseded by a later attempt"), charts=True),
    "section incident": State("/run?run={nan}&section=Incidents", ("What moved, in order", "Likely causes")),
    "section incidents of a healthy run": State("/run?run={healthy}&section=Incidents", ("Nothing found in",)),
    "section layers": State(
        "/run?run={measured}&section=Layers", ("Gradient norm before clipping by depth", "Modules (10)"), charts=True
    ),
    "section attention": State("/run?run={measured}&section=Attention", ("Tokens, in order",)),
    "section landscape": State("/run?run={healthy}&section=Landscape", ("Loss along one direction",)),
    "section landscape absent": State("/run?run={nan}&section=Landscape", ("No landscape samples in this run",)),
    "section system": State("/run?run={healthy}&section=System", ("there are no GPU curves",), charts=True),
    "section ranks": State("/run?run=ranks&section=Ranks", ("The worst window", "Odd: rank 2"), charts=True),
    "section config": State("/run?run={resumed}&section=Config", ("Attempts", "Environment of the last attempt")),
    "section log": State("/run?run={healthy}&section=Log", ("No log in this run", "Events")),
    "section checkpoints": State("/run?run={nan}&section=Checkpoints", ("checkpoint",)),
    "compare": State(
        "/compare?run={healthy}&run={nan}&run={resumed}&smooth=0.8&axis=relative+time",
        ("Where the configurations differ",),
        charts=True,
    ),
    "compare nothing chosen": State("/compare", ("Choose 2 to 10 runs",)),
    "compare filtered away": State("/compare?run={healthy}&run={nan}&metrics=zzz", ("No metric matches", "train_loss")),
    "compare signal absent": State(
        "/compare?run={healthy}&run={half}&axis=tokens", ("has no points yet", "has not recorded its tokens")
    ),
    "compare never finite": State("/compare?run=never-finite&run={half}", ("train_loss has no finite value",)),
    "compare unreadable": State("/compare?run={healthy}&run={newer}", ("cannot be read", "format 99"), charts=True),
    "launch": State("/launch", ("2\u202f048 tokens per step", "The same in a terminal")),
    "sweeps": State("/sweeps", ("Begin a sweep",)),
}


@pytest.mark.parametrize("page", sorted({name.split()[0] for name in STATES}))
def test_each_page_and_state_has_its_words_and_fits_light_dark_and_narrow(tab: Tab, states: App, page: str):
    (ARTIFACTS / "states").mkdir(parents=True, exist_ok=True)
    for name, state in STATES.items():
        if name.split()[0] != page:
            continue
        tab.page.set_viewport_size(WIDE)
        tab.page.emulate_media(color_scheme="light")
        tab.open(state.address.format(**states.ids))
        if state.charts:
            tab.wait("() => document.querySelector('.gm-chart .js-plotly-plot .main-svg')")
        tab.says(*state.says)
        tab.wait("() => !document.querySelector('[data-testid=stSkeleton]')")
        assert tab.page.locator('[data-testid="stException"]').count() == 0, name
        picture(tab, name, "light")
        tab.in_scheme("dark")
        picture(tab, name, "dark")
        tab.page.set_viewport_size(NARROW)
        tab.wait("(width) => document.querySelector('[data-testid=stMain]').clientWidth <= width", NARROW["width"])
        tab.wait(FITS)
        picture(tab, name, "narrow")


WIDE, NARROW = {"width": 1440, "height": 1000}, {"width": 420, "height": 1000}
FITS = """() => {
    const main = document.querySelector('[data-testid=stMain]');
    return main.scrollWidth <= main.clientWidth + 1;
}"""


def picture(tab: Tab, name: str, look: str) -> None:
    tab.page.screenshot(path=ARTIFACTS / "states" / f"{name.replace(' ', '-')}-{look}.png", animations="disabled")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app where nobody has trained yet."""
    with started(tmp_path_factory.mktemp("nobody") / "runs") as running:
        yield running


def test_who_has_no_runs_sees_the_two_commands_and_the_samples(new_tab: NewTab, empty: App):
    tab = new_tab(of=empty)
    tab.open("/")
    for words in ("No runs of your own yet", "gradiometer train", "monitor.attach", "gpt-gradient-explosion"):
        tab.page.get_by_text(words).first.wait_for()
    tab.page.get_by_role("link", name="gpt-gradient-explosion").click()
    tab.charts()
    first = made.Recorded(empty.runs, "the first", run_id="the-first")
    first.end()
    tab.page.go_back()
    tab.page.locator('.gm-runs tr[data-run="the-first"]').wait_for()
    tab.page.get_by_text("No runs of your own yet").wait_for(state="detached")


@pytest.mark.parametrize("kind", ["healthy", "nan", "half", "torn", "never-finite"])
def test_a_report_of_each_state_is_readable_without_the_app(browser: Browser, states: App, tmp_path: Path, kind: str):
    path = states.runs / states.ids.get(kind, kind)
    (tmp_path / "report.html").write_text(report.render([content_of_run(path)]), encoding="utf-8")
    page = browser.new_page(color_scheme="dark")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    assert len(asked) == 1 and page.locator("h1").count() == 1
    says = {"healthy": "healthy", "nan": "NaN", "half": "cannot tell", "torn": "torn", "never-finite": "NaN"}[kind]
    assert says.lower() in page.inner_text("body").lower()
    page.screenshot(path=ARTIFACTS / "states" / f"report-{kind}.png")
    page.close()
