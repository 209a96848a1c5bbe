"""Cases of gradient-growth: a norm that climbs for hundreds of steps."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import STEPS, Case, changed, constant_lr, level, norms

LONG = 2 * STEPS
FROM = STEPS


def growing(factor: float, *, over: int = 250, event: str | None = None, loss: float = 1.0) -> Signals:
    """A norm that grows by ``factor`` from row FROM within ``over`` rows and stays; the loss by ``loss``, later."""
    rise = np.clip((np.arange(LONG) - FROM) / over, 0, 1)
    late = np.clip((np.arange(LONG) - FROM - 150) / 100, 0, 1)
    series = {
        "train_loss": level(steps=LONG) * loss**late,
        "grad_norm_preclip": norms(steps=LONG) * factor**rise,
        "lr": constant_lr(LONG),
    }
    return Signals.from_arrays(series, events=[Mark(event, FROM + 1)] if event else [])


def growing_then_jump() -> Signals:
    """A norm that has grown for good, and 150 steps later a loss that is twice as high from one step to the next."""
    at = np.arange(LONG) >= FROM + 400
    return Signals.from_arrays(
        {
            "train_loss": level(steps=LONG) * np.where(at, 2.0, 1.0),
            "grad_norm_preclip": norms(steps=LONG) * 6 ** np.clip((np.arange(LONG) - FROM) / 250, 0, 1),
            "lr": constant_lr(LONG),
        }
    )


def over_before() -> Signals:
    """A norm that is six times as high after 150 rows and falls back to four times; then the loss rises by a half."""
    row = np.arange(LONG) - FROM
    norm = norms(steps=LONG) * np.interp(row, [0, 150, 250], [1.0, 6.0, 4.0])
    loss = level(steps=LONG) * 1.5 ** np.clip((row - 200) / 80, 0, 1)
    return Signals.from_arrays({"train_loss": loss, "grad_norm_preclip": norm, "lr": constant_lr(LONG)})


def with_other_inputs() -> Signals:
    """The loss by a half, from where the inputs have twice the spread."""
    spread = np.random.default_rng(2).normal(1, 0.01, LONG) * np.where(np.arange(LONG) < FROM + 150, 1.0, 2.0)
    with_loss = growing(6, loss=1.5)
    names = ("train_loss", "grad_norm_preclip", "lr")
    return Signals.from_arrays({name: with_loss[name].value for name in names} | {"input_std": spread})


FIRES = (
    Case(
        "ten rows, each half as high again",  # ironjr/grokfast#9
        lambda: Signals.from_arrays({"grad_norm_preclip": 3.789e12 * 1.498 ** np.arange(10)}),
        "warning",
        onset=1,
        words="grows in every row",
    ),
    Case("x6 over 250 steps", lambda: growing(6), "info", onset=None, words="climbed from"),
    Case("and the loss by 5 %", lambda: growing(6, loss=1.05), "info", onset=None, words="climbed from"),
    Case("and a jump of the loss later", lambda: growing_then_jump(), "info", onset=None, words="climbed from"),
    Case("over before the loss rises", over_before, "info", onset=None, words="climbed from"),
    Case("and the loss by a half, on other inputs", with_other_inputs, "info", onset=None, words="climbed from"),
    Case("and the loss by a half", lambda: growing(6, loss=1.5), "warning", onset=None, words="the loss rises"),
)

NEAR_MISSES = (
    Case("x1.5", lambda: growing(1.5)),
    Case("x6 at once", lambda: growing(6, over=1)),
    Case("after longer sequences", lambda: growing(3, over=1, event="seq_len")),
)

ABSTAINS = (
    Case("100 norms", lambda: growing(6).until(100), words="100 gradient norms"),
    Case(
        "not measured",
        lambda: Signals.from_arrays({"train_loss": changed(level(), 5, 2.0)}),
        words="grad_norm_preclip",
    ),
)
