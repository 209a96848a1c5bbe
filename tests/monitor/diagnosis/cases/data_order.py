"""Cases of data-order: batches that come again."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, norms, only
from tests.monitor.diagnosis.cases.timed import ranks

PERIOD = 25


def hashes(order: np.ndarray) -> np.ndarray:
    """One fingerprint per batch number."""
    return np.random.default_rng(3).integers(0, 2**52, 10_000)[order].astype(float)


def fed(order: np.ndarray, loss: np.ndarray | None = None) -> Signals:
    return only(train_loss=level() if loss is None else loss, input_hash=hashes(order))


def stuck(rows: int, row: int = AT) -> Signals:
    order = np.arange(STEPS)
    order[row : row + rows] = row
    return fed(order)


def shuffled() -> np.ndarray:
    """A new order in each epoch of 25 batches."""
    rng = np.random.default_rng(5)
    return np.concatenate([rng.permutation(PERIOD) for _ in range(STEPS // PERIOD)])


def by_place(size: float) -> np.ndarray:
    """A loss that differs by place in the epoch."""
    place = np.random.default_rng(6).normal(0, size, PERIOD)
    return level() * np.exp(place[np.arange(STEPS) % PERIOD])


def going_round(period: int) -> np.ndarray:
    """From row AT on the same few batches."""
    row = np.arange(STEPS)
    return np.where(row < AT, row, AT + (row - AT) % period)


def on_ranks(of_rank_1: np.ndarray, own_gradient: bool = True, of_rank_0: np.ndarray | None = None) -> Signals:
    """Two ranks, of which the first reads each batch once."""
    own = {"grad_norm_local": norms()} if own_gradient else {}
    usual = np.arange(STEPS) if of_rank_0 is None else of_rank_0
    return ranks({"input_hash": hashes(of_rank_1), **own}, {"train_loss": level(), "input_hash": hashes(usual), **own})


IN_ORDER = np.arange(STEPS) % PERIOD

FIRES = (
    Case("the same batch to the end", lambda: stuck(STEPS), "warning", words="same batch comes 100 times"),
    Case("the same batch three times", lambda: stuck(3), "warning", words="same batch comes 3 times"),
    Case("the same batches on both ranks", lambda: on_ranks(np.arange(STEPS)), "warning", onset=1, words="All 2 ranks"),
    Case("seven batches over and over", lambda: fed(going_round(7)), "warning", words="same 7 batches"),
    Case("two workers with all the data", lambda: fed(np.arange(STEPS) // 2), "info", onset=2, words="about 2 times"),
    Case("the same order in each epoch", lambda: fed(IN_ORDER), "info", onset=26, words="same order"),
    Case("sorted by source", lambda: fed(IN_ORDER, by_place(0.1)), "info", onset=26, words="and the loss has"),
    Case(
        "sorted by source, epochs logged",
        lambda: only(train_loss=by_place(0.1), epoch=np.arange(STEPS) / PERIOD),
        "info",
        onset=26,
        words="The loss has the period",
    ),
)

NEAR_MISSES = (
    Case("each batch once", lambda: fed(np.arange(STEPS))),
    Case("other batches on each rank", lambda: on_ranks(np.arange(STEPS) + STEPS)),
    Case("the same batches on both ranks, which share the layers", lambda: on_ranks(np.arange(STEPS), False)),
    Case(
        "all of the data in each step of both ranks", lambda: on_ranks(np.zeros(STEPS, int), True, np.zeros(STEPS, int))
    ),
    Case("the same batches on both ranks but for one", lambda: on_ranks(np.r_[0:50, 999, 51:STEPS])),
    Case("a second epoch in the same order", lambda: fed(np.arange(STEPS) % (STEPS * 2 // 3))),
    Case("another order in each epoch", lambda: fed(shuffled())),
    Case("another order, epochs logged", lambda: only(train_loss=level(), epoch=np.arange(STEPS) / PERIOD)),
    Case("one batch learnt by heart", lambda: fed(np.zeros(STEPS, int))),
    Case("two batches in turn", lambda: fed(np.arange(STEPS) % 2)),
    Case("the same batch twice", lambda: stuck(2)),
    Case("the same batch from the first steps on", lambda: stuck(STEPS, row=5)),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="input_hash or epoch"),
    Case("40 steps", lambda: stuck(3).until(40), words="40 fingerprints"),
)
