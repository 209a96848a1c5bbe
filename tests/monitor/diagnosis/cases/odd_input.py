"""Cases of odd-input: batches unlike all before."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, Rows, changed, level, norms, only, put


def batches(
    rows: Rows | None = None, factor: float = 1.0, name: str = "input_std", events: tuple[Mark, ...] = ()
) -> Signals:
    rng = np.random.default_rng(0)
    series = {
        "train_loss": level(),
        "input_mean": rng.normal(0.1, 0.05, STEPS),
        "input_std": rng.normal(1.0, 0.05, STEPS),
        "input_absmax": rng.normal(3.0, 0.2, STEPS),
        "input_unique_share": rng.normal(0.1, 0.01, STEPS),
    }
    if rows is not None:
        series[name] = changed(series[name], rows, factor)
    return Signals.from_arrays(series, events=events)


def of_one_value(count: int) -> Signals:
    """``count`` numbers a batch, in row AT all the same."""
    rng = np.random.default_rng(0)
    spread = put(rng.normal(1.0, 0.05, STEPS), AT, 0.0)
    return only(input_std=spread, input_unique_share=put(rng.normal(0.5, 0.01, STEPS), AT, 1 / count))


def without_targets(rows: list[int], gradient: float = 0.0, before: np.ndarray | None = None) -> Signals:
    """Losses of exactly 0 in ``rows``, with a gradient norm of ``gradient``."""
    loss = level() if before is None else before
    more = {name: batches()[name].value for name in ("input_mean", "input_std")}
    return only(train_loss=put(loss, rows, 0.0), grad_norm_preclip=put(norms(), rows, gradient), **more)


def not_a_number() -> Signals:
    return only(input_mean=put(np.random.default_rng(0).normal(0, 1, STEPS), AT, np.nan))


def tokens(rare: int) -> Signals:
    """Bytes, of which from row AT on a rare one is in each batch."""
    highest = np.random.default_rng(0).integers(120, 127, STEPS)
    highest[AT:] = rare
    return only(train_loss=level(), input_absmax=highest.astype(float))


def played(**more: np.ndarray) -> Signals:
    """Other inputs from row AT on."""
    names = ("input_mean", "input_std", "input_absmax")
    return only(**{name: batches(slice(AT, None), 60)[name].value for name in names}, **more)


FIRES = (
    Case("other inputs for good", played, "warning", words="input_std"),
    Case("x1000 for one step", lambda: batches(AT, 1000, "input_absmax"), "warning", words="input_absmax"),
    Case("one token over and over", lambda: batches(AT, 0.02, "input_unique_share"), "info", words="unique"),
    Case("not normalised from there on", lambda: batches(slice(AT, None), 60), "warning", words="input_std"),
    Case("images without a picture", lambda: of_one_value(512), "warning", words="input_std"),
    Case("four class labels, all the same", lambda: of_one_value(4), "info", words="input_std"),
    Case("two batches without a target", lambda: without_targets([AT, AT + 9]), "warning", words="2 batches"),
    Case("a batch without a target", lambda: without_targets([AT]), "info", words="1 batch"),
    Case("NaN", not_a_number, "warning", words="NaN"),
)

NEAR_MISSES = (
    Case("other inputs for good, of a policy that has come further", lambda: played(returns=level())),
    Case("within the scatter", batches),
    Case("a rare token in each batch", lambda: tokens(226)),
    Case("two odd batches, ten apart", lambda: batches(slice(AT, AT + 11, 10), 60)),
    Case("losses of 0 with a gradient", lambda: without_targets([AT, AT + 9], gradient=0.5)),
    Case(
        "a loss that comes down to 0",
        lambda: without_targets([AT, AT + 9], before=np.where(np.arange(STEPS) % 2, level(), 0.01)),
    ),
    Case("a third more", lambda: batches(slice(AT, None), 1.3)),
    Case("a new sequence length", lambda: batches(slice(AT, AT + 20), 60, events=(Mark("seq_len", AT + 1),))),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="input_mean"),
    Case("twenty batches", lambda: batches().until(20), words="fewer than 32"),
)
