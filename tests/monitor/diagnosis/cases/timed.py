"""Step times for cases of the rules on speed; it holds no cases itself."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals

STEPS = 600
AT = 300


def seconds(sd: float = 0.02, usual: float = 0.1, seed: int = 0, wander: float = 0.0) -> np.ndarray:
    """Step times about ``usual`` with scatter ``sd`` from step to step and ``wander`` from block to block of 25."""
    rng = np.random.default_rng(seed)
    slow = np.repeat(rng.normal(0, wander, STEPS // 25), 25)
    return usual * np.exp(rng.normal(0, sd, STEPS) + slow)


def timed(
    time: np.ndarray, wait: np.ndarray | None = None, events: tuple[Mark, ...] = (), **more: np.ndarray
) -> Signals:
    wait = np.full(len(time), 0.001) if wait is None else wait
    series = {"step_time_s": time, "data_wait_s": wait, "forward_s": time - wait, **more}
    return Signals.from_arrays(series, events=events)


def evaluated(time: np.ndarray, every: int = 50, pause: float = 2.0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(step times, series) with a pause every so many steps, recorded as evaluation."""
    rows = np.arange(every, len(time), every)
    slow = time.copy()
    slow[rows] += pause
    spent = np.zeros(len(time))
    spent[rows] = pause
    return slow, {"eval_s": spent}


def ranks(of_rank_1: dict[str, np.ndarray], of_rank_0: dict[str, np.ndarray]) -> Signals:
    views = [Signals.from_arrays(of_rank_0), Signals.from_arrays(of_rank_1)]
    return Signals.from_arrays(of_rank_0, ranks=views)
