"""Attention maps of a run: events that may hold anything, made into weights with names, and one figure a head."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from app.text import plotly as escaped
from monitor.runfile.reader import Event

MOST_HEADS, MOST_PLACES = 4, 64
"""Beyond these a map is none that the monitor writes (FORMAT.md)."""
MOST_MAPS = 400
"""Only the last ones are looked at (our judgement): a run of a million steps has about 60."""
LONGEST_NAME = 300
MOST_SAMPLES, LONGEST_LABEL = 4, 24
_LABELS = 32
"""Most letters along the keys, and twice the lines along the queries: more would run into each other."""
_COLOURS = [[(t / 10) ** 2, colour] for t, colour in enumerate(sample_colorscale("Viridis", 11))]
"""By the square root of the weight: 1/64 is as much as equal weights have, and still tells itself from 0."""


@dataclass(frozen=True, slots=True)
class AttentionMap:
    """The weights of some heads of one module at one step."""

    step: int
    module: str
    weights: np.ndarray
    """float32[heads, queries, keys] in [0, 1]."""
    tokens: tuple[int, ...] | None
    """What the model was given at these places; None when it is not known."""
    sample: int | None = None
    """Which of the fixed samples; None: the first sequence of the step's batch."""
    labels: tuple[str, ...] | None = None
    """The words that a fixed sample was given for these places."""

    def words(self, *, as_bytes: bool) -> list[str]:
        """A short word for each place; none where neither labels nor tokens are known.

        Args:
            as_bytes: whether tokens below 256 are bytes of a text.
        """
        return list(self.labels) if self.labels is not None else token_words(self.tokens or (), as_bytes=as_bytes)


def attention_maps(events: Sequence[Event]) -> tuple[list[AttentionMap], int]:
    """The maps by step, module and sample, the last one where there are several; and how many events are unreadable."""
    found: dict[tuple[int, str, int | None], AttentionMap] = {}
    bad = 0
    for event in events[-MOST_MAPS:]:
        read = _read(event)
        if read is None:
            bad += 1
        else:
            found[read.step, read.module, read.sample] = read
    return sorted(found.values(), key=lambda one: one.step), bad


def _read(event: Event) -> AttentionMap | None:
    module, shape, text = (event.fields.get(name) for name in ("module", "shape", "weights"))
    if event.step is None or not isinstance(module, str) or not 0 < len(module) <= LONGEST_NAME:
        return None
    if not isinstance(shape, list) or len(shape) != 3 or not all(_whole(size) and size > 0 for size in shape):
        return None
    heads, queries, keys = shape
    if heads > MOST_HEADS or max(queries, keys) > MOST_PLACES:
        return None
    size = heads * queries * keys
    if not isinstance(text, str) or len(text) != 4 * -(-size // 3):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(raw) != size:
        return None
    weights = (np.frombuffer(raw, np.uint8).reshape(heads, queries, keys).astype(np.float32) / 255) ** 2
    sample, labels = event.fields.get("sample"), event.fields.get("labels")
    if sample is not None and not (_whole(sample) and 0 <= sample < MOST_SAMPLES):
        return None
    words = _labels(labels) if sample is not None else None
    return AttentionMap(event.step, module, weights, _tokens(event.fields.get("tokens")), sample, words)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _labels(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value[:MOST_PLACES]):
        return None
    return tuple(word[:LONGEST_LABEL] for word in value[:MOST_PLACES]) or None


def _tokens(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(_whole(token) and abs(token) < 2**63 for token in value[:MOST_PLACES]):
        return None
    return tuple(value[:MOST_PLACES]) or None


# ---- words for tokens ---------------------------------------------------------------------------------------------

_SPELLED = {9: "⇥", 10: "↵", 13: "␍", 32: "␣"}


def token_words(tokens: Sequence[int], *, as_bytes: bool) -> list[str]:
    """One short word for each token: its number, or the character when all of them are bytes of a text."""
    if not as_bytes or not all(0 <= token < 256 for token in tokens):
        return [str(token) for token in tokens]
    return [_SPELLED.get(token) or (chr(token) if 33 <= token < 127 else f"x{token:02x}") for token in tokens]


def head_figure(one: AttentionMap, head: int, *, as_bytes: bool = False) -> go.Figure:
    """The weights of one head, queries downwards and keys to the right; all heads of the map have the same colours.

    Args:
        as_bytes: whether tokens below 256 are bytes of a text.
    """
    weights = one.weights[head]
    queries, keys = weights.shape
    words = one.words(as_bytes=as_bytes)
    figure = go.Figure()
    figure.add_heatmap(
        z=weights, zmin=0, zmax=max(float(one.weights.max()), 1e-6), colorscale=_COLOURS, showscale=False,
        hovertemplate="query at %{y}, key at %{x}: %{z:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="key", title_standoff=10, constrain="domain", **_ticks(words, keys, _LABELS))
    figure.update_yaxes(
        title_text="query", title_standoff=6, autorange="reversed", scaleanchor="x", constrain="domain",
        **_ticks(words, queries, 2 * _LABELS, lines=True),
    )  # fmt: skip
    figure.update_layout(
        height=310, margin={"l": 44, "r": 4, "t": 26, "b": 40},
        title={"text": f"head {head}", "font": {"size": 13}, "x": 0.02, "y": 0.99},
    )  # fmt: skip
    return figure


def _ticks(words: Sequence[str], places: int, most: int, *, lines: bool = False) -> dict[str, object]:
    """Labels by place: the tokens where they are known, otherwise the places themselves.

    Args:
        most: letters that there is room for; with ``lines`` a label takes the room of four letters, however long it is.
    """
    style: dict[str, object] = {"tickfont": {"size": 9}, "ticks": "", "showgrid": False, "zeroline": False}
    if len(words) < places:
        return {**style, "nticks": 8}
    room = 4 if lines else max(map(len, words[:places])) + (max(map(len, words[:places])) > 1)
    at = list(range(0, places, max(1, -(-places * room // most))))
    return {**style, "tickvals": at, "ticktext": [escaped(words[place], 12) for place in at], "tickangle": 0}
