"""The header's buttons on a real training, in two tabs; and the way in with a token."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, expect

from tests.app.conftest import ROOT
from tests.app.test_access import until_listening
from tests.browser.conftest import ARTIFACTS, READY, App, NewTab
from tests.trainer.launch.conftest import until
from trainer import launch
from trainer.config import load_config


@pytest.fixture
def training(app: App):
    """A real training of a small model that goes on until it is stopped."""
    words = ["steps=1000000", "model.n_layer=2", "model.d_model=32", "model.n_head=2", "task.seq_len=32", "threads=1",
             "evaluation.every_steps=none", "checkpoint.every_steps=none", "monitor.landscape_every=none"]  # fmt: skip
    launched = launch.start(load_config(None, words), app.runs, name="buttons")
    yield launched.run_dir
    stop_all(launched.run_dir)


def stop_all(run_dir: Path) -> None:
    for pid in launch.status(run_dir).pids:
        with psutil.Process(pid).oneshot():
            psutil.Process(pid).kill()


def test_checkpoint_pause_go_on_and_stop_from_the_page(new_tab: NewTab, app: App, training: Path) -> None:
    tab, other = new_tab(), new_tab(scheme="dark", width=760)
    for one in (tab, other):  # the header runs every second: waited for is what it shows, not that it rests
        one.page.set_default_timeout(120_000)
    tab.page.goto(f"{app.address}/run?run={training.name}")
    button = lambda name: tab.page.get_by_role("button", name=name, exact=True)  # noqa: E731
    button("Checkpoint now").wait_for()
    other.page.goto(f"{app.address}/run?run={training.name}")
    button("Checkpoint now").click()
    tab.page.get_by_text(re.compile(r"Checkpoint now asked for .*, done at step .*: checkpoints/")).wait_for()
    button("Pause").click()
    tab.page.get_by_text(re.compile(r"Pause asked for .*, done at step")).wait_for()
    button("Go on").wait_for()
    tab.page.get_by_role("heading", name=re.compile("buttons.*paused")).wait_for()
    button("Change").click()
    tab.page.get_by_role("textbox", name="Learning rate").fill("x0.5")
    tab.page.get_by_role("textbox", name="Learning rate").press("Enter")
    button("Set").first.click()
    tab.page.get_by_text(re.compile(r"Learning rate x0.5 asked for .*, done at step .*: learning rate")).wait_for()
    ARTIFACTS.mkdir(exist_ok=True)
    tab.page.screenshot(path=ARTIFACTS / "actions-light.png")
    # the other tab, which asked for nothing, tells the same, and after a reload still does
    other.page.get_by_text(re.compile(r"Learning rate x0.5 asked for .*, done at step")).wait_for()
    other.page.screenshot(path=ARTIFACTS / "actions-dark-narrow.png")
    # the app is killed and comes back on the same port: the training does not notice
    pids = launch.status(training).pids
    assert app.process is not None
    app.process.kill()
    app.process.wait()
    app.start()
    assert launch.status(training).pids == pids
    other.page.reload()
    other.page.get_by_text(re.compile(r"Pause asked for .*, done at step")).wait_for()
    other.page.get_by_role("button", name="Go on", exact=True).click()
    button("Pause").wait_for()
    button("Stop").click()
    tab.page.get_by_text("Stop asked for").wait_for()
    tab.wait("() => document.querySelector('h2')?.textContent.includes('stopped')")
    until(lambda: not launch.status(training).running, "the end of its processes")
    assert (launch.status(training).state, launch.status(training).pids) == ("cancelled", ())


def test_the_address_with_its_token_opens_the_page_and_is_gone_from_it(browser: Browser, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app", "app", "--host", "0.0.0.0", "--port", str(port), "--no-browser",
               "--runs", str(tmp_path / "runs")]  # fmt: skip
    log = tmp_path / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    child = until_listening(server, port)
    context = browser.new_context()
    try:
        page = context.new_page()
        answer = page.goto(f"http://127.0.0.1:{port}/")
        assert answer is not None and answer.status == 401
        (token,) = re.findall(r"\?token=([\w-]+)", log.read_text())
        page.goto(f"http://127.0.0.1:{port}/?token={token}")
        page.wait_for_selector(READY, timeout=60_000)
        assert token not in page.url
        page.get_by_role("button", name="Start a real training").wait_for(timeout=60_000)
        expect(page.get_by_role("button", name="Start a real training")).to_be_enabled()
        page.reload()
        page.wait_for_selector(READY, timeout=60_000)
    finally:
        context.close()
        child.terminate()
        server.wait(timeout=30)
