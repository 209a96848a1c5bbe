"""A figure that stands still while it is looked at: the window round an incident."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from app.text import plotly as escaped
from monitor.runfile.downsample import min_max
from monitor.signals import Signal

CRITICAL = "#d8453a"
"""Readable on the light and on the dark background."""
NONFINITE = "#d6338a"
MUTED = "#8490a0"
LINE = "#3d9bd6"
_POINTS = 400


def window_figure(signals: list[tuple[str, Signal]], onset: int, *, before: int = 60, after: int = 60) -> go.Figure:
    """The named signals round ``onset``, one above the other, each sample drawn; non-finite ones as marks at the top.

    Args:
        signals: ``(title, signal)``, from top to bottom.
    """
    from plotly.subplots import make_subplots

    rows = max(1, len(signals))
    titles = [escaped(title) for title, _ in signals]
    figure = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.3 / (rows + 2), subplot_titles=titles or None
    )
    for row, (title, signal) in enumerate(signals, start=1):
        near = signal.between(onset - before, onset + after)
        finite = np.isfinite(near.value)
        reduced = min_max(near.step, near.value, _POINTS)
        figure.add_scatter(
            x=reduced.step, y=reduced.value, mode="lines+markers", name=escaped(title), row=row, col=1,
            showlegend=False, line={"width": 1.4}, marker={"size": 4}, connectgaps=False,
        )  # fmt: skip
        figure.update_yaxes(**_scale(near.value[finite]), exponentformat="power", row=row, col=1)
        if not finite.all():
            top = float(near.value[finite].max()) if finite.any() else 1.0
            bad = near.value[~finite]
            words = ["NaN" if np.isnan(value) else "∞" if value > 0 else "−∞" for value in bad]
            figure.add_scatter(
                x=near.step[~finite], y=[top] * len(bad), mode="markers", name="non-finite", row=row, col=1,
                showlegend=False, text=words, hovertemplate="step %{x}: %{text}<extra></extra>",
                marker={"symbol": "triangle-down", "size": 10, "color": NONFINITE},
            )  # fmt: skip
        figure.add_vline(x=onset, line={"color": CRITICAL, "width": 1.3}, row=row, col=1)
    figure.update_xaxes(range=[onset - before, onset + after])
    figure.update_xaxes(title_text="optimizer step", row=rows, col=1)
    figure.update_layout(height=90 + 130 * rows, margin={"l": 60, "r": 10, "t": 28, "b": 40})
    figure.update_annotations(font={"size": 12, "color": MUTED}, xanchor="left", x=0)
    return figure


def _scale(finite: np.ndarray) -> dict[str, object]:
    """A logarithmic axis with whole decades for positive values that differ more than a hundredfold."""
    if not len(finite) or finite.min() <= 0 or finite.max() <= 100 * finite.min():
        return {"type": "linear", "nticks": 5}
    return {"type": "log", "dtick": max(1, round(float(np.log10(finite.max() / finite.min())) / 4))}
