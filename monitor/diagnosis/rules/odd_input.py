"""The input of a step is unlike all before."""

from __future__ import annotations

import math

import numpy as np

from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.primitives import MAD_TO_SD
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number, steps
from monitor.signals import Signal

WATCHED = ("input_mean", "input_std", "input_absmax", "input_unique_share")
LEAST_ROWS = 32
BLOCK = 32
"""Rows after which the baseline is taken again."""


def odd_input(signals: Signals, *, z: float = 12.0, change: float = 0.5, lasting: int = 10) -> Verdict:
    """The first input of a step, its mean, spread, largest value or share of distinct values, leaves all it has shown.

    Why it matters: a broken batch (a scale of 1000, one token over and over, NaN) is seen here before any update; when
    it stays, the preprocessing has changed and the run trains on other data than before.

    Stays silent: within the scatter of batches; on changes of batch size or sequence length, which move these numbers;
    before 32 steps. Information for a few odd batches; a warning where the change lasts, or where a value is not finite
    or a hundred times as large as ever.

    Thresholds: ``z``, robust standard deviations beyond the extremes of the batches before; ``change``, smallest
    relative change; ``lasting``, odd batches running. Our judgement.

    Source: design notes F17, F18; OLMo 2 (2025) on repeated n-grams behind gradient spikes.
    """
    if all(len(signals[name]) < LEAST_ROWS for name in WATCHED):
        return Abstained(f"fewer than {LEAST_ROWS} input fingerprints recorded")
    found = [f for name in WATCHED if (f := _odd(signals, signals[name], z, change, lasting)) is not None]
    worst = sorted(found, key=lambda f: (-(f.severity or Severity.INFO).rank, f.onset_step))
    return worst[:1]


def _odd(signals: Signals, series: Signal, z: float, change: float, lasting: int) -> Finding | None:
    if len(series) < LEAST_ROWS:
        return None
    odd = ~np.isfinite(series.value)
    # A spread, a size and a share are compared as ratios.
    x = series.value if series.name == "input_mean" else np.log(np.maximum(series.value, 1e-9))
    low, high = _bounds(x, z, change, relative=series.name == "input_mean")
    odd |= (x > high) | (x < low)
    gates = [e.step for e in signals.events("batch_size", "seq_len", "data_stage") if e.step is not None]
    for gate in gates:
        odd &= (series.step < gate - 1) | (series.step > gate + BLOCK)
    rows = np.flatnonzero(odd)
    if len(rows) == 0:
        return None
    row = int(rows[0])
    run = first_run(odd[row:], lasting) == 0
    value = float(series.value[row])
    usual = float(np.median(series.value[max(0, row - 96) : row]))
    extreme = not math.isfinite(value) or (series.name == "input_absmax" and value > 100 * abs(usual))
    last = row + (int(np.argmin(odd[row:])) if not odd[row:].all() else len(odd) - row) - 1
    return Finding(
        summary=f"{series.name} of {steps(int(series.step[row]), int(series.step[last]))} is {number(value)}, "
        f"{number(usual)} is usual",
        onset_step=int(series.step[row]),
        first_step=int(series.step[row + lasting - 1 if run else row]),
        last_step=int(series.step[last]),
        severity=Severity.WARNING if run or extreme else Severity.INFO,
        evidence={"signal": series.name, "value": value, "usual": usual, "odd_batches": len(rows)},
        causes=(_cause(run, series.name, value, usual),),
        remedy=Remedy(
            f"Look at the inputs of {steps(int(series.step[row]), int(series.step[last]))} beside those before: scale, "
            "repetition, masking, decoding.",
            {},
            "print(inputs.float().mean(), inputs.float().std(), inputs.unique().numel())",
        ),
    )


def _bounds(value: np.ndarray, z: float, change: float, relative: bool) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), float64[T]: what a value may be, from the batches before its block of 32; unbounded at first.

    ``change`` is relative to the typical magnitude, or in log units.
    """
    low, high = np.full(len(value), -np.inf), np.full(len(value), np.inf)
    for start in range(LEAST_ROWS, len(value), BLOCK):
        before = value[max(0, start - 512) : start]
        before = before[np.isfinite(before)]
        if len(before) < LEAST_ROWS // 2:
            continue
        middle = float(np.median(before))
        scale = MAD_TO_SD * float(np.median(np.abs(before - middle)))
        room = max(z * scale, change * max(abs(middle), scale) if relative else change)
        low[start : start + BLOCK] = min(middle - room, float(np.quantile(before, 0.01)))
        high[start : start + BLOCK] = max(middle + room, float(np.quantile(before, 0.99)))
    return low, high


def _cause(run: bool, name: str, value: float, usual: float) -> Cause:
    what = f"{name} is {number(value)} where {number(usual)} is usual"
    return Cause("data-change", 0.7, supports=(what, "it lasts")) if run else Cause("bad-batch", 0.7, supports=(what,))


RULE = Rule(
    id="odd-input",
    severity=Severity.WARNING,
    needs=("|".join(WATCHED),),
    check=odd_input,
    remedy="Look at the named batches.",
)
