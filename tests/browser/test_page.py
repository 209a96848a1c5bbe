"""The page as a person meets it, in a real Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from monitor.errors import ConfigError
from tests.app import runs_for_tests as made
from tests.browser.conftest import AT, HEIGHT, READY, App, Tab
from tests.waiting import until
from trainer.config import TrainConfig, with_values

pytestmark = pytest.mark.browser

LOSS = "document.querySelector('[data-id=loss] .js-plotly-plot')"


def test_a_live_run_advances_without_a_reload_and_zoom_survives(tab: Tab, live_run: str):
    wait_for_run(tab.app, live_run)
    tab.open_run(live_run)
    tab.charts()
    tab.page.evaluate("document.querySelectorAll('.js-plotly-plot').forEach((plot) => { plot.__mark = 1; })")
    first = tab.data()
    tab.wait(LAST_STEP_BEYOND, first["x"][-1] + 20)
    assert tab.page.evaluate("performance.getEntriesByType('navigation').length") == 1
    assert tab.data()["range"][1] > first["range"][1]

    tab.drag("loss", 0.1, 0.5)
    tab.wait("() => !document.querySelector('.gm-reset').hidden")
    tab.wait(IN_VIEW_SHARE_RANGE)
    zoomed = tab.data()
    low, high = zoomed["range"]
    assert 0 < low < high < first["x"][-1] + 200
    tab.wait("() => new URL(location).searchParams.has('x0')")
    before = step_shown(tab)
    tab.wait(
        "(before) => Number(document.querySelector('.gm-status').textContent.replace(/\\D/g, '')) > before + 20", before
    )
    after = tab.data()
    assert after["range"] == zoomed["range"]
    inside = [x for x in after["x"] if low <= x <= high]
    assert inside == list(range(inside[0], inside[-1] + 1)), "every step of the window is there"
    assert tab.page.evaluate(
        "[...document.querySelectorAll('.gm-chart .js-plotly-plot')].slice(0, 3).every((plot) => plot.__mark)"
    )


def test_zooming_asks_for_finer_data_and_the_address_keeps_it(tab: Tab, app: App):
    tab.open_run(app.ids["spike"])
    tab.charts()
    coarse = tab.data()
    share = (AT - 1) / 200_000
    tab.drag("loss", share - 0.01, share + 0.01)
    tab.wait("() => new URL(location).searchParams.has('x0')")
    tab.wait(f"() => {LOSS}.data[0].x[0] > 100000")
    fine = tab.data()
    low, high = fine["range"]
    assert sum(low <= x <= high for x in fine["x"]) > 4 * sum(low <= x <= high for x in coarse["x"])
    assert HEIGHT in fine["y"]
    tab.page.reload()
    tab.rest()
    tab.charts()
    tab.wait(f"() => {LOSS}.data[0].x[0] > 100000")
    assert tab.data()["range"] == pytest.approx([low, high], rel=1e-6)
    tab.page.get_by_role("button", name="Reset zoom").click()
    tab.wait(f"() => {LOSS}.data[0].x[0] === 1")
    tab.wait("() => !new URL(location).searchParams.has('x0')")


def test_a_one_step_spike_in_200_000_is_drawn_fully_zoomed_out(tab: Tab, app: App):
    tab.open_run(app.ids["spike"])
    tab.charts()
    drawn = tab.data()
    assert drawn["range"][0] < 1 and drawn["range"][1] > 200_000
    assert max(drawn["y"]) == HEIGHT and drawn["x"][drawn["y"].index(HEIGHT)] == AT
    assert len(drawn["x"]) < 3_000
    top = tab.page.evaluate(f"{LOSS}._fullLayout.yaxis.range[1]")
    assert top > HEIGHT
    assert re.search(r"reduced \d+:1, extremes kept", tab.page.inner_text('[data-id="loss"] .gm-note'))


def test_non_finite_values_are_marks_on_the_chart_and_a_count(tab: Tab, app: App):
    tab.open_run(app.ids["nan"])
    tab.charts()
    marks = tab.page.evaluate(f"{LOSS}.data.filter((t) => t.name.startsWith('non-finite')).map((t) => Array.from(t.x))")
    assert marks[0][0] == 210
    assert "91 NaN" in tab.page.inner_text('[data-id="loss"] .gm-note')
    assert "274" in tab.page.inner_text('[data-testid="stApp"]')
    tab.wait("() => document.querySelector('[data-id=\"heat\"] .gm-note')?.textContent.includes('non-finite')")


def test_nothing_is_sent_when_nothing_changed_and_a_hidden_tab_sleeps(tab: Tab, app: App, live_run: str):
    tab.page.add_init_script("Object.defineProperty(document, 'hidden', {get: () => Boolean(window.__hidden)})")
    tab.open_run(app.ids["healthy"])
    tab.charts()
    tab.until(lambda: tab.frames[-2:] == [204, 204], "a rest", ask=True)  # the diagnosis has been made
    tab.frames.clear()
    tab.until(lambda: len(tab.frames) >= 3, "three answers", ask=True)
    assert set(tab.frames) == {204}

    wait_for_run(app, live_run)
    messages: list[int] = []
    tab.page.on("websocket", lambda socket: socket.on("framereceived", lambda message: messages.append(len(message))))
    tab.open_run(live_run)
    tab.charts()
    tab.page.evaluate("window.__hidden = true; document.dispatchEvent(new Event('visibilitychange'))")
    tab.wait(f"() => !document.querySelector('.gm-grid').__gm.busy && document.querySelector('{READY}')")
    tab.page.wait_for_timeout(500)  # until its answer has been noted here, and a part that was due has run
    tab.frames.clear()
    messages.clear()
    tab.page.wait_for_timeout(2600)  # the charts and the head of a live run ask every two seconds
    assert tab.frames == [] == messages
    tab.page.evaluate("window.__hidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    tab.until(lambda: tab.frames and messages, "an answer, and the head of the run")
    assert tab.frames[0] == 200


def test_an_incident_opens_and_its_address_brings_it_back(tab: Tab, app: App):
    tab.open_run(app.ids["nan"])
    tab.page.get_by_role("button", name="Why, and what to do").click()
    tab.page.get_by_text("Likely causes").wait_for()
    tab.page.get_by_text("What to do").first.wait_for()
    tab.wait("() => new URL(location).searchParams.get('incident')?.startsWith('non-finite@')")
    tab.page.reload()
    tab.rest()
    tab.page.get_by_text("Likely causes").wait_for()
    tab.page.get_by_role("button", name="Show these steps in the story").click()
    tab.charts()
    tab.wait("() => new URL(location).searchParams.has('x0')")
    assert tab.data()["range"][0] == 209 - 60


def test_a_click_on_the_heatmap_shows_the_layers_curve(tab: Tab, app: App):
    tab.open_run(app.ids["healthy"])
    tab.charts()
    heat = tab.page.locator('.gm-chart[data-id="heat"] .nsewdrag')
    heat.scroll_into_view_if_needed()
    box = heat.bounding_box()
    assert box is not None
    heat.click(position={"x": box["width"] / 2, "y": box["height"] * 0.5 / len(made.LAYERS)})
    tab.page.locator('.gm-chart[data-id="layer"] .js-plotly-plot').wait_for()
    assert made.LAYERS[0] in tab.page.inner_text('.gm-chart[data-id="layer"] .gm-title')
    tab.wait("(layer) => new URL(location).searchParams.get('layer') === layer", made.LAYERS[0])


def test_a_statistic_of_modules_is_chosen_drawn_and_kept_in_the_address(tab: Tab, app: App):
    tab.open_run(app.ids["measured"])
    tab.charts()
    tab.page.get_by_role("combobox", name="The heatmap shows").click()
    tab.page.get_by_role("option", name="Activations: Mean of the output").click()
    title = (
        "() => document.querySelector('[data-id=heat] .gm-title')?.textContent === 'Mean of the output, module by step'"
    )
    tab.wait(title)
    assert "measured at 18 of 400 steps, blank where not" in tab.page.inner_text('[data-id="heat"] .gm-note')
    heat = tab.page.locator('.gm-chart[data-id="heat"] .nsewdrag')
    heat.scroll_into_view_if_needed()
    box = heat.bounding_box()
    assert box is not None
    row = box["height"] * 0.5 / len(made.MODULES)
    heat.hover(position={"x": box["width"] * 0.501, "y": row})
    tab.wait("() => document.querySelector('[data-id=heat] .gm-tip').textContent.includes('step 200: about −0.4')")
    heat.click(position={"x": box["width"] * 0.501, "y": row})
    curve = tab.page.locator('.gm-chart[data-id="layer"] .js-plotly-plot')
    curve.wait_for()
    assert tab.data("layer")["x"] == [*range(1, 11), *range(50, 401, 50)]
    assert curve.evaluate("(plot) => plot._fullLayout.yaxis.type") == "linear"
    tab.wait("() => new URL(location).searchParams.get('stat')?.startsWith('Activations')")
    tab.wait("() => new URL(location).searchParams.get('layer') === 'tok_emb'")
    tab.page.reload()
    tab.rest()
    tab.wait(title)
    folded = tab.page.locator('.gm-chart[data-id="input_values"] .main-svg')
    assert folded.count() == 0, "nothing is drawn for a section that is folded away"
    tab.page.get_by_role("button", name="Input", exact=True).click()
    folded.first.wait_for()


def test_the_server_restarted_under_an_open_page_recovers(tab: Tab, app: App):
    tab.open_run(app.ids["healthy"], x0=100, x1=300)
    tab.charts()
    tab.page.evaluate(f"{LOSS}.__mark = 1")
    app.stop()
    tab.wait("() => document.querySelector('.gm-status').textContent.includes('waiting for the server')")
    app.start()
    tab.wait("() => !document.querySelector('.gm-status').textContent.includes('waiting')")
    tab.rest()
    assert tab.data()["range"] == [100, 300]
    assert tab.page.evaluate(f"{LOSS}.__mark") == 1


def test_one_click_starts_a_real_training_and_stop_ends_it(tab: Tab, app: App):
    before = set(app.runs.iterdir())
    tab.open("/")
    tab.page.get_by_role("button", name="Start a real training").click()
    tab.page.wait_for_url("**/run?run=*")
    try:
        tab.charts()
        tab.wait(LAST_STEP_BEYOND, 3)
        tab.page.get_by_role("button", name="Stop", exact=True).click()
        tab.page.get_by_text("Stop asked for").wait_for()
        tab.wait("() => document.querySelector('h2')?.textContent.includes('stopped')")
        tab.page.get_by_role("button", name="Resume", exact=True).wait_for()
    finally:
        stop_all(set(app.runs.iterdir()) - before)


def test_a_refused_value_is_explained_beside_its_field(tab: Tab):
    tab.open("/launch")
    steps = tab.page.get_by_label("steps", exact=True).first
    steps.fill("-3")
    steps.press("Enter")
    with pytest.raises(ConfigError) as refused:
        with_values(TrainConfig(), {"steps": -3})
    tab.page.get_by_text(str(refused.value).removeprefix("config: ")).wait_for()
    # The page is drawn element by element: the button follows the message.
    expect(tab.page.get_by_test_id("stBaseButton-primary")).to_be_disabled()


def test_hostile_text_is_shown_exactly_and_fetches_and_runs_nothing(tab: Tab, app: App):
    for index, name in enumerate(made.HOSTILE):
        run = made.Recorded(app.runs, name, run_id=f"hostile-{index:02d}")
        for step in range(1, 4):
            run.row(step, 3.0, **{name: float(step)})
        run.writer.event("note", 2, text=name)
        (run.path / "attempts/0000/rank-00000/log.txt").write_text(name + "\n")
        run.end("crashed", 3, name)
    tab.open_run("hostile-00")
    for index, name in enumerate(made.HOSTILE[:-1]):
        tab.turn_to(f"/run?run=hostile-{index:02d}")
        tab.wait(TITLED, name)
        own = tab.page.locator(f'.gm-chart[data-id="own.{name.encode().hex()}"]')
        own.scroll_into_view_if_needed()
        own.locator(".js-plotly-plot .main-svg").first.wait_for()
        assert own.locator(".gm-title").text_content() == name
    tab.open_run("hostile-01", section="Log")
    tab.page.get_by_text(made.HOSTILE[1]).first.wait_for()
    tab.open("/?search=hostile")
    tab.page.locator(".gm-runs tbody tr").first.wait_for()
    assert tab.page.evaluate("window.hacked") is None


# ---- helpers ------------------------------------------------------------------------------------------------------

LAST_STEP_BEYOND = """(step) => {
    const plot = document.querySelector('.gm-chart[data-id="loss"] .js-plotly-plot');
    return Boolean(plot?.data?.[0]) && plot.data[0].x[plot.data[0].x.length - 1] > step;
}"""
TITLED = """(name) => [...document.querySelectorAll('h2')]
    .some((head) => head.textContent.replaceAll('\\u2060', '').includes(name))"""
IN_VIEW_SHARE_RANGE = """() => {
    const plots = [...document.querySelectorAll('.gm-chart .js-plotly-plot')].slice(0, 3);
    return new Set(plots.map((plot) => plot._fullLayout.xaxis.range.map((end) => end.toFixed(3)).join())).size === 1;
}"""


def step_shown(tab: Tab) -> int:
    """The step in the head of the charts."""
    return int(re.sub(r"\D", "", tab.page.inner_text(".gm-status")))


def wait_for_run(app: App, run_id: str) -> None:
    """Until the writer has put down its first rows."""
    until(lambda: list((app.runs / run_id).glob("attempts/*/rank-*/scalars-*")), "the writer's first rows")


def stop_all(runs: set[Path]) -> None:
    """Stop what the test started, if it is still there."""
    from trainer import launch

    for run in runs:
        if launch.is_running(run):
            launch.stop(run, grace_s=5)
