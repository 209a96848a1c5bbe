"""Who may talk to the page, and what other people's words may do in it: nothing."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from app.text import plain
from tests.app import runs_for_tests as made
from tests.app.conftest import MAIN, ROOT, answers
from tests.browser.conftest import App, Tab, free_port

pytestmark = pytest.mark.browser


def hand_shake(app: App, *, host: str | None = None, origin: str | None = None) -> int:
    """HTTP status of the answer to a websocket's opening; 101 is a yes."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        "GET /_stcore/stream HTTP/1.1",
        f"Host: {host or f'127.0.0.1:{app.port}'}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *([f"Origin: {origin}"] if origin else []),
    ]
    with socket.create_connection(("127.0.0.1", app.port), timeout=20) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(connection.recv(4096).split()[1])


def test_a_foreign_host_or_origin_opens_no_websocket(app: App):
    own = app.address
    assert hand_shake(app, origin=own) == 101
    assert hand_shake(app, origin="http://evil.invalid") == 403
    assert hand_shake(app, host="evil.invalid", origin="http://evil.invalid") in (400, 403), "DNS rebinding"
    assert hand_shake(app, host=f"evil.invalid:{app.port}", origin=f"http://evil.invalid:{app.port}") in (400, 403)
    assert hand_shake(app, origin="null") == 403


def test_the_whole_page_refuses_foreign_hosts_and_frames(app: App):
    from http.client import HTTPConnection

    for path in ("/", "/run", "/_stcore/health", "/_stcore/metrics", "/api/runs", "/assets/plotly.min.js"):
        heard = {}
        for host in ("evil.invalid", f"127.0.0.1:{app.port}"):
            connection = HTTPConnection("127.0.0.1", app.port, timeout=20)
            connection.request("GET", path, headers={"Host": host})
            heard[host] = connection.getresponse()
            connection.close()
        assert heard.pop("evil.invalid").status == 400, path
        (own,) = heard.values()
        assert "frame-ancestors 'none'" in (own.getheader("Content-Security-Policy") or ""), path
        assert own.getheader("X-Frame-Options") == "DENY"


def test_hostile_words_do_nothing_on_any_page(tab: Tab, attacked: App):
    """Shown exactly where a person reads them; that nothing is fetched is seen to by ``tab`` itself."""
    visible = [name for name in made.HOSTILE if plain(name) == name]
    tab.open("/compare?run=hostile&metrics=.&run=" + attacked.ids["healthy"])
    tab.charts()
    shown = tab.page.inner_text('[data-testid="stMain"]').replace("\u2060", "")
    assert plain(made.HOSTILE[0]) in shown, "the run's name, in the difference of the configurations or a legend"
    titles = tab.page.eval_on_selector_all(".gm-chart .gm-title", "(all) => all.map((one) => one.textContent)")
    assert {name for name in visible if name in titles} == set(visible), "metric names are titles of charts"
    for section in ("Story", "Incidents", "Config", "Log"):
        tab.open(f"/run?run=hostile&section={section}")
        tab.wait("() => !document.querySelector('[data-testid=stSkeleton]')")
        shown = tab.page.inner_text('[data-testid="stMain"]').replace("\u2060", "")
        assert plain(made.HOSTILE[0]) in shown, section
        turned = tab.page.evaluate(
            "/[\\u202a-\\u202e\\u2066-\\u2069]/.test(document.querySelector('.gm-grid')?.textContent)"
        )
        assert not turned, "a chart's words do not turn those beside them"
        if section == "Log":
            assert all(name in shown for name in visible)
        assert tab.page.locator('[data-testid="stException"]').count() == 0
    for page in ("/?search=hostile&differ=true", f"/?search={made.HOSTILE[0]}", f"/run?run={made.HOSTILE[1]}"):
        tab.open(page)
        tab.wait("() => !document.querySelector('[data-testid=stSkeleton]')")
    own = tab.page.evaluate("[...document.querySelectorAll('a[href]')].map((link) => link.href)")
    assert all(link.startswith(attacked.address) for link in own)
    assert tab.page.evaluate("window.hacked") is None


def test_a_hostile_name_typed_into_the_launch_page_stays_text(tab: Tab, app: App):
    tab.open("/launch")
    name = tab.page.get_by_label("name", exact=True).first
    name.fill(made.HOSTILE[3])
    name.press("Enter")
    tab.wait(READ_BACK, made.HOSTILE[3])
    assert tab.page.evaluate("window.hacked") is None


READ_BACK = """(name) => [...document.querySelectorAll('input')].some((input) => input.value === name)
    && document.querySelector('[data-test-script-state="notRunning"]')"""


@pytest.fixture
def wide_open(app: App) -> Iterator[App]:
    """The app on every interface and without a token."""
    other = App(app.runs, free_port(), app.log.with_name("open.log"))
    command = [sys.executable, "-m", "streamlit", "run", str(MAIN), "--server.port", str(other.port)]
    environment = {**os.environ, "GRADIOMETER_RUNS": str(app.runs), "PYTHONPATH": str(ROOT)}
    with Path(other.log).open("ab") as log:
        other.process = subprocess.Popen(
            [*command, "--server.address", "0.0.0.0"], cwd=app.runs.parent, env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while not answers("127.0.0.1", other.port):
            assert time.monotonic() < deadline, "the app did not come up"
            time.sleep(0.1)
        yield other
    finally:
        other.stop()


def test_a_server_open_to_the_network_only_shows(new_tab, wide_open: App):
    tab = new_tab(of=wide_open)
    tab.open("/?search=healthy -sample")
    box = tab.page.locator(".gm-runs tbody input").first
    box.check()
    expect(tab.page.get_by_role("button", name="Start a real training")).to_be_disabled()
    for name in ("Tag", "Edit", "Delete"):
        expect(tab.page.get_by_role("button", name=name)).to_be_disabled()
