"""What the page's tests share: a folder of runs in every state, a real HTTP server for the routes, a page runner."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import streamlit
import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from streamlit.testing.v1 import AppTest

from app import data, web
from tests.app import runs_for_tests as made

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "app" / "main.py"


@dataclass(frozen=True)
class Runs:
    """The folder and the id of each run in it."""

    folder: Path
    healthy: str
    nan: str
    resumed: str
    half: str
    torn: str
    newer: str
    spike: str
    measured: str


@pytest.fixture(scope="session")
def all_runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs in every state, written once."""
    folder = tmp_path_factory.mktemp("runs")
    return Runs(
        folder,
        made.healthy_run(folder).name,
        made.nan_run(folder).name,
        made.resumed_run(folder).name,
        made.half_written(folder).name,
        made.torn_run(folder).name,
        made.newer_format(folder).name,
        made.spike_run(folder, steps=20_000, at=12_345).name,
        made.measured_run(folder).name,
    )


@pytest.fixture
def runs(all_runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """The same, named by the environment as the folder of runs."""
    monkeypatch.setenv("GRADIOMETER_RUNS", str(all_runs.folder))
    return all_runs


@pytest.fixture
def no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs and no samples."""
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("app.data.SAMPLES", tmp_path / "no-samples")
    return tmp_path / "runs"


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


Ask = Callable[..., Answer]


@pytest.fixture(scope="session")
def http() -> Iterator[Ask]:
    """Ask the real routes behind the real middleware, over a real socket."""
    page = [Route(path, lambda request: HTMLResponse("a page")) for path in ("/run", "/base/compare", "/launch")]
    application = Starlette(routes=[*web.routes, *page], middleware=web.middleware)
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def ask(path: str, *, method: str = "GET", host: str | None = None, packed: bool = False) -> Answer:
        connection = http_connection(port)
        try:
            accepted = {"Accept-Encoding": "gzip, deflate" if packed else "identity"}
            connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}", **accepted})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()

    yield ask
    server.should_exit = True
    thread.join(timeout=10)


def http_connection(port: int) -> HTTPConnection:
    """A connection to the test server."""
    return HTTPConnection("127.0.0.1", port, timeout=20)


def wait_until_up(server: subprocess.Popen[bytes], seconds: float = 60.0) -> str:
    """The address that a started app answers at, taken from the port that its process listens on."""
    import psutil

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the app ended with {server.returncode}"
        for one in psutil.Process(server.pid).net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and answers(one.laddr.ip, one.laddr.port):
                return f"http://{one.laddr.ip}:{one.laddr.port}"
        time.sleep(0.1)
    raise AssertionError("the app did not come up")


def answers(ip: str, port: int) -> bool:
    """Whether the app's own health check answers there."""
    connection = HTTPConnection(ip, port, timeout=5)
    try:
        connection.request("GET", "/_stcore/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


Open = Callable[..., AppTest]


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open a page of the app as a browser would, without one: ``open_page("run", run=ID, section="Log")``."""
    before = streamlit.get_option("server.address")
    streamlit.config.set_option("server.address", "127.0.0.1")
    monkeypatch.setattr(data.READERS, "_min_interval", 0.0)  # a test writes and looks again sooner than anybody clicks

    def open_it(view: str = "runs", **query: str) -> AppTest:
        page = AppTest.from_file(str(MAIN), default_timeout=60)
        if view == "runs":
            page.query_params.update(query)
            return page.run()
        with monkeypatch.context() as at_first:  # the list is the first page of every visit; not needed here
            at_first.setattr("app.data.listed_runs", list)
            page.run()
        page.query_params.update(query)
        return page.switch_page(f"views/{view}.py").run()

    yield open_it
    streamlit.config.set_option("server.address", before)


def listed(page: AppTest) -> list[dict[str, Any]]:
    """The rows of the table of runs, as they are sent to the browser."""
    tables = [one for one in page.get("bidi_component") if one.proto.component_name == "gradiometer_run_table"]
    (table,) = tables
    return json.loads(table.proto.mixed.json if table.proto.HasField("mixed") else table.proto.json)["rows"]


def words(page: AppTest) -> str:
    """Everything that the page says, in one text."""
    kinds = ("title", "markdown", "caption", "text", "code", "error", "warning", "info", "success", "metric")
    said: list[str] = []
    for kind in kinds:
        for element in getattr(page, kind):
            said += [str(getattr(element, "label", "")), str(element.value)]
    return "\n".join(said)
