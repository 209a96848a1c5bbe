"""How steady a loss is, from its values alone: nothing of this is recorded, any reader makes it from ``train_loss``.

What is told of a step follows from the ``2 * WINDOW`` values up to it, so that of a live run only what is new is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from monitor.signals import Signal, unit_of

WINDOW = 128
SIGMAS = 6.0
"""Window and limit of a spike as OLMo-core's SkipStepOptimizer has them (rolling_interval_length, sigma_factor). The
share of such steps is the spike score of "2 OLMo 2 Furious" (2025), there with 7 deviations of the last 1,000."""
FEWEST = WINDOW // 2
"""Values that must be in a window before it says anything; OLMo-core's choice, too."""
STRIDE = 32
"""Steps from one ``loss_deviation`` to the next: a quarter of a window."""


def loss_deviation(loss: Signal) -> Signal:
    """Robust standard deviation of the logarithm of the loss about its trend, over the last ``WINDOW`` values.

    From the differences d of neighbours, so that no trend needs to be fitted: 1.4826 · median |d| / √2, which for
    independent normal noise is its standard deviation. A loss that is not finite or not positive leaves its two
    differences out. Every ``STRIDE``-th value has one, where half of ``FEWEST`` differences are there.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        moves = np.abs(np.diff(np.log(loss.value)))
    moves[~np.isfinite(moves)] = np.nan
    ends = np.arange(FEWEST, len(loss), STRIDE)
    found = np.full(len(ends), np.nan)
    early = ends < WINDOW
    for at in np.flatnonzero(early):
        found[at] = _middle(moves[None, : ends[at]])[0]
    if not early.all():
        windows = np.lib.stride_tricks.sliding_window_view(moves, WINDOW)[ends[~early] - WINDOW]
        found[~early] = _middle(windows)
    there = np.isfinite(found)
    return _signal("loss_deviation", loss.step[ends[there]], found[there] * (1.4826 / np.sqrt(2)))


def _middle(moves: np.ndarray) -> np.ndarray:
    """float64[N]: medians of the rows of ``moves`` [N, W] over what is not NaN; NaN where that is fewer than half."""
    ordered = np.sort(moves, axis=1)  # NaN comes last
    count = np.isfinite(ordered).sum(axis=1)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, moves.shape[1] - 1)
    rows = np.arange(len(ordered))
    return np.where(2 * count >= FEWEST, (ordered[rows, low] + ordered[rows, high]) / 2, np.nan)


def spikes(loss: Signal) -> np.ndarray:
    """bool[T]: not finite, or above the mean of the ``WINDOW`` values before by ``SIGMAS`` standard deviations.

    Values before that are not finite do not count; where fewer than ``FEWEST`` do, only what is not finite is a spike.
    """
    bad = ~np.isfinite(loss.value)
    clean = np.where(bad, 0.0, loss.value)
    count = _sums((~bad).astype(float))
    enough = count >= FEWEST
    count = np.maximum(count, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = _sums(clean) / count
        variance = np.maximum(_sums(clean * clean) - count * mean * mean, 0.0) / (count - 1)
        far = clean > mean + SIGMAS * np.sqrt(variance)
    return bad | (enough & far)


def loss_spike_share(loss: Signal) -> Signal:
    """Share of the last ``WINDOW`` values that are :func:`spikes`; from the ``FEWEST``-th value on."""
    total = np.concatenate([[0], np.cumsum(spikes(loss))])
    ends = np.arange(FEWEST, len(loss) + 1)
    begins = np.maximum(ends - WINDOW, 0)
    share = (total[ends] - total[begins]) / (ends - begins)
    return _signal("loss_spike_share", loss.step[ends - 1], share)


def _sums(values: np.ndarray) -> np.ndarray:
    """float64[T]: for each place the sum of the ``WINDOW`` values before it, or of as many as there are.

    One running sum would carry the rounding of a spike of 1e9 through the rest of the run. So windows are put together
    from the end of one block of ``WINDOW`` values and the beginning of the next: nothing else is in their sums.
    """
    length = len(values)
    blocks = np.zeros((-(-length // WINDOW) + 1, WINDOW))
    blocks.reshape(-1)[:length] = values
    before = np.zeros((len(blocks), WINDOW))  # sum of what precedes a place in its block
    before[:, 1:] = np.cumsum(blocks[:, :-1], axis=1)
    after = np.zeros((len(blocks), WINDOW))  # sum from that place on in the block before
    after[1:] = np.cumsum(blocks[:-1, ::-1], axis=1)[:, ::-1]
    return (before + after).reshape(-1)[:length]


def _signal(name: str, step: np.ndarray, value: np.ndarray) -> Signal:
    return Signal(name, step, value, unit_of(name))


DERIVED: dict[str, tuple[str, Callable[[Signal], Signal]]] = {
    "loss_deviation": ("train_loss", loss_deviation),
    "loss_spike_share": ("train_loss", loss_spike_share),
}
"""What a reader makes: from which recorded signal, and how."""


@dataclass(frozen=True, slots=True)
class Made:
    """A derived signal with what it was made from."""

    source: Signal
    result: Signal


def derived(name: str, source: Signal, before: Made | None = None) -> Made:
    """``name`` of :data:`DERIVED`, made from ``source``; what a shorter source has given before is taken over."""
    make = DERIVED[name][1]
    done = len(before.source) if before is not None else 0
    if before is None or done < 3 * WINDOW or not _begins(source, before.source):
        return Made(source, make(source))
    start = (done // WINDOW - 3) * WINDOW  # on the border of a block, so that not even the rounding differs
    piece = make(Signal(source.name, source.step[start:], source.value[start:], source.unit))
    new = int(np.searchsorted(piece.step, source.step[done - 1], side="right"))
    step, value = before.result.step, before.result.value
    return Made(source, _signal(name, np.append(step, piece.step[new:]), np.append(value, piece.value[new:])))


def _begins(longer: Signal, shorter: Signal) -> bool:
    """Whether ``longer`` begins with exactly what ``shorter`` is."""
    length = len(shorter)
    return np.array_equal(longer.step[:length], shorter.step) and np.array_equal(
        longer.value[:length], shorter.value, equal_nan=True
    )
