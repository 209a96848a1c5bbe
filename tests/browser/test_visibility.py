"""Nothing that a person must see is lost between disk and pixel: one step of a million, in every kind of chart."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monitor.runfile.writer import RankWriter, begin_attempt, write_exit
from tests.app.bulk_run import bulk_run
from tests.browser.conftest import App, Tab

pytestmark = pytest.mark.browser

STEPS, HEIGHT = 1_000_000, 55.5
LAYERS = tuple(f"blocks.{index}.weight" for index in range(8))
NONFINITE = (196, 0, 111)
"""The colour of what is not finite, in the light theme (app/live_grid.css)."""


@dataclass(frozen=True)
class Odd:
    """One step each, counted from 1."""

    loss: int
    nan: int
    norm: int
    layer: int
    time: int


EARLIER = Odd(loss=654_321, nan=222_222, norm=444_444, layer=777_777, time=123_456)
LATER = Odd(loss=1_000_900, nan=1_000_300, norm=1_000_500, layer=1_000_700, time=1_000_100)


@pytest.fixture(scope="module")
def million(app: App) -> Iterator[Path]:
    """A million steps with one of each kind that is odd; gone afterwards, as its diagnosis holds up those of others."""
    rng, odd = np.random.default_rng(0), EARLIER
    step = np.arange(1, STEPS + 1)
    loss = 1.6 + 3.9 * np.exp(-step / 160_000) + rng.normal(0, 0.05, STEPS)
    norm, spent = 0.7 + rng.gamma(2.0, 0.1, STEPS), np.full(STEPS, 0.05)
    own = rng.normal(1.0, 0.01, STEPS)
    loss[odd.loss - 1], loss[odd.nan - 1], norm[odd.norm - 1], spent[odd.time - 1] = HEIGHT, np.nan, np.inf, 3.0
    own[odd.loss - 1], own[odd.nan - 1] = HEIGHT, np.nan
    scalars = {
        "train_loss": loss, "grad_norm_preclip": norm, "step_time_s": spent, "forward_s": 0.6 * spent, "own/value": own
    }  # fmt: skip
    layers = np.exp(rng.normal(0, 0.2, (STEPS, len(LAYERS))).astype(np.float32))
    layers[odd.layer - 1, 3] = np.inf
    start = time.time() - 0.05 * STEPS - 60
    path = bulk_run(app.runs, scalars, "grad_norm_preclip", layers, LAYERS, run_id="million", start=start)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def going_on(million: Path) -> Iterator[RankWriter]:
    """The run, resumed from its last step."""
    attempt = begin_attempt(million, parent=0, resume_step=STEPS, planned_steps=STEPS + 1000)
    writer = RankWriter(million, attempt)
    writer.define_layers(LAYERS, [(8, 8)] * len(LAYERS))
    yield writer
    writer.close()
    write_exit(million, attempt, outcome="stopped", step=STEPS + 1000, reason="the test is over")


def test_what_is_odd_in_one_step_of_a_million_is_seen(tab: Tab, million: Path, going_on: RankWriter):
    tab.open_run("million", smooth=0.999, layer=LAYERS[3], at=EARLIER.layer)
    tab.charts()
    shows(tab, EARLIER, smooth=True)
    tab.page.get_by_role("slider").press("Home")

    put(going_on, LATER)
    tab.wait(f"(step) => {plot('loss')}.data[0].x.at(-1) >= step", STEPS + 1000)
    shows(tab, LATER, smooth=False)
    assert tab.page.evaluate("performance.getEntriesByType('navigation').length") == 1

    tab.open_run("million", smooth=0.6, axis="relative+time", layer=LAYERS[3], at=LATER.layer)
    tab.charts()
    tab.wait(f"() => {plot('loss')}._fullLayout.xaxis.range[1] > 49000")
    shows(tab, EARLIER, smooth=True, x=lambda step: 0.05 * (step - 1))


def put(writer: RankWriter, odd: Odd) -> None:
    """A thousand steps more, with one of each kind that is odd."""
    for step in range(STEPS + 1, STEPS + 1001):
        spent, value = 3.0 if step == odd.time else 0.05, HEIGHT if step == odd.loss else 1.6
        value = float("nan") if step == odd.nan else value
        norm = float("inf") if step == odd.norm else 0.8
        scalars = {"train_loss": value, "grad_norm_preclip": norm, "step_time_s": spent, "forward_s": 0.6 * spent}
        layers = np.ones(len(LAYERS), np.float32)
        layers[3] = np.inf if step == odd.layer else 1.0
        writer.scalars(step, time.time(), scalars | {"own/value": value})
        writer.layers(step, time.time(), {"grad_norm_preclip": layers})
    writer.heartbeat(step=STEPS + 1000, state="training", step_time_s=0.05, planned_steps=STEPS + 2000)
    writer.flush(60)


# ---- what must be seen ----------------------------------------------------------------------------------------------

OWN = f"own.{b'own/value'.hex()}"


RAW_BEHIND = """([chart, whether]) => document.querySelector(`[data-id="${chart}"] .js-plotly-plot`)
    .data.some((trace) => trace.opacity < 0.5) === whether"""


def plot(chart: str) -> str:
    """The plot of a chart, for JavaScript."""
    return f"document.querySelector('[data-id=\"{chart}\"] .js-plotly-plot')"


def shows(tab: Tab, odd: Odd, *, smooth: bool, x: Callable[[int], float] = float) -> None:
    """Every kind of chart has, fully zoomed out, a mark of its own at each odd step: in its data and in its pixels."""
    for chart in ("loss", OWN):
        in_sight(tab, chart)
        tab.wait(RAW_BEHIND, [chart, smooth])
        assert drawn_at(tab, chart, x(odd.loss)) == pytest.approx(HEIGHT)
        picture = seen(tab, chart)
        assert inked(picture, column(tab, chart, x(odd.loss)), 0.08, 0.5), (chart, "the spike")
        assert marked(picture, column(tab, chart, x(odd.nan))), (chart, "the NaN")
        note = tab.page.inner_text(f'[data-id="{chart}"] .gm-note')
        assert "extremes kept" in note and "NaN" in note
    in_sight(tab, "grad_norm")
    assert marked(seen(tab, "grad_norm"), column(tab, "grad_norm", x(odd.norm))), "the infinite norm"
    in_sight(tab, "step_time")
    assert inked(seen(tab, "step_time"), column(tab, "step_time", x(odd.time)), 0.08, 0.5), "the slow step"
    in_sight(tab, "heat")
    assert marked(seen(tab, "heat"), column(tab, "heat", x(odd.layer))), "the infinite layer in the heatmap"
    in_sight(tab, "layer")
    assert marked(seen(tab, "layer"), column(tab, "layer", x(odd.layer))), "the infinite layer's curve"
    in_sight(tab, "profile")
    tab.wait("() => document.querySelector('[data-id=profile] .gm-note').textContent.includes('∞')")
    assert marked(seen(tab, "profile"), column(tab, "profile", 3)), "the infinite layer among all"


def in_sight(tab: Tab, chart: str) -> None:
    """Scroll to a chart and wait until it is drawn."""
    tab.page.locator(f'.gm-chart[data-id="{chart}"]').scroll_into_view_if_needed()
    tab.wait(
        f"() => {plot(chart)}?._fullLayout?.xaxis && !document.querySelector('[data-id=\"{chart}\"]').__slot.dirty"
    )
    tab.page.mouse.move(2, 2)


def drawn_at(tab: Tab, chart: str, x: float) -> float:
    """The value at ``x`` in what Plotly draws; NaN where nothing is drawn."""
    found = tab.page.evaluate(
        f"""(x) => {plot(chart)}.data.flatMap((trace) => {{
            const i = Array.from(trace.x).findIndex((at) => Math.abs(at - x) < 1e-3);
            return i >= 0 && trace.opacity !== undefined && trace.yaxis !== 'y2' ? [trace.y[i]] : [];
        }})""",
        x,
    )
    return max((value for value in found if value is not None), default=float("nan"))


def column(tab: Tab, chart: str, x: float) -> tuple[int, int, int]:
    """Pixels from the left edge of a plot at which ``x`` is, and the first and last row of its area."""
    return tuple(
        tab.page.evaluate(
            f"""(x) => {{
            const {{xaxis, yaxis}} = {plot(chart)}._fullLayout;
            return [xaxis._offset + xaxis.d2p(x), yaxis._offset, yaxis._offset + yaxis._length].map(Math.round);
        }}""",
            x,
        )
    )


def seen(tab: Tab, chart: str) -> np.ndarray:
    """uint8[H, W, 3]: what the screen shows of a plot."""
    picture = tab.page.locator(f'.gm-chart[data-id="{chart}"] .js-plotly-plot').screenshot()
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def inked(picture: np.ndarray, at: tuple[int, int, int], top: float, bottom: float) -> bool:
    """Whether there is a line at a column in the upper part of a plot, and none a little beside it."""
    x, first, last = at
    rows = slice(first + int(top * (last - first)), first + int(bottom * (last - first)))
    far = np.abs(picture[rows].astype(int) - 255).sum(axis=2) > 90
    return bool(far[:, x - 2 : x + 3].any(axis=1).mean() > 0.9)


def marked(picture: np.ndarray, at: tuple[int, int, int]) -> bool:
    """Whether something at a column, up to the width of a mark beside it, has the colour of what is not finite."""
    x, first, last = at
    around = picture[first:last, max(0, x - 5) : x + 6].astype(int)
    return bool((np.abs(around - NONFINITE).max(axis=2) < 40).any())
