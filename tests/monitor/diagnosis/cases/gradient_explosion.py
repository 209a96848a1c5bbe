"""Cases of gradient-explosion: the gradient norm jumps."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import (
    AT,
    STEPS,
    Case,
    changed,
    hit,
    layer_norms,
    level,
    loss_and_norm,
    norms,
    only,
    put,
    with_layers,
)
from tests.monitor.diagnosis.controls import LAYERS, gradient


def again_and_again(times: int) -> Signals:
    """A gradient of one or two steps, x20, that the loss never follows, every forty steps up to the last one at AT."""
    rows = [AT - 40 * number + more for number in range(times) for more in (0, 1)]
    return loss_and_norm(level(), changed(norms(), rows, 20))


def with_returns(end: float) -> Signals:
    """The gradient of a policy rises x30, and the returns go from 1 to ``end`` afterwards."""
    returns = np.where(np.arange(STEPS) < AT, 1.0, end)
    return loss_and_norm(level(), changed(norms(), slice(AT, AT + 3), 30), returns=returns)


FIRES = (
    Case("the second of its kind", lambda: again_and_again(2), "warning", onset=AT - 39),
    Case("a policy whose returns fall", lambda: with_returns(0.5), "warning"),
    Case(
        "nine rows, the last a hundred times the highest before",  # unslothai/unsloth#5207
        lambda: only(grad_norm_preclip=np.r_[14.98, 9.78, 7.64, 92.1, 29.0, 5.21, 7.83, 7.79, 11140.0]),
        "warning",
        onset=9,
    ),
    Case(
        "grows over four steps, loss follows",
        lambda: loss_and_norm(
            changed(level(), slice(AT + 4, AT + 12), 1.6),
            changed(norms(), slice(AT, AT + 5), 4.0 ** np.arange(1, 6)),
        ),
        "warning",
        words="loss followed 4 steps later",
    ),
    Case(
        "x40 for one step",
        lambda: loss_and_norm(level(), changed(norms(), AT, 40)),
        "warning",
        words="did not follow",
    ),
    Case("x5 for one step", lambda: loss_and_norm(level(), changed(norms(), AT, 5)), "info"),
    Case(
        "then NaN",
        lambda: loss_and_norm(
            put(level(), slice(AT + 4, None), np.nan),
            put(changed(norms(), slice(AT, AT + 4), 10.0 ** np.arange(1, 5)), slice(AT + 4, None), np.nan),
        ),
        "critical",
        words="non-finite",
    ),
    Case(
        "one small layer alone",
        lambda: with_layers(level(), hit(changed(layer_norms(), (slice(None), 3), 0.01), AT, 3, 60)),
        "warning",
        words=LAYERS[3],
    ),
    Case("no loss recorded", lambda: only(grad_norm_preclip=changed(norms(), slice(AT, AT + 3), 30)), "warning"),
)

NEAR_MISSES = (
    Case("a policy whose returns rise", lambda: with_returns(2.0)),
    Case(
        "x1.8, below the smallest rise",
        lambda: loss_and_norm(level(), changed(norms(sd=0.02), slice(AT, AT + 5), 1.8)),
    ),
    Case(
        "falls thirtyfold at the start",
        lambda: only(grad_norm_preclip=gradient(np.random.default_rng(0), STEPS, fall=30)),
    ),
    Case("grows slowly to x8", lambda: only(grad_norm_preclip=norms() * np.linspace(1, 8, STEPS))),
    Case(
        "burst that the loss does not follow",
        lambda: loss_and_norm(level(), changed(norms(), slice(AT, AT + 8), 4)),
    ),
    Case(
        "rounding-noise layer",
        lambda: with_layers(level(), hit(changed(layer_norms(), (slice(None), 3), 1e-7), AT, 3, 1e3)),
    ),
    Case("all layers together, x8, one step", lambda: with_layers(level(), hit(layer_norms(), AT, slice(None), 8))),
    Case(
        "zeros are steps without a gradient",
        lambda: only(grad_norm_preclip=put(norms(), list(range(AT, AT + 20)), 0.0)),
    ),
    Case(
        "nearly vanished, then a hard batch",
        lambda: only(grad_norm_preclip=changed(norms() * np.exp(-np.arange(STEPS) / 30), AT, 8)),
    ),
)

ABSTAINS = (
    Case("no gradient norm", lambda: only(train_loss=level()), words="grad_norm_preclip not recorded"),
    Case("too few rows", lambda: only(grad_norm_preclip=norms()[:24]), words="24 finite gradient norms"),
)
