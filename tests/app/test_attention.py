"""Attention maps out of events that may hold anything."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from app.charts.attention import AttentionMap, attention_maps, head_figure, token_words
from monitor.runfile.records import Event
from tests.app.runs_for_tests import map_fields


def event(step: int | None = 10, **fields: Any) -> Event:
    return Event(step, 0.0, "attention_map", fields, 0, 0)


def test_weights_come_back_as_they_were_written():
    (one,), bad = attention_maps([event(**map_fields("attn", heads=3, places=5))])
    assert bad == 0 and (one.step, one.module, one.weights.shape) == (10, "attn", (3, 5, 5))
    assert np.allclose(one.weights.sum(axis=2), 1, atol=0.02) and not np.triu(one.weights[0], 1).any()
    assert one.tokens == tuple(b"def f")


@pytest.mark.parametrize(
    "broken",
    [
        {"shape": [2, 8]},
        {"shape": [2, 8, -8]},
        {"shape": [2, 8, 2**62]},
        {"shape": [True, 8, 8]},
        {"shape": [5, 8, 8]},
        {"shape": "288"},
        {"weights": None},
        {"weights": "A" * 10_000_000},
        {"weights": "*" * 172},
        {"weights": base64.b64encode(bytes(127)).decode()},
        {"module": ["x"]},
        {"module": "x" * 10_000},
        {"step": None},
    ],
    ids=lambda broken: f"{next(iter(broken))}={str(next(iter(broken.values())))[:12]}",
)
def test_what_is_no_map_is_left_out_and_counted(broken):
    fields = {"step": 10, **map_fields("attn"), **broken}
    maps, bad = attention_maps([event(**map_fields("good")), event(**fields)])
    assert [one.module for one in maps] == ["good"] and bad == 1


@pytest.mark.parametrize("tokens", [None, "abc", [1.5], [2**70], [], [[1]]])
def test_tokens_that_are_none_leave_the_places(tokens):
    (one,), bad = attention_maps([event(**{**map_fields("attn"), "tokens": tokens})])
    assert one.tokens is None and bad == 0
    assert head_figure(one, 0).layout.xaxis.ticktext is None


def test_the_last_map_of_a_step_and_module_counts():
    earlier, later = map_fields("attn", heads=1), map_fields("attn", heads=2)
    maps, _ = attention_maps([event(**earlier), event(20, **earlier), event(**later)])
    assert [(one.step, len(one.weights)) for one in maps] == [(10, 2), (20, 1)]


def test_bytes_are_letters_and_other_tokens_numbers():
    assert token_words([72, 32, 10, 0, 255], as_bytes=True) == ["H", "␣", "↵", "x00", "xff"]
    assert token_words([72, 50_256], as_bytes=True) == token_words([72, 50_256], as_bytes=False) == ["72", "50256"]


def test_a_head_has_queries_down_and_keys_to_the_right_and_no_markup():
    weights = np.zeros((1, 3, 4), np.float32)
    weights[0, 2, 1] = 0.5
    figure = head_figure(AttentionMap(1, "m", weights, tuple(b"<b>&")), 0, as_bytes=True)
    assert np.array_equal(figure.data[0].z, weights[0]) and figure.data[0].zmax == 0.5
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("key", "query")
    assert figure.layout.yaxis.autorange == "reversed"
    assert list(figure.layout.xaxis.ticktext) == ["&lt;", "b", "&gt;", "&amp;"]


def test_a_fixed_sample_is_told_from_the_batch_and_shows_its_labels():
    given = map_fields("attn", heads=1, places=4)
    labels = ["a", "b" * 100, "<b>", "d"]
    there = [event(**given), event(**given, sample=0, labels=labels), event(**given, sample=3, labels=[1, 2])]
    maps, bad = attention_maps(there)
    shown = [(one.sample, one.labels) for one in maps]
    assert bad == 0 and shown == [(None, None), (0, ("a", "b" * 24, "<b>", "d")), (3, None)]
    assert maps[1].words(as_bytes=True)[2] == "<b>" and maps[2].words(as_bytes=True) == maps[0].words(as_bytes=True)
    assert "<b>" not in str(head_figure(maps[1], 0).layout.xaxis.ticktext)
    assert attention_maps([event(**given, sample=sample) for sample in (-1, 4, True, "0", 1.0)]) == ([], 5)
