"""The loss around the weights as pictures: slices, planes as contours and in 3-D, the way between two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from app import text
from app.charts.still import LINE, MUTED, NONFINITE
from monitor.runfile.format import as_number
from monitor.runfile.records import LandscapeSample

MOST_SLICES = 5
LOG_FROM = 50.0
"""A largest loss over the smallest from which a picture shows logarithms (our judgement)."""
_PATH = "#e8590c"
_COLOURS = "Viridis"
_ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
"""A legend that grows away from the picture where it needs several rows."""
_UNITS = {
    "filter": "in norms of each filter",
    "update": "in last updates",
    "gradient": "in gradients",
    "l2": "Euclidean distance",
}


def slices_of(samples: Sequence[LandscapeSample]) -> dict[str, list[LandscapeSample]]:
    """The lines by what they run along, in the order in which they were first taken."""
    found: dict[str, list[LandscapeSample]] = {}
    for sample in samples:
        if sample.kind == "line" and len(sample.coords):
            found.setdefault(_along(sample), []).append(sample)
    return found


def _along(sample: LandscapeSample) -> str:
    """``random``, ``update``, ``gradient``; the training's own random line has its seed in its name."""
    return "random" if sample.direction.startswith("filter-normalised") else sample.direction or "unknown"


def slice_figure(samples: Sequence[LandscapeSample]) -> go.Figure:
    """The latest line before up to four earlier ones, evenly spread; losses that are not finite stand at the edge.

    Args:
        samples: at least one, along the same direction, by step.
    """
    places = sorted({*np.linspace(0, len(samples) - 1, min(MOST_SLICES, len(samples))).round().astype(int).tolist()})
    shown = [samples[place] for place in places]
    figure = go.Figure()
    for index, sample in enumerate(shown):
        latest = index == len(shown) - 1
        order = np.argsort(sample.coords)
        x, y = sample.coords[order], sample.loss[order]
        figure.add_scatter(
            x=x, y=np.where(np.isfinite(y), y, np.nan), mode="lines+markers", connectgaps=False,
            name=f"step {text.count(sample.step)}", opacity=1.0 if latest else 0.45 + 0.1 * index,
            line={"width": 2.2 if latest else 1.2, "color": LINE}, marker={"size": 5 if latest else 3, "color": LINE},
        )  # fmt: skip
    finite = np.concatenate([sample.loss[np.isfinite(sample.loss)] for sample in shown])
    log = _is_wide(finite)
    _mark_nonfinite(figure, shown, finite, log)
    figure.add_vline(x=0, line={"color": MUTED, "width": 1, "dash": "dot"})
    unit = _UNITS.get(str(shown[-1].detail.get("unit", "filter")), "")
    _lay_out(
        figure, f"distance along the {text.plotly(_along(shown[-1]))} direction,<br>{unit}", _loss_title(shown[-1]), log
    )
    return figure


def _mark_nonfinite(figure: go.Figure, samples: Sequence[LandscapeSample], finite: np.ndarray, log: bool) -> None:
    places = np.concatenate([sample.coords[~np.isfinite(sample.loss)] for sample in samples])
    if not len(places):
        return
    low, top = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    height = top * 1.3 if log else top + 0.06 * ((top - low) or abs(top) or 1.0)
    figure.add_scatter(
        x=places, y=np.full(len(places), height), mode="markers", name="not finite",
        marker={"symbol": "triangle-down", "size": 10, "color": NONFINITE},
    )  # fmt: skip


def connect_figure(sample: LandscapeSample) -> go.Figure:
    """The loss on the straight line between two checkpoints, and the height that has to be passed on it."""
    order = np.argsort(sample.coords)
    x, y = sample.coords[order], sample.loss[order]
    finite = y[np.isfinite(y)]
    figure = go.Figure()
    figure.add_scatter(
        x=x, y=np.where(np.isfinite(y), y, np.nan), mode="lines+markers", connectgaps=False,
        name="loss", line={"color": LINE, "width": 2}, marker={"color": LINE, "size": 4},
    )  # fmt: skip
    log = _is_wide(finite)
    _mark_nonfinite(figure, [sample], finite, log)
    at = as_number(sample.detail.get("barrier_at"))
    if at is not None and len(finite):
        figure.add_vline(x=at, line={"color": MUTED, "width": 1, "dash": "dot"})
    other = text.plotly(sample.detail.get("other_step"), 20)
    _lay_out(
        figure, f"from the checkpoint of step {sample.step} (0) to that of step {other} (1)", _loss_title(sample), log
    )
    return figure


def contour_figure(sample: LandscapeSample) -> go.Figure:
    """A plane from above: colour is the loss, the line the training's way through it where that is known."""
    x, y, shown, nonfinite, bar = _plane(sample)
    figure = go.Figure(
        go.Heatmap(x=x, y=y, z=shown, colorscale=_COLOURS, colorbar=bar, hovertemplate="%{customdata}<extra></extra>",
                   customdata=_hover(sample))
    )  # fmt: skip
    figure.add_contour(
        x=x, y=y, z=shown, contours={"coloring": "none", "showlabels": False}, ncontours=16, showscale=False,
        showlegend=False, line={"color": "rgba(255,255,255,0.55)", "width": 1}, hoverinfo="skip",
    )  # fmt: skip
    if len(nonfinite[0]):
        figure.add_scatter(
            x=nonfinite[0], y=nonfinite[1], mode="markers", name="not finite",
            marker={"symbol": "x", "size": 6, "color": NONFINITE},
        )  # fmt: skip
    step, path = trajectory_of(sample)
    if len(step):
        names = [f"step {text.count(int(one))}" for one in step]
        figure.add_scatter(
            x=path[0], y=path[1], mode="lines+markers", name="checkpoints", text=names, hoverinfo="text",
            line={"color": _PATH, "width": 2},
            marker={"color": _PATH, "size": 6, "line": {"color": "#fff", "width": 1}},
        )  # fmt: skip
    else:
        figure.add_scatter(
            x=[0], y=[0], mode="markers", name="the weights", marker={"color": _PATH, "size": 10, "symbol": "cross"}
        )
    titles = _titles(sample)
    figure.update_layout(
        height=460, margin={"l": 60, "r": 10, "t": 10, "b": 44}, legend=_ABOVE,
        xaxis_title=titles[0], yaxis_title=titles[1],
    )  # fmt: skip
    return figure


def surface_figure(sample: LandscapeSample) -> go.Figure:
    """The same plane in three dimensions."""
    x, y, shown, _, bar = _plane(sample)
    figure = go.Figure(
        go.Surface(x=x, y=y, z=shown, colorscale=_COLOURS, colorbar=bar, connectgaps=True,
                   hovertemplate="%{customdata}<extra></extra>", customdata=_hover(sample))
    )  # fmt: skip
    step, path = trajectory_of(sample)
    if len(step):
        heights = [_height_at(x, y, shown, a, b) for a, b in zip(*path, strict=True)]
        figure.add_scatter3d(
            x=path[0], y=path[1], z=heights, mode="lines+markers", name="checkpoints",
            line={"color": _PATH, "width": 5}, marker={"color": _PATH, "size": 3},
        )  # fmt: skip
    titles = _titles(sample)
    axis = {"color": MUTED, "gridcolor": MUTED, "showbackground": False}
    figure.update_layout(
        height=520, margin={"l": 0, "r": 0, "t": 0, "b": 0}, showlegend=False,
        scene={"xaxis": axis | {"title": titles[0]}, "yaxis": axis | {"title": titles[1]},
               "zaxis": axis | {"title": str(bar["title"])}, "aspectratio": {"x": 1, "y": 1, "z": 0.7}},
    )  # fmt: skip
    return figure


def trajectory_of(sample: LandscapeSample) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Steps of the checkpoints and their two coordinates in the plane; empty where there are none."""
    told = sample.detail.get("trajectory")
    empty = np.empty(0)
    if not isinstance(told, dict):
        return empty, (empty, empty)
    lists = [told.get(name) for name in ("step", "x", "y")]
    if not all(isinstance(one, list) and 0 < len(one) <= 10_000 for one in lists):
        return empty, (empty, empty)
    numbers = [np.array([_finite(value) for value in one], float) for one in lists if one is not None]
    if len({len(one) for one in numbers}) != 1 or not all(np.isfinite(one).all() for one in numbers):
        return empty, (empty, empty)
    return numbers[0], (numbers[1], numbers[2])


def _finite(value: object) -> float:
    number = as_number(value)
    return float("nan") if number is None else number


def _plane(
    sample: LandscapeSample,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray], dict[str, Any]]:
    """Axes, heights (NaN where there is none), the places of losses that are not finite, and the colour bar."""
    x, y, loss, taken = sample.grid()
    rows, columns = np.nonzero(taken & ~np.isfinite(loss))
    finite = loss[np.isfinite(loss)]
    log = _is_wide(finite)
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = np.where(np.isfinite(loss), np.log10(loss) if log else loss, np.nan)
    title = f"log10 of the {_loss_title(sample)}" if log else _loss_title(sample)
    return x, y, shown, (x[columns], y[rows]), {"title": title}


def _is_wide(finite: np.ndarray) -> bool:
    return bool(len(finite)) and finite.min() > 0 and finite.max() > LOG_FROM * finite.min()


def _hover(sample: LandscapeSample) -> np.ndarray:
    """What the pointer says of each point: coordinates, loss, and that against the loss at the weights."""
    x, y, loss, taken = sample.grid()
    words = np.empty(loss.shape, dtype=object)
    for row in range(len(y)):
        for column in range(len(x)):
            value = loss[row, column]
            said = text.number(float(value)) if taken[row, column] else "not taken yet"
            words[row, column] = f"({text.number(float(x[column]))}, {text.number(float(y[row]))}): {said}"
    return words


def _height_at(x: np.ndarray, y: np.ndarray, shown: np.ndarray, a: float, b: float) -> float:
    """The height of the grid point nearest to a place, so that the line lies on the surface."""
    return float(shown[int(np.abs(y - b).argmin()), int(np.abs(x - a).argmin())])


def _titles(sample: LandscapeSample) -> tuple[str, str]:
    told = sample.detail.get("directions")
    names = (
        [text.plotly(one, 60) for one in told[:2]] if isinstance(told, list) and len(told) == 2 else ["first", "second"]
    )
    shares = sample.detail.get("variance_explained")
    if isinstance(shares, list) and len(shares) == 2 and all(as_number(one) is not None for one in shares):
        names = [
            f"{name}, {100 * _finite(share):.0f} % of the variance" for name, share in zip(names, shares, strict=True)
        ]
    return names[0], names[1]


def _loss_title(sample: LandscapeSample) -> str:
    return f"loss ({text.plotly(sample.detail.get('loss_unit') or 'nats', 20)})"


def _lay_out(figure: go.Figure, x: str, y: str, log: bool) -> None:
    figure.update_layout(
        height=320, margin={"l": 60, "r": 10, "t": 10, "b": 60}, legend=_ABOVE,
        xaxis_title=x, yaxis_title=y, yaxis_type="log" if log else "linear",
    )  # fmt: skip
