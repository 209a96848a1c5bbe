"""Primitive Z: a robust spike against a frozen baseline."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from monitor.diagnosis.primitives.continued import Continued
from monitor.diagnosis.primitives.gate import marked
from monitor.diagnosis.primitives.medians import MAD_TO_SD, median_of_sorted

UPPER_SD = 0.84
"""Share of a normal sample below its mean plus one standard deviation."""
REFRESH = 8
"""The baseline is fitted again after this many new rows, or after a sixth of its rows; one fit costs about 60 us."""
RECENT_SCALE_ROWS = 64
"""Rows from which the newer half of the baseline gives a scale of its own; fewer than 32 points scatter too much."""
TAIL_ROWS = 500
"""Rows per bucket of the tail memory; the largest of the last one to two buckets counts."""


@dataclass(frozen=True, slots=True)
class Spike:
    """One excursion above the series' own baseline. ``onset``, ``fired``, ``last`` and ``peak`` are rows."""

    onset: int
    """First row of the excursion: the first raised one, or the first above ``z_onset`` in an unbroken row before it."""
    fired: int
    """Row at which the detector could say so."""
    last: int
    """Last row above ``z_back``: the excursion is not over before it."""
    peak: int
    """Row of the largest value."""
    peak_value: float
    baseline: float
    """The value expected at ``onset``, in the series' unit; frozen for the whole excursion."""
    z: float
    """Largest robust z of the excursion."""
    raised: int
    """Number of raised rows, those above ``z_sustained`` and the smallest rise that counts."""
    sustained: bool
    """Whether several raised rows close together were seen (``z_sustained``), not one extreme row alone."""
    accepted: bool = False
    """It lasted so long that the new level became the baseline: a level shift."""
    over: bool = False
    """It has ended: several rows in a row were back inside the baseline, or the level was accepted."""
    logarithmic: bool = True
    """False where the baseline held values <= 0, so that differences were used instead of ratios."""

    @property
    def ratio(self) -> float:
        """Peak over baseline; infinite when the baseline is not positive."""
        return self.peak_value / self.baseline if self.baseline > 0 else math.inf


@dataclass(frozen=True, slots=True)
class SpikeTrack:
    """The robust spike detector's view of a whole series."""

    z: np.ndarray
    """float64[T]; NaN at rows without a baseline yet and at non-finite rows."""
    expected: np.ndarray
    """float64[T], in the series' unit; NaN where ``z`` is."""
    spikes: tuple[Spike, ...]


@dataclass(frozen=True, slots=True)
class SpikeSettings:
    """Thresholds of the robust spike detector."""

    effect: float = 0.08
    """Smallest relative rise that counts: +8 % for a loss. Stops quiet runs from alarming on +2 %."""
    scale_floor: float = 0.01
    """Smallest scale, in log units (or relative to the typical magnitude where values are not all positive)."""
    z_single: float = 9.0
    """One row fires above this."""
    z_sustained: float = 5.0
    """``sustained[0]`` of ``sustained[1]`` rows above this fire."""
    sustained: tuple[int, int] = (3, 5)
    window: int = 96
    """Baseline: this many latest unraised rows."""
    least: int = 24
    """Rows before the first judgement. Four blocks of six: our judgement."""
    recent: int = 16
    """The expected value is never below the median of this many latest unraised rows: where a falling curve flattens,
    the extrapolated trend alone would be too low. Our judgement."""
    z_onset: float = 3.0
    """Rows above this right before the first raised one belong to the excursion's onset."""
    z_back: float = 2.0
    """An excursion is over when ``sustained[1]`` rows in a row are unraised and their median z is below this."""
    accept: int = 60
    """Rows after which an excursion's level becomes the baseline."""
    z_confirmed: float = 6.0
    """One row fires above this when another signal confirms it. No step of six healthy language models had both loss
    and gradient norm above z = 6 (design notes, 1.1)."""
    confirmed_tail_factor: float = 1.25
    """Takes the place of ``tail_factor`` then; our judgement."""
    tail_factor: float = 2.5
    """A single row must also exceed this multiple of the largest z that the run has recently shown without alarm.
    Heavy-tailed noise (t(3)) passes z = 9 once per 1 000 rows; it seldom exceeds its own record 2.5 times over."""
    gate_effect: float = 0.5
    """Relative rise needed while the baseline is being rebuilt after a gate."""


class SpikeDetector:
    """Robust z against a frozen baseline, one row at a time, memory bounded by the window.

    The baseline is a falling straight line through the last ``window`` unraised rows: slope = min(0, median of the
    pairwise slopes of four block medians), scale = scatter about the line, that of the newer half when
    it is smaller, and at least the floor. Everything is done on
    log(value), so that one threshold serves all scales, unless the baseline holds values <= 0 (reinforcement learning,
    log-densities): there the value is divided by the baseline's median magnitude and used as it is, so "effect" is
    relative to that magnitude. A value <= 0 under a positive baseline is never a rise.
    """

    def __init__(self, settings: SpikeSettings) -> None:
        self.settings = settings
        self.spikes: list[Spike] = []
        self._row = -1
        self._forget()
        self._fallback: tuple[bool, float, float, float] | None = None
        self._tail = [0.0, 0.0]
        self._tail_start = 0

    def _forget(self) -> None:
        """Start a new baseline."""
        settings = self.settings
        self._history: deque[tuple[int, float]] = deque(maxlen=settings.window)
        self._recent: deque[float] = deque()
        self._recent_sorted: list[float] = []
        self._since_fit = 0
        self._fitted = False
        self._log, self._unit, self._slope, self._intercept, self._scale = True, 1.0, 0.0, 0.0, 1.0
        self._raised: deque[int] = deque()
        self._raised_values: list[tuple[int, float, float]] = []
        self._open: Spike | None = None
        self._held: list[tuple[int, float]] = []
        self._lately: deque[float] = deque(maxlen=self.settings.sustained[1])
        self._lead: int | None = None

    def gate(self) -> None:
        """The rows to come are a new situation: end any excursion and build a new baseline; until then only a rise
        beyond ``gate_effect`` over the old one counts."""
        if self._fitted and self._recent_sorted:
            self._fallback = (self._log, self._unit, self._recent_sorted[len(self._recent_sorted) // 2], self._scale)
        if self._open is not None:
            self._close(accepted=False)
        self._forget()

    def push(
        self, value: float, effect: float, least_value: float = -math.inf, confirmed: bool = False
    ) -> tuple[float, float]:
        """Take the next row; returns (z, expected value), NaN where there is no baseline.

        ``effect`` replaces the setting at this row; a row at or below ``least_value`` is never raised; ``confirmed``
        says that another signal is raised at this row too.
        """
        self._row += 1
        row = self._row
        if not math.isfinite(value):
            return math.nan, math.nan
        judged = self._judge(row, value, effect)
        if judged is None:
            self._join(row, value)
            return math.nan, math.nan
        z, rise, expected, needed = judged
        settings = self.settings
        if z <= settings.z_onset or rise <= needed:
            self._lead = None
        elif self._lead is None:
            self._lead = row
        if z <= settings.z_sustained or rise <= needed or value <= least_value:
            # A rise too small to count says nothing about the tail of rises that do.
            self._calm(row, value, z if rise > needed else min(z, settings.z_sustained))
        else:
            self._raise(row, value, z, expected, confirmed)
        return z, expected

    def _judge(self, row: int, value: float, effect: float) -> tuple[float, float, float, float] | None:
        """(z, rise, expected value, rise needed) of ``value``, rises in log units or in units of typical magnitude."""
        if self._fitted:
            log, unit, scale = self._log, self._unit, self._scale
            recent = self._recent_sorted[len(self._recent_sorted) // 2]
            base = max(self._intercept + self._slope * row, math.log(recent) if log else recent / unit)
        elif self._fallback is not None:
            log, unit, recent, scale = self._fallback
            base = math.log(recent) if log else recent / unit
            effect = max(effect, self.settings.gate_effect)
        else:
            return None
        expected = math.exp(base) if log else base * unit
        if log:
            rise = math.log(value) - base if value > 0 else -math.inf
            needed = math.log1p(effect)
        else:
            rise, needed = value / unit - base, effect
        return rise / scale, rise, expected, needed

    def _calm(self, row: int, value: float, z: float) -> None:
        """An unraised row."""
        spike = self._open
        if spike is None:
            self._remember_tail(row, z)
            self._join(row, value)
            return
        self._held.append((row, value))
        self._lately.append(z)
        if z > self.settings.z_back:
            self._open = replace(spike, last=row)
        within = self.settings.sustained[1]
        if len(self._lately) == within and median_of_sorted(sorted(self._lately)) <= self.settings.z_back:
            held = self._held
            self._close(accepted=False)
            for held_row, held_value in held[-within:]:
                self._join(held_row, held_value)
        else:
            self._accept_if_long(row)

    def _raise(self, row: int, value: float, z: float, expected: float, confirmed: bool) -> None:
        """A row above the baseline, strong enough to take part in an excursion."""
        settings = self.settings
        need, within = settings.sustained
        self._raised.append(row)
        self._raised_values.append((row, value, z))
        while self._raised[0] <= row - within:
            self._raised.popleft()
        sustained = len(self._raised) >= need
        single = settings.z_confirmed if confirmed else settings.z_single
        factor = settings.confirmed_tail_factor if confirmed else settings.tail_factor
        if self._open is not None:
            self._extend(row, value, z, sustained)
        elif sustained or z > max(single, factor * max(self._tail)):
            self._start(row, expected, sustained)
        else:
            self._remember_tail(row, z)
        self._raised_values = self._raised_values[-within:]

    def _start(self, row: int, expected: float, sustained: bool) -> None:
        members = [item for item in self._raised_values if item[0] > row - self.settings.sustained[1]]
        peak_row, peak_value, _ = max(members, key=lambda item: item[1])
        onset = members[0][0]
        if self._lead is not None and row - self._lead < self.settings.window:
            onset = min(onset, self._lead)
        self._open = Spike(
            onset=onset, fired=row, last=row, peak=peak_row, peak_value=peak_value, baseline=expected,
            z=max(item[2] for item in members), raised=len(members), sustained=sustained,
            logarithmic=self._log if self._fitted else bool(self._fallback and self._fallback[0]),
        )  # fmt: skip
        self._held = []
        self._lately.clear()

    def _extend(self, row: int, value: float, z: float, sustained: bool) -> None:
        spike = self._open
        assert spike is not None
        higher = value > spike.peak_value
        self._open = replace(
            spike,
            last=row,
            peak=row if higher else spike.peak,
            peak_value=value if higher else spike.peak_value,
            z=max(z, spike.z),
            raised=spike.raised + 1,
            sustained=spike.sustained or sustained,
        )
        self._held.append((row, value))
        self._lately.clear()
        self._accept_if_long(row)

    def _accept_if_long(self, row: int) -> None:
        """Take the level of an excursion that does not end as the new baseline."""
        if self._open is None or row - self._open.onset + 1 < self.settings.accept:
            return
        held = self._held
        self._close(accepted=True)
        self._forget()
        for held_row, held_value in held[-self.settings.window :]:
            self._join(held_row, held_value)

    def _close(self, *, accepted: bool) -> None:
        assert self._open is not None
        self.spikes.append(replace(self._open, accepted=accepted, over=True))
        self._open, self._held = None, []
        self._lately.clear()
        self._raised.clear()
        self._raised_values = []

    def _remember_tail(self, row: int, z: float) -> None:
        if row - self._tail_start >= TAIL_ROWS:
            self._tail, self._tail_start = [0.0, self._tail[0]], row
        if z > self._tail[0]:
            self._tail[0] = z

    def _join(self, row: int, value: float) -> None:
        """Let a row take part in the baseline."""
        self._history.append((row, value))
        self._recent.append(value)
        insort(self._recent_sorted, value)
        if len(self._recent) > self.settings.recent:
            del self._recent_sorted[bisect_left(self._recent_sorted, self._recent.popleft())]
        self._since_fit += 1
        known = len(self._history)
        if known >= self.settings.least and (not self._fitted or self._since_fit >= max(REFRESH, known // 6)):
            self._fit()

    def _fit(self) -> None:
        self._since_fit, self._fitted, self._fallback = 0, True, None
        rows = [row for row, _ in self._history]
        values = [value for _, value in self._history]
        self._log = min(values) > 0
        self._unit = 1.0 if self._log else (median_of_sorted(sorted(map(abs, values))) or 1.0)
        log, unit = math.log, self._unit
        u = [log(value) for value in values] if self._log else [value / unit for value in values]
        slope = min(0.0, _block_slope(rows, u, 4))
        self._slope = slope
        self._intercept, scale = _scatter(rows, u, slope)
        if len(u) >= RECENT_SCALE_ROWS:
            # A window that still holds the steep beginning fits no line; its newer half, with a slope of its own, may.
            newer = len(u) // 2
            rows, u = rows[newer:], u[newer:]
            scale = min(scale, _scatter(rows, u, _block_slope(rows, u, 2))[1])
        self._scale = max(scale, self.settings.scale_floor)

    def finish(self) -> tuple[Spike, ...]:
        """Every excursion so far, the one still going on last."""
        return (*self.spikes, self._open) if self._open is not None else tuple(self.spikes)


def _block_slope(x: Sequence[int], y: Sequence[float], blocks: int) -> float:
    """Median of the pairwise slopes between the medians of consecutive blocks (a coarse Theil-Sen slope)."""
    size = len(x) // blocks
    points = [(x[i * size + size // 2], median_of_sorted(sorted(y[i * size : (i + 1) * size]))) for i in range(blocks)]
    slopes = [(v - u) / (b - a) for i, (a, u) in enumerate(points) for b, v in points[i + 1 :]]
    return median_of_sorted(sorted(slopes))


def _scatter(x: Sequence[int], y: Sequence[float], slope: float) -> tuple[float, float]:
    """(intercept, scale) about the line of the given slope.

    The scale is 1.4826 * MAD or the upper standard deviation (84 % quantile less the median), whichever is larger: the
    second holds for a mixture in which every fifth batch is of a harder kind, where the MAD sees only the others.
    """
    flat = sorted([v - slope * u for u, v in zip(x, y, strict=True)])
    middle = median_of_sorted(flat)
    spread = median_of_sorted(sorted([abs(v - middle) for v in flat]))
    return middle, max(MAD_TO_SD * spread, flat[int(UPPER_SD * len(flat))] - middle)


def robust_spikes(
    value: np.ndarray,
    settings: SpikeSettings | None = None,
    *,
    effect: np.ndarray | None = None,
    least_value: np.ndarray | None = None,
    confirmed: np.ndarray | None = None,
    gates: Iterable[int] = (),
    continued: Continued[SpikeDetector] | None = None,
) -> SpikeTrack:
    """Excursions of ``value`` (float64[T]) above its own recent level.

    Args:
        effect: float64[T], the smallest relative rise that counts at each row; None takes ``settings.effect``.
        least_value: float64[T], rows at or below it are never raised.
        confirmed: bool[T], rows at which another signal is raised too.
        gates: rows at which a new situation begins (primitive G).
        continued: what was made of the same series when it was shorter, with the same settings.

    Non-finite rows are skipped: they belong to primitive E. An empty series gives an empty track.
    """
    settings = settings or SpikeSettings()
    count = len(value)
    track, detector = (continued or Continued()).over(
        lambda: SpikeDetector(settings),
        _push,
        value,
        np.full(count, settings.effect) if effect is None else effect,
        np.full(count, -math.inf) if least_value is None else least_value,
        np.zeros(count) if confirmed is None else confirmed,
        marked(count, gates),
    )
    return SpikeTrack(track[:, 0], track[:, 1], detector.finish())


def _push(detector: SpikeDetector, row: list[float]) -> tuple[float, float]:
    value, effect, least_value, confirmed, gated = row
    if gated:
        detector.gate()
    return detector.push(value, effect, least_value, bool(confirmed))
