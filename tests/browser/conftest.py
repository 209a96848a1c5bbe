"""A real app, a real Chromium, and a watch over every request that the browser makes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, BrowserContext, Page, Response, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from monitor.runfile.meta import edit_meta
from tests.app import runs_for_tests as made
from tests.app.conftest import MAIN, ROOT, wait_until_up
from tests.app.test_ranks_view import with_ranks
from tests.browser import chromium
from tests.waiting import until

ARTIFACTS = Path(__file__).parent / "artifacts"
READY = '[data-testid="stApp"][data-test-script-state="notRunning"][data-test-connection-state="CONNECTED"]'
PATIENCE_MS = 120_000
"""A bound on waiting for what must come, not an expectation: the machine may be busy."""
expect.set_options(timeout=PATIENCE_MS)
STEPS_OF_THE_SPIKE, AT, HEIGHT = 200_000, 123_457, 97.25


@dataclass
class App:
    """A running app."""

    runs: Path
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {**os.environ, "GRADIOMETER_RUNS": str(self.runs), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "streamlit", "run", str(MAIN), "--server.port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.runs.parent, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until_up(self.process)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=30)
            self.process = None


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def started(runs: Path, ids: dict[str, str] | None = None) -> Iterator[App]:
    """The app on a folder of runs, until the block ends."""
    running = App(runs, free_port(), runs.parent / "app.log", ids=ids or {})
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app on runs in every state."""
    runs = tmp_path_factory.mktemp("browser") / "runs"
    ids = {
        "healthy": made.healthy_run(runs).name,
        "nan": made.nan_run(runs).name,
        "resumed": made.resumed_run(runs).name,
        "half": made.half_written(runs).name,
        "torn": made.torn_run(runs).name,
        "measured": made.measured_run(runs).name,
        "newer": made.newer_format(runs).name,
        "spike": made.spike_run(runs, steps=STEPS_OF_THE_SPIKE, at=AT, height=HEIGHT).name,
    }
    with_ranks(runs)
    with started(runs, ids) as running:
        yield running


@pytest.fixture(scope="session")
def attacked(app: App) -> App:
    """The app with a run whose every name is an attack, and a task, a parent and tags to match."""
    path = made.hostile_run(app.runs)
    edit_meta(path, tags=list(made.HOSTILE[:6]), notes="\n".join(made.HOSTILE))
    (path / "attempts/0000/rank-00000/log.txt").write_text("\n".join(made.HOSTILE), encoding="utf-8")
    return app


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium here; `make test` installs one, or name one with CHROMIUM=/path/to/chromium")
    with sync_playwright() as playwright:
        # One process for all tabs: what one of them has compiled, the next one has.
        arguments = [*chromium.ARGUMENTS, "--process-per-site"]
        running = playwright.chromium.launch(executable_path=path, args=arguments)
        yield running
        running.close()


@pytest.fixture(scope="session")
def window(browser: Browser, app: App) -> BrowserContext:
    """Where the tabs of all tests are opened, so that the page's scripts are fetched and compiled once, not each time.

    A test that keeps something in the browser makes a context of its own.
    """
    context = browser.new_context()
    context.new_page().goto(f"{app.address}/api/health")  # the process lives as long as it has a tab
    return context


@dataclass
class Tab:
    """A browser tab, with what it asked the network for and what went wrong in it."""

    page: Page
    app: App
    frames: list[int] = field(default_factory=list)
    """Status of every answer of ``/api/frame``."""
    elsewhere: list[str] = field(default_factory=list)
    """Requests to another place than the app."""
    errors: list[str] = field(default_factory=list)
    """Errors thrown in the page."""

    def open(self, path: str) -> None:
        """Go to ``path`` and wait for the page to have come to rest."""
        self.page.goto(self.app.address + path)
        self.rest()

    def open_run(self, run_id: str, **query: object) -> None:
        """The page of a run, with its charts."""
        more = "".join(f"&{name}={value}" for name, value in query.items())
        self.open(f"/run?run={run_id}{more}")

    def rest(self) -> None:
        self.page.wait_for_selector(READY)

    def charts(self) -> None:
        """Wait until the first charts are drawn."""
        self.wait("() => document.querySelectorAll('.gm-chart .js-plotly-plot').length >= 2")

    def turn_to(self, path: str) -> None:
        """Go to ``path`` as the browser's back button does, without loading the page anew; the caller waits for it."""
        turn = "(path) => { history.pushState({}, '', path); dispatchEvent(new PopStateEvent('popstate')); }"
        self.page.evaluate(turn, path)

    def in_scheme(self, scheme: Literal["light", "dark"]) -> None:
        """Switch between light and dark, and wait until the page and its charts have followed."""
        self.page.emulate_media(color_scheme=scheme)
        self.wait(IN_SCHEME, scheme == "dark")
        # Streamlit's buttons change their colours over a fifth of a second.
        self.wait("() => !document.getAnimations().some((one) => one instanceof CSSTransition)")

    def wait(self, condition: str, argument: object = None) -> None:
        """Wait until a JavaScript condition holds."""
        self.page.wait_for_function(condition, arg=argument)

    def until(self, look: Callable[[], object], what: str, *, ask: bool = False) -> None:
        """Wait for what the browser tells of, which it does while one waits in it.

        Args:
            ask: have the page ask at once and again, as a tab does that is looked at again.
        """

        def seen() -> object:
            if ask:
                self.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            self.page.wait_for_timeout(100)
            return look()

        until(seen, what, every_s=0)

    def says(self, *words: str) -> None:
        """Wait until the page says each of ``words``."""
        for one in words:
            try:
                self.wait("(one) => document.querySelector('[data-testid=stApp]').innerText.includes(one)", one)
            except PlaywrightTimeout:
                pytest.fail(f"the page does not say {one!r}, but: {self.page.inner_text('[data-testid=stApp]')}")

    def data(self, chart: str = "loss", trace: int = 0) -> dict:
        """What Plotly draws: x and y of a trace, and the x range of the chart."""
        return self.page.evaluate(
            """([chart, trace]) => {
                const plot = document.querySelector(`.gm-chart[data-id="${chart}"] .js-plotly-plot`);
                const {x, y} = plot.data[trace], range = plot._fullLayout.xaxis.range.slice();
                return {x: Array.from(x), y: Array.from(y), range};
            }""",
            [chart, trace],
        )

    def drag(self, chart: str, first: float, last: float) -> None:
        """Drag with the mouse over a part of a chart, given in shares of its width."""
        box = self.page.locator(f'.gm-chart[data-id="{chart}"] .nsewdrag').first.bounding_box()
        assert box is not None
        y = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + first * box["width"], y)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + (first + last) / 2 * box["width"], y, steps=4)
        self.page.mouse.move(box["x"] + last * box["width"], y, steps=4)
        self.page.mouse.up()


IN_SCHEME = """(dark) => {
    const page = getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor;
    const light = page.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);
    const grids = [...document.querySelectorAll('.gm-grid')];
    return (light < 384) === dark
        && grids.every((grid) => !grid.querySelector('.main-svg') || grid.classList.contains('gm-dark') === dark);
}"""
NewTab = Callable[..., Tab]


@pytest.fixture
def new_tab(window: BrowserContext, app: App) -> Iterator[NewTab]:
    """Open tabs; when the test is over, no request has left the machine and nothing was thrown in the page."""
    tabs: list[Tab] = []
    with contextlib.ExitStack() as stack:

        def open_it(
            *, scheme: Literal["light", "dark"] = "light", width: int = 1440, height: int = 1000, of: App = app
        ) -> Tab:
            tab = Tab(window.new_page(), of)
            stack.callback(tab.page.close)
            tab.page.set_viewport_size({"width": width, "height": height})
            tab.page.emulate_media(color_scheme=scheme)
            tab.page.set_default_timeout(PATIENCE_MS)
            local = (of.address, of.address.replace("http", "ws"), "data:", "blob:")
            tab.page.on("request", lambda request: request.url.startswith(local) or tab.elsewhere.append(request.url))
            tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
            tab.page.on("response", lambda answer: note_frame(tab, answer))
            tabs.append(tab)
            return tab

        yield open_it
        for tab in tabs:
            assert tab.elsewhere == []
            assert tab.errors == []
            assert tab.page.locator('[data-testid="stException"]').count() == 0


def note_frame(tab: Tab, answer: Response) -> None:
    """Keep the status of an answer of the charts' route."""
    if "/api/frame" in answer.url:
        tab.frames.append(answer.status)


@pytest.fixture
def tab(new_tab: NewTab) -> Tab:
    """One tab, wide and light."""
    return new_tab()


@pytest.fixture
def live_run(app: App) -> Iterator[str]:
    """A run that goes on while the test looks at it."""
    run_id = f"live-{os.urandom(3).hex()}"
    command = [sys.executable, "-m", "tests.browser.live_writer", str(app.runs), run_id, "0.03"]
    writer = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
    yield run_id
    assert writer.stdin is not None
    writer.stdin.close()
    writer.wait(timeout=30)
