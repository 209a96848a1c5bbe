"""The comparison as a person meets it: ticked in the list, changed, reloaded."""

from __future__ import annotations

import pytest

from tests.browser.conftest import Tab

pytestmark = pytest.mark.browser

CHART = "document.querySelector('.gm-chart[data-id=train_loss] .js-plotly-plot')"


def test_two_ticked_runs_are_compared_and_the_address_keeps_the_view(tab: Tab):
    tab.open("/?search=gpt- sample -name:notebook")
    for number in range(2):
        tab.page.locator(".gm-runs tbody input").nth(number).check()
    tab.page.get_by_role("link", name="Compare 2 runs").click()
    tab.page.wait_for_url("**/compare?run=*run=*")
    tab.charts()
    runs = tab.page.evaluate("new URL(location).searchParams.getAll('run')")
    assert len(runs) == 2 and all(run.startswith("gpt-") for run in runs)
    colours = tab.page.evaluate(f"{CHART}.data.slice(0, 2).map((trace) => trace.line.color)")
    assert len(set(colours)) == 2
    steps = tab.data("train_loss")["range"]
    tab.page.evaluate(f"{CHART}.__mark = 1")

    tab.page.get_by_role("radio", name="tokens", exact=True).or_(
        tab.page.get_by_role("button", name="tokens", exact=True)
    ).first.click()
    tab.wait(f"(last) => {CHART}._fullLayout.xaxis.range[1] > 10 * last", steps[1])
    tab.wait("() => new URL(location).searchParams.get('axis') === 'tokens'")
    assert tab.page.evaluate(f"{CHART}.__mark") == 1, "drawn anew in place"
    tab.page.get_by_label("Metrics").fill("loss$")
    tab.page.get_by_label("Metrics").press("Enter")
    tab.wait("() => [...document.querySelectorAll('.gm-chart')].every((node) => node.dataset.id.endsWith('loss'))")
    tab.page.get_by_role("slider").press("End")
    tab.wait(f"() => {CHART}.data.filter((trace) => trace.opacity < 0.5).length === 2")
    tab.drag("train_loss", 0.3, 0.6)
    tab.wait("() => new URL(location).searchParams.has('x0')")
    tab.wait("() => new URL(location).searchParams.has('smooth')")
    low, high = tab.data("train_loss")["range"]

    tab.page.reload()
    tab.rest()
    tab.wait(f"() => {CHART}?.data?.length >= 4")
    assert tab.data("train_loss")["range"] == pytest.approx([low, high], rel=1e-6)
    assert tab.page.evaluate("new URL(location).searchParams.getAll('run')") == runs
    assert tab.page.evaluate(f"{CHART}.data.filter((trace) => trace.opacity < 0.5).length") == 2
    tab.wait("() => !document.querySelector('[data-testid=stSkeleton]')")
    tab.frames.clear()
    tab.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # asks at once
    tab.page.wait_for_event("response", lambda answer: "/api/frame" in answer.url)
    assert set(tab.frames) <= {204}, "nothing is sent again when nothing changed"
