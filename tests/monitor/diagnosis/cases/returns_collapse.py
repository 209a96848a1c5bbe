"""Cases of returns-collapse: what a policy had gained is lost."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import Case, level

ROWS = 400
FALL = 300


def played(fall: slice | None, to: float = 20.0, sd: float = 15.0, events: tuple[Mark, ...] = ()) -> Signals:
    """Returns of an episode a step: from 20 to 200 within 200 steps, with noise, and ``to`` in the rows of ``fall``."""
    mean = 20 + 180 * np.clip(np.arange(ROWS) / 200, 0, 1)
    if fall is not None:
        mean[fall] = to
    returns = mean + np.random.default_rng(0).normal(0, sd, ROWS)
    return Signals.from_arrays({"rollout/ep_rew_mean": returns, "train_loss": level(steps=ROWS)}, events=events)


def ever_worse(at: int, back: int | None = None, sd: float = 0.1) -> Signals:
    """Rewards about 1 that fall to 0 within 20 steps from row ``at`` on, and rise from row ``back`` on."""
    mean = np.where(np.arange(ROWS) < at, 1 - 0.003 * np.arange(ROWS), np.clip(1 - (np.arange(ROWS) - at) / 20, 0, 1))
    if back is not None:
        mean[back:] = np.linspace(0, 0.5, ROWS - back)
    return Signals.from_arrays({"reward": mean + np.random.default_rng(0).normal(0, sd, ROWS)})


FIRES = (
    Case("below the untrained policy", lambda: ever_worse(60), "warning", onset=None, words="worse than untrained"),
    Case("back to the start", lambda: played(slice(FALL, None)), "warning", onset=FALL + 1, words="fell from"),
    Case("worse than at the start", lambda: played(slice(FALL, None), to=-100), "warning", onset=FALL + 1),
)

NEAR_MISSES = (
    Case("a dip that comes back", lambda: played(slice(FALL, FALL + 60))),
    Case("a quarter of it lost", lambda: played(slice(FALL, None), to=155)),
    Case("scattered as far at the best", lambda: played(slice(FALL, None), to=60, sd=120)),
    Case("another task since", lambda: played(slice(FALL, None), events=(Mark("data_stage", FALL),))),
    Case("never learnt anything", lambda: played(slice(0, None))),
    Case("worse for a while and then better", lambda: ever_worse(60, back=250)),
    Case("worse, within the scatter of the beginning", lambda: ever_worse(60, sd=0.6)),
    Case("no reward", lambda: Signals.from_arrays({"train_loss": level()})),
)

ABSTAINS = (Case("thirty episodes", lambda: played(slice(FALL, None)).until(30), words="30 rewards"),)
