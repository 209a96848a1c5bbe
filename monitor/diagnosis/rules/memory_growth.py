"""Memory grows with every step."""

from __future__ import annotations

import math

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number
from monitor.signals import Signal

WATCHED = {
    "gpu_memory_allocated_gib": "device memory",
    "rss_private_gib": "memory of the process",
    "rss_gib": "memory of the process",
}
LEAST_SAMPLES = 8
BLOCKS = 8
"""Stretches of as many steps in which the growth is looked at."""
MIB = 1 / 1024
"""In GiB."""


def memory_growth(signals: Signals, *, share: float = 0.03, mib: float = 32.0, p: float = 1e-4) -> Verdict:
    """The memory of the device or of the process rises steadily, without levelling off.

    Why it matters: it ends in an out-of-memory error, hours later and far from the mistake.

    Stays silent: on the growth of the first fifth of an attempt, in which caches and pools fill; on growth that slows
    down to less than half; on a few jumps, such as an import, a first evaluation, a larger buffer: what it grew by is
    eight times the median of eight stretches since it began; on steps up and down (longer sequences, evaluation); on
    files that are mapped and read bit by bit, where the memory was recorded without them.

    Thresholds: ``share`` of the level and ``mib`` MiB that it must have grown by so; ``p``, probability by Mann and
    Kendall's test that samples without a trend rise like that.

    Source: design notes F39; Mann 1945, https://doi.org/10.2307/1907187; pytscope and TraceML (leak rules).
    """
    judged = {name: _settled(signals.system(name)) for name in WATCHED}
    if all(len(series) < LEAST_SAMPLES for series in judged.values()):
        most = max(len(series) for series in judged.values())
        return Abstained(
            f"{count(most, 'sample')} of memory after the start, at least {LEAST_SAMPLES} are needed", tuple(WATCHED)
        )
    found = [
        _finding(signals, series, _first_seen(signals.system(name), share, mib, p))
        for name, series in judged.items()
        if _grows(series, share, mib, p) and not (name == "rss_gib" and len(judged["rss_private_gib"]))
    ]
    return found[:1]


def _first_seen(series: Signal, share: float, mib: float, p: float) -> int:
    """Step of the sample from which on the growth could be told, by bisection: what grows goes on growing."""
    low, high = LEAST_SAMPLES, len(series)
    while low < high:
        middle = (low + high) // 2
        cut = Signal(series.name, series.step[:middle], series.value[:middle], series.unit)
        low, high = (low, middle) if _grows(_settled(cut), share, mib, p) else (middle + 1, high)
    return int(series.step[low - 1])


def _settled(series: Signal) -> Signal:
    """The samples after the first fifth, the lowest of each step: an evaluation takes memory for a while."""
    keep = np.isfinite(series.value) & (series.value > 0)
    step, value = series.step[keep], series.value[keep]
    if len(step):
        first = np.flatnonzero(np.diff(step, prepend=step[0] - 1))
        step, value = step[first], np.minimum.reduceat(value, first)
    start = len(step) // 5
    return Signal(series.name, step[start:], value[start:], series.unit)


def _grows(series: Signal, share: float, mib: float, p: float) -> bool:
    if len(series) < LEAST_SAMPLES:
        return False
    since = series.between(_onset(series), None)
    if len(since) < LEAST_SAMPLES:
        return False
    more = np.diff(np.interp(np.linspace(since.step[0], since.step[-1], BLOCKS + 1), since.step, since.value))
    early, late = (float(np.median(half)) for half in np.split(more, 2))
    enough = BLOCKS * float(np.median(more)) > max(share * float(series.value[0]), mib * MIB)
    return enough and late > 0.5 * early and _chance_of_rise(series.value) < p


def _chance_of_rise(value: np.ndarray) -> float:
    """One-sided p-value of Mann and Kendall's test by its normal approximation; of at most 500 samples."""
    value = value[:: max(1, len(value) // 500)]
    n = len(value)
    rises = float(np.sign(value[None, :] - value[:, None])[np.triu_indices(n, 1)].sum())
    variance = n * (n - 1) * (2 * n + 5) / 18
    return 0.5 * math.erfc((rises - 1) / math.sqrt(2 * variance))


def _onset(series: Signal) -> int:
    """Step of the last sample before the growth, of which none after it has a tenth; the first one where it grew from
    the start."""
    level = float(np.median(series.value[:3]))
    low = np.flatnonzero(series.value <= level + 0.1 * (float(np.median(series.value[-3:])) - level))
    return int(series.step[low[-1] if len(low) and low[-1] > 0.15 * len(series.step) else 0])


def _finding(signals: Signals, series: Signal, told: int) -> Finding:
    first, last = _onset(series), int(series.step[-1])
    since = series.between(first, None)
    grown = float(since.value[-1] - since.value[0])
    per_step = grown / (last - first) * 1024
    tokens = signals["tokens"]
    device = series.name == "gpu_memory_allocated_gib"
    cause = Cause(
        "memory-leak",
        0.7,
        supports=(f"{number(per_step)} MiB more with every step", "it does not level off"),
        against=() if len(tokens) else ("not recorded: tokens per step, which would excuse longer sequences",),
    )
    return Finding(
        summary=f"The {WATCHED[series.name]} grew by {number(grown * 1024)} MiB from step {first} to {last}, "
        f"{number(per_step)} MiB a step, and goes on",
        onset_step=min(first, told),
        first_step=told,
        last_step=last,
        severity=Severity.WARNING,
        evidence={"signal": series.name, "mib_per_step": per_step, "grown_mib": grown * 1024},
        causes=(cause,),
        remedy=Remedy(
            "Look for what keeps tensors of past steps: a loss appended to a list with its graph, outputs kept for a "
            "metric, hooks that collect."
            + ("" if device else " With a level device: the loader or a cache of the host."),
            {},
            "losses.append(loss.item())  # not loss: it holds the whole graph of its step",
        ),
    )


RULE = Rule(
    id="memory-growth",
    severity=Severity.WARNING,
    needs=(),
    check=memory_growth,
    remedy="Find what keeps tensors of past steps.",
)
