"""The page beside TensorBoard and Trackio on the same run, in a real browser: opening, zooming, living, listing.

    python -m tests.bench.page [--quick] [--keep FOLDER] [--only open,live,list]

Everything is taken in one run on one machine; quote ratios, not times. Process time (CPU) is given beside wall time,
since a busy machine stretches the second and not the first.

    open    from the start of the server's process to an answer with the last step, to the first chart, and to the last
            step in it; the page loaded for the first time and again; a drag to a hundredth of the run until finer data
            are drawn; memory of the server and of the tab.
            1 000 000 steps x 20 scalars beside the peers, and 100 000 steps x 200 layers
    live    12 charts x 4 traces with an update every two seconds: bytes, CPU of browser and server per update, then,
            with a probe that costs time of its own, charts missing at any frame, nodes kept; all, one and none of the
            charts moving; st.plotly_chart doing the same
    list    10 000 runs: cold, and again

Peers are skipped where they are not installed; ``GRADIOMETER_PEERS=/path/to/python`` names the Python that has Trackio
(see tests/bench/run_directory.py). Aim is left out: its own logger is the only way to write its files, at about 4 000
values a second, so that this run would take more than an hour to write.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import Error as BrowserError

from app import frame
from tests.app.conftest import MAIN, ROOT
from tests.bench.list_runs import make
from tests.bench.page_data import SPIKE
from tests.bench.report import Line, bars, save, table
from tests.browser import chromium
from tests.browser.conftest import free_port

PEERS = os.environ.get("GRADIOMETER_PEERS", sys.executable)
DATA = str(ROOT / "tests" / "bench" / "page_data.py")
TICKS = 6
PATIENCE_S = 240

STOCK = """
import numpy as np, plotly.graph_objects as go, streamlit as st
@st.fragment(run_every=2)
def charts():
    moving = {moving}
    tick = st.session_state["tick"] = st.session_state.get("tick", 0) + 1
    for chart in range(12):
        noise = np.random.default_rng(chart + (1000 * tick if chart < moving else 0))
        traces = [go.Scatter(x=np.arange(1000, dtype=np.float32), y=noise.normal(size=1000).astype(np.float32))
                  for _ in range(4)]
        st.plotly_chart(go.Figure(traces, layout=dict(height=150, margin=dict(l=0, r=0, t=0, b=0))), key=f"c{{chart}}")
st.set_page_config(layout="wide")
charts()
"""
"""The same charts with what Streamlit has for them."""


# ---- processes ----------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A dashboard's process, just started."""

    process: subprocess.Popen[bytes]
    address: str
    began: float

    def family(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def cpu(self) -> float:
        return cpu_of(self.family())

    def own_cpu(self) -> float:
        """Without the processes that it has begun: ours makes a diagnosis beside what is asked of it."""
        return cpu_of([psutil.Process(self.process.pid)])

    def memory(self) -> dict[str, float]:
        """MB of the server's own process, of those it has begun (ours: the doctor), and of the first without what is
        mapped from files, which the system takes back when it needs the room.
        """
        own, *others = (one.memory_info() for one in self.family())
        return {
            "server MB": own.rss / 1e6,
            "server without mapped files MB": (own.rss - own.shared) / 1e6,
            "its processes MB": sum(one.rss for one in others) / 1e6,
        }


def cpu_of(processes: list[psutil.Process]) -> float:
    total = 0.0
    for one in processes:
        with contextlib.suppress(psutil.Error):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def browsers(kind: str = "") -> list[psutil.Process]:
    """Chromium's processes under this one; with a kind, those of that ``--type``."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "chrom" in one.name().lower() and f"--type={kind}" in " ".join(one.cmdline()) + (
                " --type=" if not kind else ""
            ):
                found.append(one)
    return found


@contextlib.contextmanager
def server(command: list[str], port: int, folder: Path, environment: dict[str, str] | None = None) -> Iterator[Server]:
    with (folder / "server.log").open("ab") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield Server(process, f"http://127.0.0.1:{port}", began)
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=20)
        for one in alive:
            one.kill()


def streamlit(script: Path, port: int) -> list[str]:
    options = ["--server.port", str(port), "--server.headless", "true", "--browser.gatherUsageStats", "false"]
    return [sys.executable, "-m", "streamlit", "run", str(script), *options]


def go_to(page: Page, address: str) -> None:
    """Open it as soon as it is there. A browser takes longer to find out that nobody listens than a socket does."""
    port = int(address.split(":")[2].split("/")[0])
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            break
        time.sleep(0.02)
    while True:
        try:
            page.goto(address)
            return
        except BrowserError:
            page.wait_for_timeout(50)


# ---- opening ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dashboard:
    """How one opens the run, and sees in the page that it is drawn."""

    command: Callable[[Path, int], list[str]]
    path: str
    first: str
    """JavaScript: true once a chart has a line."""
    whole: str
    """JavaScript of the last step: true once it is in the chart."""
    again: str = ""
    """Selector of what asks for what has been read since; pressed until the chart and the whole run are there."""
    environment: str = ""
    """Variable that names the folder."""


CHART = "document.querySelector('.gm-chart .js-plotly-plot .scatterlayer path.js-line')"
LAST = (
    "(steps) => [...document.querySelectorAll('.gm-chart .js-plotly-plot')]"
    ".some((plot) => plot.data?.[0]?.x?.at?.(-1) >= steps)"
)
WORDS = "(steps) => [String(steps), steps.toLocaleString('en-US')].some((one) => document.body.innerText.includes(one))"
TRACKIO = "import trackio; trackio.show(project='bench', open_browser=False, block_thread=True)"


def tensorboard(folder: Path, port: int) -> list[str]:
    options = ["--logdir", str(folder), "--port", str(port), "--load_fast=true"]
    return [sys.executable, "-m", "tensorboard.main", *options]


DASHBOARDS = {
    "ours": Dashboard(
        lambda folder, port: streamlit(MAIN, port),
        "/run?run=long",
        f"() => {CHART}",
        LAST,
        environment="GRADIOMETER_RUNS",
    ),
    "tensorboard": Dashboard(
        tensorboard,
        "/?#timeseries",
        "() => document.querySelector('line-chart canvas, line-chart path')",
        WORDS,
        again="app-header-reload button, .reload-button",
    ),
    "trackio": Dashboard(
        lambda folder, port: [PEERS, "-c", TRACKIO],
        "/?project=bench",
        "() => document.querySelector('main canvas, svg.marks, .vega-embed svg, .plot canvas')",
        WORDS,
        environment="TRACKIO_DIR",
    ),
}


def opened(browser: Browser, kind: str, folder: Path, steps: int, scratch: Path) -> dict[str, float]:
    """Seconds and megabytes of one dashboard on one run."""
    board, port = DASHBOARDS[kind], free_port()
    environment = {board.environment: str(folder)} if board.environment else {}
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"} if kind == "trackio" else {}
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    took: dict[str, float] = {}
    try:
        with server(board.command(folder, port), port, scratch, environment) as running:
            go_to(page, running.address + board.path)
            if not drawn(page, board, board.first):
                raise OSError(f"no chart within {PATIENCE_S} s")
            took["first chart"] = time.perf_counter() - running.began
            took["first page load to chart"] = page.evaluate("performance.now()") / 1e3
            if drawn(page, board, board.whole, steps):
                took["whole run"] = time.perf_counter() - running.began
            took["server CPU"] = running.cpu()
            began = time.perf_counter()
            page.reload()
            page.wait_for_function(board.first)
            took["page load to chart"] = time.perf_counter() - began
            if kind == "ours":
                took |= zoomed(page, running, steps)
            took |= running.memory()
            took["tab MB"] = max((one.memory_info().rss / 1e6 for one in browsers("renderer")), default=float("nan"))
    finally:
        context.close()
    return took


def drawn(page: Page, board: Dashboard, condition: str, argument: object = None) -> bool:
    """Wait for it, asking for what has been read since once a second; False when patience ends."""
    began = asked = time.perf_counter()
    while not page.evaluate(f"(given) => !!({condition})(given)", argument):
        now = time.perf_counter()
        if now - began > PATIENCE_S:
            return False
        if board.again and now - asked > 1:
            asked = now
            with contextlib.suppress(BrowserError):
                page.locator(board.again).first.click(timeout=1000)
        page.wait_for_timeout(50)
    return True


def served(folder: Path, steps: int, scratch: Path) -> float:
    """Seconds from the start of our server to its first charts with the last step in them, without a browser."""
    port = free_port()
    query = f"{port}/api/frame?run=long&view=story&px=900&screen=1350"
    with server(streamlit(MAIN, port), port, scratch, {"GRADIOMETER_RUNS": str(folder)}) as running:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{query}") as answer:
                header, body = frame.unpack(answer.read())
                break
            time.sleep(0.02)
        seconds = time.perf_counter() - running.began
    loss = next(chart for chart in header["charts"] if chart["id"] == "loss")["traces"][0]
    assert frame.array_at(body, loss["x"])[-1] == steps
    return seconds


def zoomed(page: Page, running: Server, steps: int) -> dict[str, float]:
    """A drag to about a hundredth of the run, until finer data are drawn; the median of three."""
    page.wait_for_function(LAST, arg=steps)
    plot = "document.querySelector('.gm-chart[data-id=loss] .js-plotly-plot')"
    kept = page.evaluate(f"{plot} ? Math.max(...{plot}.data[0].y) : NaN")
    walls, work = [], []
    for share in (0.3, 0.5, 0.617):
        page.wait_for_timeout(2000)  # until nothing above the charts moves them any more
        box = page.locator('.gm-chart[data-id="loss"] .nsewdrag').first.bounding_box()
        assert box is not None
        y, left = box["y"] + box["height"] / 2, box["x"] + (share - 0.005) * box["width"]
        page.mouse.move(left, y)
        page.mouse.down()
        page.mouse.move(left + 0.01 * box["width"], y, steps=5)
        cpu, began = running.own_cpu(), time.perf_counter()
        page.mouse.up()
        page.wait_for_function(
            f"() => {plot}.data[0].x[0] > 1 && {plot}.data[0].x.at(-1) < {steps} * 0.98", timeout=60_000
        )
        walls.append(time.perf_counter() - began)
        work.append(running.own_cpu() - cpu)
        page.get_by_role("button", name="Reset zoom").click()
        page.wait_for_function(f"() => {plot}.data[0].x[0] <= 1")
    return {
        "zoom": statistics.median(walls),
        "zoom server CPU": statistics.median(work),
        "spike kept": float(kept == SPIKE),
    }


def opening(browser: Browser, data: Path, steps: int, layers: int, scratch: Path) -> tuple[list[Line], list[str]]:
    """The lines, and the chart of who has its first one when."""
    lines = []
    taken = {}
    for kind in DASHBOARDS:
        folder = data / kind
        if not folder.exists():
            print(f"{kind} is skipped: nothing was written for it", flush=True)
            continue
        try:
            taken[kind] = opened(browser, kind, folder, steps, scratch)
            print(kind, {name: round(value, 2) for name, value in taken[kind].items()}, flush=True)
        except (BrowserError, OSError) as error:
            print(f"{kind} is skipped: {str(error).splitlines()[0][:200]}", flush=True)
    taken["layers"] = opened(browser, "ours", data / "layers", layers, scratch)
    for kind, size in (("ours", steps), ("layers", layers)):
        taken.setdefault(kind, {})["whole run served"] = statistics.median(
            served(data / kind, size, scratch) for _ in range(3)
        )
    own = taken["ours"]
    goals = {
        "whole run served": 1.5, "whole run": 1.5, "first page load to chart": 2.0, "page load to chart": 2.0,
        "zoom server CPU": 0.2,
    }  # fmt: skip
    for name, value in own.items():
        unit = "MB" if name.endswith("MB") else "" if name == "spike kept" else "s"
        beside = "; ".join(
            f"{kind} {other[name]:.2f} ({other[name] / value:.1f}x)"
            for kind, other in taken.items()
            if kind not in ("ours", "layers") and name in other and value
        )
        lines.append(Line(f"{steps:,} x 20: {name}", value, unit, goals.get(name), False, beside))
    lines += [
        Line(f"{layers:,} x 200 layers: {name}", value, "MB" if name.endswith("MB") else "s", goals.get(name))
        for name, value in taken["layers"].items()
        if name != "spike kept"
    ]
    first = {"Gradiometer" if kind == "ours" else kind: one["first chart"] for kind, one in taken.items()}
    del first["layers"]
    return lines, bars(f"From the start to the first chart of {steps:,} steps x 20", first, "s", "Gradiometer")


# ---- living -------------------------------------------------------------------------------------------------------

MARK = "() => { for (const plot of document.querySelectorAll('.js-plotly-plot')) plot.__mark = 1; }"
PROBE = """() => {
    window.__fewest = 99;
    const drawn = () => new Set([...document.querySelectorAll('.js-plotly-plot .scatterlayer path.js-line')]
        .map((line) => line.closest('.js-plotly-plot'))).size;
    const look = () => { window.__fewest = Math.min(window.__fewest, drawn()); requestAnimationFrame(look); };
    look();
}"""
"""Asks for a frame sixty times a second: what it takes is measured apart from what it costs."""


def lived(browser: Browser, address: str, running: Server) -> dict[str, float]:
    """Per update: kilobytes, milliseconds of CPU; charts in the page at the worst frame; nodes that were kept."""
    context = browser.new_context(viewport={"width": 1440, "height": 3200})
    page = context.new_page()
    sent: list[int] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: sent.append(len(frame))))
    page.on("response", lambda answer: sent.append(int(answer.headers.get("content-length", 0))))
    go_to(page, address)
    page.wait_for_function(
        "() => document.querySelectorAll('.js-plotly-plot .scatterlayer path.js-line').length >= 48",
        timeout=PATIENCE_S * 1000,
    )
    page.wait_for_timeout(5000)
    page.evaluate(MARK)
    sent.clear()
    before = cpu_of(browsers()), running.cpu(), running.own_cpu()
    page.wait_for_timeout(2000 * TICKS)
    after = cpu_of(browsers()), running.cpu(), running.own_cpu()
    kilobytes = sum(sent) / 1e3 / TICKS
    page.evaluate(PROBE)
    page.wait_for_timeout(2000 * 3)
    marks = "[...document.querySelectorAll('.js-plotly-plot')].filter((plot) => plot.__mark).length"
    result = {
        "kB sent": kilobytes,
        "browser CPU ms": (after[0] - before[0]) / TICKS * 1e3,
        "server CPU ms": (after[1] - before[1]) / TICKS * 1e3,
        "server CPU ms without its processes": (after[2] - before[2]) / TICKS * 1e3,
        "charts at the worst frame": page.evaluate("window.__fewest"),
        "nodes kept": page.evaluate(marks),
    }
    context.close()
    return result


def living(browser: Browser, scratch: Path) -> list[Line]:
    taken: dict[tuple[str, int], dict[str, float]] = {}
    for moving in (12, 1, 0):
        folder = scratch / f"live-{moving}"
        folder.mkdir()
        writer = subprocess.Popen(
            [sys.executable, DATA, "live", str(folder / "runs"), "4", "12", str(moving)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE,
        )  # fmt: skip
        try:
            while not (folder / "ready").exists():
                time.sleep(0.1)
            port = free_port()
            runs = "&".join(f"run=live-{number}" for number in range(4))
            with server(streamlit(MAIN, port), port, folder, {"GRADIOMETER_RUNS": str(folder / "runs")}) as running:
                address = f"{running.address}/compare?{runs}&metrics=."
                taken["ours", moving] = lived(browser, address, running)
        finally:
            assert writer.stdin is not None
            writer.stdin.close()
            writer.wait(timeout=30)
        script = folder / "stock.py"
        script.write_text(STOCK.format(moving=moving))
        port = free_port()
        with server(streamlit(script, port), port, folder) as running:
            taken["stock", moving] = lived(browser, running.address, running)
        for kind in ("ours", "stock"):
            print(moving, kind, {name: round(value, 2) for name, value in taken[kind, moving].items()}, flush=True)
    lines = []
    goals = {("browser CPU ms", 12): 350.0, ("browser CPU ms", 0): 20.0, ("kB sent", 0): 0.0, ("kB sent", 12): 317.0}
    for (kind, moving), own in taken.items():
        if kind != "ours":
            continue
        for name, value in own.items():
            stock = taken["stock", moving][name]
            beside = f"st.plotly_chart {stock:.1f}" + (f" ({stock / value:.1f}x)" if value else "")
            what = f"{moving or 'no'} of 12 charts move: {name}"
            lines.append(Line(what, value, "", goals.get((name, moving)), False, beside))
    return lines


# ---- listing ------------------------------------------------------------------------------------------------------


def listing(browser: Browser, count: int, scratch: Path) -> list[Line]:
    folder = scratch / "many"
    make(folder / "runs", count)
    time.sleep(5)  # what was changed just now is not taken from an index
    rows, lines = "() => document.querySelectorAll('.gm-runs tbody tr').length === 100", []
    sorted_up = "() => document.querySelector('.gm-runs [aria-sort=ascending]')"
    for name in ("without an index", "with an index"):
        port, page = free_port(), browser.new_page()
        actions = (
            ("opened again", page.reload, rows),
            ("sorted by name", page.get_by_role("button", name="Name", exact=True).click, sorted_up),
            ("searched", partial(search, page), "() => document.body.innerText.includes('1 to 100 of 2')"),
        )
        with server(streamlit(MAIN, port), port, folder, {"GRADIOMETER_RUNS": str(folder / "runs")}) as running:
            go_to(page, running.address)
            page.wait_for_function(rows, timeout=PATIENCE_S * 1000)
            lines.append(Line(f"{count:,} runs {name}: start to list", time.perf_counter() - running.began, "s"))
            page.wait_for_timeout(8000)
            for what, act, there in actions:
                cpu, began = running.cpu(), time.perf_counter()
                act()
                page.wait_for_function(there, timeout=PATIENCE_S * 1000)
                wall, beside = time.perf_counter() - began, f"server CPU {running.cpu() - cpu:.2f} s"
                lines.append(Line(f"{count:,} runs {name}: {what}", wall, "s", None, False, beside))
            lines += [Line(f"{count:,} runs {name}: {what}", size, "MB") for what, size in running.memory().items()]
        page.close()
    return lines


def search(page: Page) -> None:
    """Ask for a part of the runs by a number in their configuration."""
    page.get_by_label("Search").fill("lr>=4e-3")
    page.get_by_label("Search").press("Enter")


# ---- all ----------------------------------------------------------------------------------------------------------


def write(data: Path, kind: str, *sizes: object) -> None:
    """The run in one dashboard's layout, unless it is there."""
    target = data / kind
    if target.exists():
        return
    python = PEERS if kind == "trackio" else sys.executable
    folder, writer = (
        (target / "long", kind) if kind == "tensorboard" else (target, "ours" if kind == "layers" else kind)
    )
    done = subprocess.run(
        [python, DATA, writer, str(folder), *map(str, sizes)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        print(f"{kind}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        shutil.rmtree(target, ignore_errors=True)


def main(quick: bool = False) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the long runs there, or use those that are")
    parser.add_argument("--only", default="open,live,list")
    given = parser.parse_args(sys.argv[1:] if __name__ == "__main__" else (["--quick"] if quick else []))
    steps, layers, many = (20_000, 5_000, 450) if given.quick else (1_000_000, 100_000, 10_000)
    path = chromium.find()
    if path is None:
        print("no Chromium here; install one with: python -m tests.browser.chromium")
        return
    lines: list[Line] = []
    charts: list[list[str]] = []
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        scratch = Path(temporary)
        data = given.keep or scratch / "data"
        data.mkdir(parents=True, exist_ok=True)
        browser = playwright.chromium.launch(executable_path=path, args=list(chromium.ARGUMENTS))
        if "open" in given.only:
            for kind in DASHBOARDS:
                write(data, kind, steps, 20)
            write(data, "layers", layers, 200, "layers")
            opened_in, chart = opening(browser, data, steps, layers, scratch)
            lines += opened_in
            charts.append(chart)
            print(table("Opening a run", opened_in), flush=True)
        if "live" in given.only:
            lines += (live := living(browser, scratch))
            print(table("A live page, per update of two seconds", live), flush=True)
        if "list" in given.only:
            lines += (listed := listing(browser, many, scratch))
            print(table("The list of runs", listed), flush=True)
        browser.close()
    if not given.quick:
        print("written:", *save("page", lines, {"only": given.only}, charts))


if __name__ == "__main__":
    main()
