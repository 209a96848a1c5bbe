"""What may be varied, and what is refused, with the reason."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import ConfigError
from trainer.config import TrainConfig
from trainer.sweep.space import Choice, Range, parse_space, read_space


def test_ranges_and_choices_are_read_as_their_fields_want_them() -> None:
    space = parse_space(
        ["optimizer.lr=1e-4..1e-2:log", "model.n_layer=1..4", "optimizer.kind=adamw,sgd", "clip.max_norm=none,0.5,1"],
        TrainConfig(),
    )
    assert space == {
        "optimizer.lr": Range(1e-4, 1e-2, log=True),
        "model.n_layer": Range(1, 4, whole=True),
        "optimizer.kind": Choice(("adamw", "sgd")),
        "clip.max_norm": Choice((None, 0.5, 1.0)),
    }
    kept = json.loads(json.dumps({name: one.record() for name, one in space.items()}))
    assert read_space(kept) == space


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer.lr", "not of the form"),
        ("optimizer.lr=", "not of the form"),
        ("optimizer.lr=1e-2..1e-4", "less than the second"),
        ("optimizer.lr=1e-4..1e-2:lin", "log is accepted"),
        ("optimizer.lr=-1..1:log", "optimizer.lr = -1"),
        ("optimizer.weight_decay=0..0.1:log", "begins above 0"),
        ("optimizer.lr=fast..slow", "'fast' is no number"),
        ("optimizer.lr=1e-3", "2 to 50 different values"),
        ("optimizer.lr=1e-3,0.001", "2 to 50 different values"),
        ("model.n_layer=1.5..3", "no whole number"),
        ("optimizer.kind=adamw..sgd", "no range"),
        ("optimizer.kind=adamw,adamq", "Choose from"),
        ("optimizer.rl=1..2", "no such field. Accepted: kind, lr"),
        ("optimiser.lr=1..2", "did you mean"),
        ("optimizer.lr=1..1e9", "must be 100 or less"),
    ],
)
def test_what_cannot_be_varied_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_space([text], TrainConfig())
    assert words.lower() in str(refusal.value).lower()


def test_a_field_is_varied_once_and_something_is_varied() -> None:
    with pytest.raises(ConfigError, match="varied twice"):
        parse_space(["optimizer.lr=1..2", "optimizer.lr=3..4"], TrainConfig())
    with pytest.raises(ConfigError, match="Nothing is varied"):
        parse_space([], TrainConfig())


@pytest.mark.parametrize(
    "record",
    [None, [], {}, {"a": {}}, {"a": {"low": 1, "high": math.inf, "log": False, "whole": False}}, {"a": {"values": []}},
     {"a": {"low": -1, "high": 1, "log": True, "whole": False}}, {"a": {"values": [[1]]}}],
)  # fmt: skip
def test_a_plan_from_elsewhere_that_says_nonsense_is_refused(record: object) -> None:
    with pytest.raises(ConfigError):
        read_space(record)


@given(st.floats(1e-6, 1e3), st.floats(1.001, 1e4), st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_draws_stay_inside(low: float, factor: float, log: bool, whole: bool, seed: int) -> None:
    ends = (math.ceil(low), math.ceil(low) + math.ceil(factor)) if whole else (low, low * factor)
    value = Range(*map(float, ends), log=log, whole=whole).draw(random.Random(seed))
    assert ends[0] <= value <= ends[1]
    assert isinstance(value, int if whole else float)


def test_draws_cover_the_range_evenly_on_its_scale() -> None:
    draws = random.Random(0)
    exponents = [math.log10(Range(1e-4, 1.0, log=True).draw(draws)) for _ in range(4000)]
    quarters = [sum(low <= e < low + 1 for e in exponents) for low in (-4, -3, -2, -1)]
    assert all(abs(count - 1000) < 5 * math.sqrt(750) for count in quarters)  # binomial, 5 sigma
    whole = [Range(1, 4, whole=True).draw(draws) for _ in range(4000)]
    assert all(abs(whole.count(n) - 1000) < 5 * math.sqrt(750) for n in (1, 2, 3, 4))
