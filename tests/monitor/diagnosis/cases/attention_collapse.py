"""Cases of attention-collapse: logits beyond what a softmax resolves."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import STEPS, Case, constant_lr, level, only

BLOCKS = ("blocks.0.attn", "blocks.1.attn")
STEP = np.arange(20, STEPS + 1, 20)


def run(end: float, entropy: float = 0.6, stat: str = "attention_logit_max") -> Signals:
    """The logits of the second block grow exponentially from 5 to ``end``; its lowest entropy ends at ``entropy``."""
    logits = np.full((len(STEP), 2), 5.0, np.float32)
    logits[:, 1] = np.geomspace(5, end, len(STEP))
    spread = np.full((len(STEP), 2), 0.6, np.float32)
    spread[:, 1] = np.linspace(0.6, entropy, len(STEP))
    everywhere = np.ones(logits.shape, bool)
    return Signals.from_arrays(
        {"train_loss": level()},
        modules={
            stat: LayerMatrix(stat, STEP, BLOCKS, logits, everywhere),
            "attention_entropy_min": LayerMatrix("attention_entropy_min", STEP, BLOCKS, spread, everywhere),
        },
    )


def leapt(factor: float, *, lr: float = 1.0, growing: float = 1.0, rows: int = 100) -> Signals:
    """The second block's logits, about 3 every ten steps, times ``factor`` for so many measurements from 201 on."""
    step = np.arange(10, STEPS + 1, 10)
    logits = np.tile(3 * np.exp(np.random.default_rng(0).normal(0, 0.05, len(step)))[:, None], (1, 2))
    logits[:, 1] *= growing ** np.minimum(np.arange(len(step)) - 20, 0)
    logits[20 : 20 + rows, 1] *= factor
    everywhere = np.ones(logits.shape, bool)
    return Signals.from_arrays(
        {"train_loss": level(), "lr": constant_lr() * np.where(np.arange(STEPS) > 205, lr, 1.0)},
        modules={
            "attention_logit_bound": LayerMatrix(
                "attention_logit_bound", step, BLOCKS, logits.astype(np.float32), everywhere
            )
        },
    )


def burst(before: tuple[float, float]) -> Signals:
    """The second block's logits: 5 to 7 for 160 steps, ``before`` at 180 and 200, and then five times as large every
    twenty steps."""
    logits = np.full((len(STEP), 2), 5.0)
    logits[:8, 1] = [5, 7, 5, 6, 5, 7, 6, 5]
    logits[8:10, 1] = before
    logits[10:, 1] = before[1] * 5.0 ** np.arange(1, len(STEP) - 9)
    matrix = LayerMatrix("attention_logit_max", STEP, BLOCKS, logits.astype(np.float32), np.ones(logits.shape, bool))
    return Signals.from_arrays({"train_loss": level()}, modules={"attention_logit_max": matrix})


FIRES = (
    Case("five times as large every time, after a little more", lambda: burst((5.0, 6.0)), "warning", onset=240),
    Case("five times as large every time, after slow growth", lambda: burst((7.1, 7.4)), "warning", onset=200),
    Case("five times as large at once", lambda: leapt(5), "warning", words=f"of {BLOCKS[1]} leapt"),
    Case("to 300", lambda: run(300), "warning", onset=20, words=BLOCKS[1]),
    Case("to 80 with a head that sees one token", lambda: run(80, entropy=0.02), "warning", onset=20, words="entropy"),
    Case("to 80", lambda: run(80), "info", onset=20),
    Case(
        "only the bound is measured", lambda: run(300, stat="attention_logit_bound"), "warning", onset=20, words="bound"
    ),
)

NEAR_MISSES = (
    Case("twice as large at once", lambda: leapt(2)),
    Case("five times as large in one measurement", lambda: leapt(5, rows=1)),
    Case("five times as large at ten times the rate", lambda: leapt(5, lr=10)),
    Case("five times as large while growing", lambda: leapt(5, growing=1.2)),
    Case("to 30", lambda: run(30)),
    Case("a head that sees one token at usual logits", lambda: run(16, entropy=0.02)),
)

ABSTAINS = (Case("not measured", lambda: only(train_loss=level()), words="attention_logit_max"),)
