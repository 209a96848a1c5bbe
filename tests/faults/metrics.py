"""Shares and figures of a set of scores, with Wilson intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np

from tests.faults.scoring import Score


@dataclass(frozen=True, slots=True)
class Share:
    """Hits among trials, with its 95 % interval."""

    hits: int
    trials: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.trials)

    def __str__(self) -> str:
        """``5/6 [0.44, 0.97]``; empty when nothing was to be scored."""
        if not self.trials:
            return ""
        low, high = self.interval
        return f"{self.hits}/{self.trials} [{low:.2f}, {high:.2f}]"

    def to_dict(self) -> dict[str, float | int | None]:
        low, high = self.interval
        share = self.hits / self.trials if self.trials else None
        return {"hits": self.hits, "trials": self.trials, "share": share, "low": low, "high": high}


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953, with z = 1.96."""
    if trials == 0:
        return 0.0, 1.0
    z, share = 1.96, hits / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def share(answers: Iterable[bool | None]) -> Share:
    """Of the answers that are not None."""
    given = [answer for answer in answers if answer is not None]
    return Share(sum(given), len(given))


def quantiles(values: Iterable[int | None]) -> tuple[float, float] | None:
    """Median and 90th percentile; None without values."""
    given = [value for value in values if value is not None]
    return (float(np.median(given)), float(np.quantile(given, 0.9))) if given else None


def onset_error(score: Score) -> int | None:
    if score.reported_onset is None or score.onset is None:
        return None
    return abs(score.reported_onset - score.onset)


def precision(scores: Sequence[Score], *, late_are_false: bool = True) -> Share:
    """True events among all events. Without ``late_are_false``, alarms after the window of a fault that goes on are
    left out, neither true nor false."""
    true = sum(score.true_events for score in scores)
    false = sum(score.false_events - (0 if late_are_false else score.late_events) for score in scores)
    return Share(true, true + false)


def _of_incidents(scores: Sequence[Score]) -> Share:
    counted = [score.incidents for score in scores if score.incidents is not None]
    true = sum(of[0] for of in counted)
    return Share(true, true + sum(of[1] for of in counted))


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often a first cause is right that was given a confidence in a band."""

    low: float
    high: float
    """Included where it is 1."""
    said: float
    """Mean confidence."""
    right: Share

    def to_dict(self) -> dict[str, object]:
        return {"low": self.low, "high": self.high, "said": self.said, "right": self.right.to_dict()}


BANDS = (0.0, 0.6, 0.75, 0.85, 0.95, 1.0)
"""Edges of the bands of confidence."""


def reliability(scores: Iterable[Score]) -> list[Reliability]:
    """The bands in which a confidence was given, of trainings whose fault was told."""
    given = [(s.confidence, s.cause_right) for s in scores if s.confidence is not None and s.cause_right is not None]
    found = []
    for low, high in pairwise(BANDS):
        band = [(said, right) for said, right in given if low <= said < high or said == high == 1]
        if band:
            said = sum(said for said, _ in band) / len(band)
            found.append(Reliability(low, high, said, share(right for _, right in band)))
    return found


def brier(scores: Iterable[Score]) -> float | None:
    """Mean squared distance of the first cause's confidence from whether it was right; 0 is best, 0.25 what 50 % for
    everything gives. None without a cause. Source: Brier 1950."""
    given = [
        (score.confidence - score.cause_right) ** 2
        for score in scores
        if score.confidence is not None and score.cause_right is not None
    ]
    return sum(given) / len(given) if given else None


@dataclass(frozen=True, slots=True)
class Figures:
    """Every metric of design note 3.4 over some trainings."""

    precision: Share
    precision_in_time: Share
    """The same without alarms after the window of a fault that goes on."""
    precision_of_incidents: Share
    """The same, where findings that join an incident are no alarms of their own."""
    manifest: Share
    """Recall on manifest faults."""
    silent: Share
    """Recall on silent faults."""
    unsorted: Share
    """Recall on faults that were not held against a twin."""
    per_thousand: float | None
    """False events per 1 000 healthy steps."""
    alarmed: Share
    """Healthy runs with any."""
    abrupt: tuple[float, float] | None
    """Median and 90th percentile of the onset error, in steps."""
    drift: tuple[float, float] | None
    lead: float | None
    """Median lead over the loss peak, in steps."""
    layer: Share
    cause: Share
    cause_in_three: Share
    fixed: Share
    reliability: list[Reliability]
    brier: float | None

    def to_dict(self) -> dict[str, object]:
        return {name: _plain(getattr(self, name)) for name in self.__slots__}


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.to_dict() if isinstance(value, Share | Reliability) else value


def figures(scores: Sequence[Score], windows: Callable[[str], int]) -> Figures:
    """The metrics over ``scores``; ``windows`` tells a case's window, which says whether its fault is abrupt."""
    broken = [score for score in scores if score.onset is not None]
    healthy = [score for score in scores if score.onset is None]
    steps = sum(score.steps for score in healthy)
    abrupt = [onset_error(score) for score in broken if windows(score.case) <= 20]
    drift = [onset_error(score) for score in broken if windows(score.case) > 20]
    lead = quantiles(score.lead for score in broken)
    return Figures(
        precision=precision(scores),
        precision_in_time=precision(scores, late_are_false=False),
        precision_of_incidents=_of_incidents(scores),
        manifest=share(score.hit for score in broken if score.silent is False),
        silent=share(score.hit for score in broken if score.silent is True),
        unsorted=share(score.hit for score in broken if score.silent is None),
        per_thousand=1000 * sum(score.false_events for score in healthy) / steps if steps else None,
        alarmed=share(score.false_events > 0 for score in healthy),
        abrupt=quantiles(abrupt),
        drift=quantiles(drift),
        lead=lead[0] if lead else None,
        layer=share(score.layer_right for score in broken),
        cause=share(score.cause_right for score in broken),
        cause_in_three=share(score.cause_in_three for score in broken),
        fixed=share(score.fixed for score in broken),
        reliability=reliability(broken),
        brier=brier(broken),
    )


def confusion(scores: Sequence[Score]) -> dict[str, dict[str, int]]:
    """Trainings by true cause and by the cause that was told first; ``no alarm`` where none was."""
    counted: dict[str, dict[str, int]] = {}
    for score in scores:
        if score.true_cause is not None:
            row = counted.setdefault(score.true_cause, {})
            told = score.causes[0] if score.causes else "no alarm" if score.reported_onset is None else "no cause"
            told = score.true_cause if score.cause_right else told  # another cause of the accept set is as right
            row[told] = row.get(told, 0) + 1
    return counted
