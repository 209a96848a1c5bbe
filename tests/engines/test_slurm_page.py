"""The whole way from the page: a job on two nodes is launched, followed, stopped, resumed and queued again."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import until

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import sync_playwright

from monitor.runfile.reader import open_run
from tests.browser import chromium
from tests.browser.conftest import App, Tab
from tests.engines.cluster import Cluster
from tests.engines.runs import record, until_step
from tests.engines.test_slurm import job_of

pytestmark = pytest.mark.timeout(900)
ARTIFACTS = Path(__file__).parents[1] / "browser" / "artifacts"


@pytest.fixture
def tab(cluster: Cluster, tmp_path: Path) -> Iterator[Tab]:
    """A browser tab of an app that reaches the cluster."""
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium here; name one with CHROMIUM=/path/to/chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = App(tmp_path / "runs", port, tmp_path / "app.log")
    app.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=list(chromium.ARGUMENTS))
            page = browser.new_page(viewport={"width": 1440, "height": 1100})
            page.set_default_timeout(120_000)
            yield Tab(page, app)
            browser.close()
    finally:
        app.stop()


def offers(tab: Tab, engine: str) -> bool:
    """Open the form; whether an engine can be chosen in it: a busy cluster may not have answered yet."""
    tab.open("/launch?preset=charmlp")
    return not tab.page.get_by_text(f"{engine} cannot be chosen").count()


def fill(tab: Tab, name: str, value: str) -> None:
    """Type into a field of the launch form whose section is open."""
    field = tab.page.get_by_role("textbox", name=re.compile(rf"\b{name}$")).first
    field.fill(value)
    field.press("Enter")
    tab.rest()


def choose(tab: Tab, name: str, value: str) -> None:
    """Choose from a list, again if the page redraws itself and closes it."""
    box = tab.page.get_by_role("combobox", name=re.compile(rf"\b{name}$"))
    option = tab.page.get_by_role("option", name=value, exact=True)

    def chosen() -> bool:
        try:
            box.click()
            tab.page.keyboard.type(value)
            option.click(timeout=10_000)
        except PlaywrightTimeout:
            box.press("Escape")
            return False
        return True

    until(chosen, f"{value} in the list of {name}")
    tab.rest()


def open_section(tab: Tab, title: str) -> None:
    tab.page.locator("summary").filter(has_text=re.compile(f"{re.escape(title)}$")).click()


def see(tab: Tab, words: str) -> None:
    tab.page.get_by_text(re.compile(words)).first.wait_for(timeout=240_000)


def test_job_is_launched_followed_stopped_resumed_and_queued_again_from_the_page(tab: Tab, cluster: Cluster) -> None:
    until(lambda: offers(tab, "slurm"), "Slurm among the engines", every_s=5)
    fill(tab, "steps", "100000")
    open_section(tab, "Processes")
    fill(tab, "processes", "2")
    open_section(tab, "Where it runs: this machine, Slurm, Ray")
    choose(tab, "engine", "slurm")
    fill(tab, "nodes", "2")
    see(tab, r"launch\.engine=slurm.*launch\.nodes=2")
    ARTIFACTS.mkdir(exist_ok=True)
    tab.page.screenshot(path=ARTIFACTS / "slurm-launch.png", full_page=True)
    tab.page.get_by_role("button", name="Start", exact=True).click()
    see(tab, "starting|pending|running")
    run_dir = until(lambda: next(iter(tab.app.runs.glob("*/run.json")), None), "the run").parent
    until_step(run_dir, 0, 5)
    see(tab, "▶ running")
    tab.page.screenshot(path=ARTIFACTS / "slurm-running.png")
    assert record(run_dir, "attempt.json")["world_size"] == 2

    tab.page.get_by_role("button", name="Stop", exact=True).click()
    see(tab, "■ stopped")
    saved = record(run_dir, "exit.json")["step"]
    tab.page.get_by_role("button", name="Resume", exact=True).click()
    until(lambda: (run_dir / "attempts" / "0001" / "job.json").exists(), "the second job")
    until_step(run_dir, 1, saved + 5)
    assert record(run_dir, "attempt.json", 1)["resume_step"] == saved
    see(tab, "▶ running")

    cluster.ask("scancel", "--signal=USR1", "--batch", job_of(run_dir))
    see(tab, "◌ requeued")
    see(tab, "is queued again and will go on from its newest checkpoint")
    tab.page.screenshot(path=ARTIFACTS / "slurm-requeued.png")
    saved = record(run_dir, "exit.json", 1)["step"]
    cluster.start_now(job_of(run_dir))
    until_step(run_dir, 2, saved + 5)
    see(tab, "▶ running")
    assert open_run(run_dir).attempts[2].resume_step == saved

    tab.page.get_by_role("button", name="Stop", exact=True).click()
    see(tab, "■ stopped")
