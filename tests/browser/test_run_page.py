"""The hands-on parts of a run's page: keys, pins, search, layers, and what can be taken away from it."""

from __future__ import annotations

import csv
import re
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from tests.app import runs_for_tests as made
from tests.browser.conftest import App, NewTab, Tab, started

pytestmark = pytest.mark.browser

LOSS = "document.querySelector('[data-id=loss] .js-plotly-plot')"
IN_ORDER = "[...document.querySelectorAll('.gm-chart')].filter((node) => !node.hidden).map((node) => node.dataset.id)"
HAS_RANGE = "() => new URL(location).searchParams.has('x0')"


def test_keys_pins_search_and_the_address(tab: Tab, app: App):
    page = tab.page
    tab.open_run(app.ids["nan"])
    tab.charts()
    tab.wait("() => document.querySelector('[data-id=events] .gm-legend')?.textContent.includes('incident')")
    page.keyboard.press("n")
    tab.wait(HAS_RANGE)
    low, high = tab.data()["range"]
    assert low < 209 < high and high - low < 100, "what is round the incident"
    page.keyboard.press("-")
    tab.wait(
        f"(width) => {LOSS}._fullLayout.xaxis.range[1] - {LOSS}._fullLayout.xaxis.range[0] > 1.9 * width", high - low
    )
    page.keyboard.press("0")
    tab.wait(f"() => !({HAS_RANGE})()")
    page.keyboard.press("?")
    page.get_by_role("heading", name="Keys").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("heading", name="Keys").wait_for(state="hidden")

    chart(tab, "lr").get_by_role("button", name="pin").click()
    tab.wait(f"() => {IN_ORDER}[1] === 'lr'")
    tab.wait("() => new URL(location).searchParams.get('pins') === 'lr'")
    chart(tab, "loss").get_by_role("button", name="log").click()
    tab.wait("() => new URL(location).searchParams.get('logs') === 'loss:1'")
    page.keyboard.press("m")
    page.keyboard.type("loss|^learn")
    page.keyboard.press("Enter")
    tab.wait(f"() => {IN_ORDER}.join() === 'events,lr,loss,loss_deviation,loss_spike_share'")
    tab.wait("() => new URL(location).searchParams.get('metrics') === 'loss|^learn'")
    page.reload()
    tab.rest()
    tab.wait(f"() => {IN_ORDER}.join() === 'events,lr,loss,loss_deviation,loss_spike_share'")

    tab.wait(f"() => {LOSS}?._fullLayout.yaxis.type === 'log'")
    page.locator("h2").first.click()  # away from the field
    page.keyboard.press("3")
    tab.wait("() => new URL(location).searchParams.get('section') === 'Layers'")
    profile = page.locator('.gm-chart[data-id="profile.grad_norm_preclip"] .nsewdrag')
    profile.wait_for()
    box = profile.bounding_box()
    assert box is not None
    profile.click(position={"x": box["width"] * 0.5 / len(made.LAYERS), "y": box["height"] / 2})
    tab.wait("(layer) => new URL(location).searchParams.get('layer') === layer", made.LAYERS[0])
    page.locator('.gm-chart[data-id="curve.grad_norm_preclip"] .js-plotly-plot').wait_for()
    page.get_by_test_id("stNumberInputField").fill("100")
    page.get_by_test_id("stNumberInputField").press("Enter")
    tab.wait("() => document.querySelector('[data-id^=\"profile.\"] .gm-legend').textContent.includes('step 100')")


def test_charts_and_pages_are_saved_as_files_that_need_no_server(tab: Tab, attacked: App, tmp_path: Path):
    tab.open_run("hostile", smooth=0.5)
    tab.charts()
    loss, heat = chart(tab, "loss"), chart(tab, "heat")
    assert saved(tab, loss, "PNG", tmp_path).read_bytes().startswith(b"\x89PNG")
    picture = ElementTree.parse(saved(tab, heat, "SVG", tmp_path)).getroot()
    assert picture.tag.endswith("svg") and any("Gradient norm" in (node.text or "") for node in picture.iter())
    with saved(tab, loss, "CSV", tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train, as recorded"]) for row in rows[:99]] == [3.0 - step / 1000 for step in range(1, 100)]
    assert {row["train"] for row in rows[99:]} == {"NaN"} and len(rows) == 120
    with saved(tab, heat, "CSV", tmp_path).open(newline="") as file:
        heads = next(csv.reader(file))
    assert heads == ["step", *made.HOSTILE]

    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save page").click()
    file = tmp_path / "page.html"
    download.value.save_as(file)
    text = file.read_text()
    assert not re.search(r"<script(?! *&)|<iframe|<link|@font-face", text) and "default-src 'none'" in text
    charts = tab.page.locator(".gm-chart:visible .main-svg").count()
    asked: list[str] = []
    other = tab.page.context.new_page()
    other.on("request", lambda request: asked.append(request.url))
    other.goto(file.as_uri())
    assert other.locator(".main-svg").count() >= charts > 10
    assert other.locator("h2").first.inner_text().startswith(made.HOSTILE[0])
    assert other.evaluate("window.hacked") is None
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]


def chart(tab: Tab, name: str):
    """A chart in sight."""
    found = tab.page.locator(f'.gm-chart[data-id="{name}"]')
    found.scroll_into_view_if_needed()
    found.locator(".js-plotly-plot").wait_for()
    return found


def saved(tab: Tab, found, kind: str, folder: Path) -> Path:
    """What the menu of a chart gives."""
    found.scroll_into_view_if_needed()
    found.get_by_role("button", name="save").click()
    with tab.page.expect_download() as download:
        found.get_by_role("button", name=kind, exact=True).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", path.name)
    return path


def test_a_section_comes_when_a_run_that_is_live_first_has_something_for_it(new_tab: NewTab, tmp_path: Path):
    run = made.Recorded(tmp_path / "runs", "just begun", run_id="begun", planned=1000, start=time.time())
    run.writer.heartbeat(step=0, state="starting", planned_steps=1000)
    with started(tmp_path / "runs") as begun:
        tab = new_tab(of=begun)
        tab.open_run("begun")
        tab.says("No step yet")
        sections = tab.page.locator(".st-key-section")
        assert "Story" in sections.inner_text() and "Layers" not in sections.inner_text()
        for step in range(1, 31):
            run.row(step, 2.0, layers=made.layer_norms(step, np.random.default_rng(step)))
        run.writer.heartbeat(step=30, state="training", planned_steps=1000)
        run.writer.flush()
        tab.page.locator(".st-key-section").get_by_text("Layers").click()
        chart(tab, "profile.grad_norm_preclip")
        run.end("stopped", 30, "the test is over")
