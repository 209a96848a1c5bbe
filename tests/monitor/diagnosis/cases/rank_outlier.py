"""Cases of rank-outlier: one rank's own gradient."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import AT, Case, changed, level, norms, only, put
from tests.monitor.diagnosis.cases.timed import ranks


def local(of_rank_1: np.ndarray, of_rank_0: np.ndarray | None = None) -> Signals:
    usual = norms(1) if of_rank_0 is None else of_rank_0
    return ranks({"grad_norm_local": of_rank_1}, {"train_loss": level(), "grad_norm_local": usual})


def losses(of_rank_1: np.ndarray, local_norm: np.ndarray | None = None, of_rank_0: np.ndarray | None = None) -> Signals:
    norm = norms(2) if local_norm is None else local_norm
    usual = level() if of_rank_0 is None else of_rank_0
    return ranks({"train_loss": of_rank_1, "grad_norm_local": norm}, {"train_loss": usual, "grad_norm_local": norms(1)})


FIRES = (
    Case("x60 on one rank", lambda: local(changed(norms(2), AT, 60)), "warning", words="rank 1 alone"),
    Case("NaN on one rank", lambda: local(put(norms(2), AT, np.nan)), "warning", words="not finite"),
    Case("NaN loss on one rank", lambda: losses(put(level(1), AT, np.nan)), "warning", words="the loss of rank 1"),
    Case(
        "NaN loss and x60 later",
        lambda: losses(put(level(1), AT, np.nan), changed(norms(2), AT + 5, 60)),
        "warning",
        words="loss of rank 1",
    ),
)

NEAR_MISSES = (
    Case("x4 on one rank", lambda: local(changed(norms(2), AT, 4))),
    Case("x60 on both", lambda: local(changed(norms(2), AT, 60), changed(norms(1), AT, 60))),
    Case("NaN on both", lambda: local(put(norms(2), AT, np.nan), put(norms(1), AT, np.nan))),
    Case("NaN loss on both", lambda: losses(put(level(1), AT, np.nan), of_rank_0=put(level(), AT, np.nan))),
    Case("one process", lambda: only(grad_norm_local=changed(norms(), AT, 60))),
)

ABSTAINS = (Case("not measured", lambda: ranks({"train_loss": level()}, {"train_loss": level()}), words="0 ranks"),)
