"""Primitive C: a slow rise over the best level reached, by an anchored CUSUM; and where it turned upward."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from monitor.diagnosis.primitives.continued import Continued
from monitor.diagnosis.primitives.gate import marked
from monitor.diagnosis.primitives.medians import MAD_TO_SD, median_of_sorted

REFRESH = 8
"""The scale is taken again after this many calm rows."""
LEVEL_SHARE = 0.4
"""Scatter of the median of ten independent rows, in standard deviations of one: 1.25 / sqrt(10)."""
ALIKE = 1.5
"""Multiple of it from which on rows are not independent, but alike for some steps: chance gives less. Our judgement."""
WANDER_ROWS = 500
"""Rows per bucket of the memory of recovered rises; the largest of the last one to two buckets counts."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One slow rise over the best level reached. ``onset``, ``fired``, ``last`` and ``peak`` are rows."""

    onset: int
    """Row after the evidence was last at zero: where the rise began."""
    fired: int
    """Row at which the evidence was enough."""
    last: int
    """Last row at which the level was still raised."""
    peak: int
    """Row of the highest short-term level."""
    reference: float
    """The best level reached before, in the series' unit."""
    peak_level: float
    """Highest median of the last ten rows during the rise, in the series' unit."""
    last_level: float
    """Median of the last ten rows at ``last``, in the series' unit."""
    score: float
    """Evidence when it fired, in standard deviations added up."""
    over: bool = False
    """The level came back to the reference."""

    @property
    def rise(self) -> float:
        """Relative rise at the peak: 0.1 is +10 %."""
        return self.peak_level / self.reference - 1


@dataclass(frozen=True, slots=True)
class DriftTrack:
    """The anchored CUSUM's view of a whole series."""

    score: np.ndarray
    """float64[T], the evidence S; NaN where there is no reference yet."""
    reference: np.ndarray
    """float64[T], in the series' unit; NaN where ``score`` is."""
    drifts: tuple[Drift, ...]


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """Thresholds of the anchored CUSUM."""

    k: float = 1.0
    """Standard deviations that a row may lie above the reference for free."""
    h: float = 12.0
    """Evidence needed, in standard deviations added up."""
    cap: float = 4.0
    """Largest evidence one row can give, so that one outlier cannot fire."""
    effect: float = 0.05
    """Smallest relative rise of the median of the last ten rows over the reference."""
    clear: float = 0.02
    """The drift is over when that rise is below this again."""
    window: int = 50
    """Rows of the rolling median whose running minimum is the reference."""
    least: int = 20
    """Rows before the first reference. Our judgement."""
    short: int = 10
    """Rows of the short-term median."""
    scale_floor: float = 0.01
    """Smallest scale, in log units."""
    wander_factor: float = 1.5
    """A rise must also exceed this multiple of the largest rise that the run recently recovered from on its own
    without alarm; our judgement, for data whose difficulty varies over hundreds of steps."""
    noise_factor: float = 1.0
    """A rise must also exceed this many standard deviations of one row. The median of ten rows scatters by about 0.4 of
    them, and the running minimum lies below the level by as much; our judgement."""


class DriftDetector:
    """One-sided, anchored CUSUM on log(value), one row at a time, memory bounded by the window.

    The reference is the running minimum of a rolling median, so it may only fall and cannot absorb the drift it is
    looking for. The scale is the larger of what first differences and the scatter about the rolling median give
    (smoothed logs have tiny differences), taken only while there is no evidence of a rise. Values <= 0 have no
    logarithm and are skipped: a rule that needs ratios of such a series abstains.
    """

    def __init__(self, settings: DriftSettings) -> None:
        self.settings = settings
        self.drifts: list[Drift] = []
        self._row = -1
        self._wander = [0.0, 0.0]
        self._wander_start = 0
        self._forget()

    def _forget(self) -> None:
        self._window: deque[float] = deque()
        self._sorted: list[float] = []
        self._short: deque[float] = deque(maxlen=self.settings.short)
        self._differences: deque[float] = deque(maxlen=2 * self.settings.window)
        self._residuals: deque[float] = deque(maxlen=2 * self.settings.window)
        self._since_scale = 0
        self._reference = math.inf
        self._levels: deque[float] = deque(maxlen=2 * self.settings.window)
        self._scale = math.nan
        self._alike = 1.0
        """How much more the short-term medians scatter than those of independent rows would; 1 where they do not."""
        self._evidence = 0.0
        self._onset = -1
        self._excursion = 0.0
        self._open: Drift | None = None

    def gate(self) -> None:
        """The rows to come are a new situation: end any drift and look for a new reference."""
        if self._open is not None:
            self._close()
        self._forget()

    def push(self, value: float, effect: float) -> tuple[float, float]:
        """Take the next row; returns (evidence, reference), NaN where there is no reference yet."""
        self._row += 1
        if not (math.isfinite(value) and value > 0):
            return math.nan, math.nan
        u = math.log(value)
        ready = len(self._window) >= self.settings.least
        if ready:
            self._accumulate(u, effect)
        self._update(u)
        if not ready:
            return math.nan, math.nan
        return self._evidence, math.exp(self._reference)

    def _accumulate(self, u: float, effect: float) -> None:
        settings = self.settings
        z = min((u - self._reference) / self._scale, settings.cap)
        before = self._evidence
        # Rows that are alike say together what one says alone.
        add = (z - settings.k) / self._alike**2
        # Bounded, so that a drift that has ended is seen to have ended.
        self._evidence = min(max(0.0, before + add), 4 * settings.h)
        if before == 0.0 and self._evidence > 0.0:
            self._onset = self._row
        level = median_of_sorted(sorted([*self._short, u][-settings.short :]))
        rise = level - self._reference
        if self._open is not None:
            self._follow(level, rise)
            return
        self._excursion = max(self._excursion, rise)
        if self._evidence > settings.h and rise > self._bar(effect):
            self._open = Drift(
                onset=self._onset, fired=self._row, last=self._row, peak=self._row, reference=math.exp(self._reference),
                peak_level=math.exp(level), last_level=math.exp(level), score=self._evidence,
            )  # fmt: skip
        elif self._evidence == 0.0 and rise < math.log1p(settings.clear):
            self._remember_wander()

    def _bar(self, effect: float) -> float:
        settings = self.settings
        by_noise = settings.noise_factor * self._scale * self._alike
        return max(math.log1p(effect), settings.wander_factor * max(self._wander), by_noise)

    def _follow(self, level: float, rise: float) -> None:
        assert self._open is not None
        if rise < math.log1p(self.settings.clear):
            self._close()
            return
        value = math.exp(level)
        higher = value > self._open.peak_level
        self._open = replace(
            self._open,
            last=self._row,
            last_level=value,
            peak=self._row if higher else self._open.peak,
            peak_level=value if higher else self._open.peak_level,
        )

    def _close(self) -> None:
        assert self._open is not None
        self.drifts.append(replace(self._open, over=True))
        self._open, self._evidence, self._excursion = None, 0.0, 0.0

    def _remember_wander(self) -> None:
        """An excursion ended without alarm: it belongs to this run's own wander."""
        if self._row - self._wander_start >= WANDER_ROWS:
            self._wander, self._wander_start = [0.0, self._wander[0]], self._row
        self._wander[0] = max(self._wander[0], self._excursion)
        self._excursion = 0.0

    def _update(self, u: float) -> None:
        settings = self.settings
        calm = self._evidence == 0.0 and self._open is None
        if calm and self._short:
            self._differences.append(abs(u - self._short[-1]))
        self._short.append(u)
        self._window.append(u)
        insort(self._sorted, u)
        if len(self._window) > settings.window:
            del self._sorted[bisect_left(self._sorted, self._window.popleft())]
        middle = self._sorted[len(self._sorted) // 2]
        if self._open is None and len(self._short) == settings.short:
            self._levels.append(median_of_sorted(sorted(self._short)))
        if calm:
            self._residuals.append(abs(u - middle))
        if len(self._window) < settings.least:
            return
        if self._open is None:
            self._reference = min(self._reference, middle)
        self._since_scale += calm
        if math.isnan(self._scale) or self._since_scale >= REFRESH:
            self._since_scale = 0
            by_difference = median_of_sorted(sorted(self._differences)) / math.sqrt(2)
            by_residual = median_of_sorted(sorted(self._residuals))
            self._scale = max(MAD_TO_SD * max(by_difference, by_residual), settings.scale_floor)
            if len(self._levels) >= 3 * settings.short:
                ratio = _scatter(list(self._levels), settings.short) / (LEVEL_SHARE * self._scale)
                self._alike = ratio if ratio > ALIKE else 1.0

    def finish(self) -> tuple[Drift, ...]:
        """Every drift so far, the one still going on last."""
        return (*self.drifts, self._open) if self._open is not None else tuple(self.drifts)


def _scatter(levels: list[float], apart: int) -> float:
    """Standard deviation, robust, of the levels, from their changes over ``apart`` rows about the usual change."""
    changes = sorted(after - before for before, after in zip(levels, levels[apart:], strict=False))
    usual = median_of_sorted(changes)
    return MAD_TO_SD * median_of_sorted(sorted(abs(change - usual) for change in changes)) / math.sqrt(2)


def anchored_cusum(
    value: np.ndarray,
    settings: DriftSettings | None = None,
    *,
    effect: np.ndarray | None = None,
    gates: Iterable[int] = (),
    continued: Continued[DriftDetector] | None = None,
) -> DriftTrack:
    """Slow rises of ``value`` (float64[T]) over the best level it has reached.

    Args:
        effect: float64[T], the smallest relative rise that counts at each row; None takes ``settings.effect``.
        gates: rows at which a new situation begins (primitive G).
        continued: what was made of the same series when it was shorter, with the same settings.
    """
    settings = settings or DriftSettings()
    count = len(value)
    track, detector = (continued or Continued()).over(
        lambda: DriftDetector(settings),
        _push,
        value,
        np.full(count, settings.effect) if effect is None else effect,
        marked(count, gates),
    )
    return DriftTrack(track[:, 0], track[:, 1], detector.finish())


def _push(detector: DriftDetector, row: list[float]) -> tuple[float, float]:
    value, effect, gated = row
    if gated:
        detector.gate()
    return detector.push(value, effect)


def turning_row(value: np.ndarray) -> int:
    """Row at which a series turned upward: the best of a bend (slope changes) and a step (level changes).

    Least squares on log(value), values <= 0 and non-finite ones left out, outliers pulled in to four robust standard
    deviations. The CUSUM's own onset, where its evidence was last zero, comes late: the free ``k`` standard deviations
    have to be climbed first. 0 when there are fewer than six usable rows.
    """
    rows = np.flatnonzero(np.isfinite(value) & (value > 0))
    if len(rows) < 6:
        return 0
    u = np.log(value[rows])
    smooth = np.array([np.median(u[max(0, i - 2) : i + 3]) for i in range(len(u))])
    spread = MAD_TO_SD * float(np.median(np.abs(u - smooth)))
    u = np.clip(u, smooth - 4 * spread, smooth + 4 * spread)
    t = np.arange(len(u), dtype=np.float64)
    best, misfit = 0, math.inf
    for knot in range(2, len(u) - 2):
        for late in (np.maximum(t - knot, 0.0), (t >= knot).astype(np.float64)):
            design = np.column_stack([np.ones_like(t), t, late])
            residual = u - design @ np.linalg.lstsq(design, u, rcond=None)[0]
            error = float(residual @ residual)
            if error < misfit:
                best, misfit = knot, error
    return int(rows[best])
