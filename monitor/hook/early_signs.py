"""Early signs of trouble: from the first one on every step is measured by every probe for a while.

An incident is found by rules that read the run, later and with hindsight. What they need is measured only every so many
steps, so that it costs nothing; here is decided, from what every step tells anyway, when it is worth its price. A sign
is not a finding: most are followed by nothing, and all that they change is how densely the next steps are recorded.
Rows arrive here in groups (``rows.py``), so an outlier arms up to three steps after its own; a loss, gradient or scale
that broke arms at once.
Non-finite values are looked at in ``nonfinite.py``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np

from monitor.hook.probe import ARMED_STEPS, Decoded, Probe, Stat

WINDOW = 64
FEWEST = 32
"""Steps of a window, and how many must be in it before a value can stand out. Our judgement."""
OUTLIER_Z = 6.0
"""Robust standard deviations of the logarithm."""
LEVEL_Z = 3.0
LEVEL_ROWS = 5
"""Deviations above which the loss must lie in so many steps running to have gone to another level: units that died at
once, or labels that are others, raise it by less than an outlier, and for good. Our judgement."""
LARGE_RMS = 2.0
"""Of g²/v̂, where updates outgrow what Adam expects: Wortsman et al. 2023, "Stable and low-precision training", 3.4.
Rare tokens' embeddings pass it now and then in healthy trainings, so it must stand out as well."""
LOGIT_GROWTH = 2.0
"""Growth of the attention logits' bound since it was last looked at."""
LARGE_LOGITS = 50.0
"""A bound below leaves the softmax soft; growing from a small initialisation up to here is learning. Our judgement."""
SHARE_ARMED = 1 / 50
"""Most of the steps that may be measured densely, beyond a first window: it makes such a step about a quarter longer
(a GPT of 1 M parameters on two cores), and a training that is restless all the time must not pay more than half a
percent for that."""


class EarlySigns(Probe):
    """Looks at every row and arms all probes; measures nothing itself."""

    name = "early signs"

    def __init__(self) -> None:
        super().__init__()
        self._windows = {"grad_norm_preclip": Outliers(), "train_loss": Outliers()}
        self._scale = 0.0
        self._level = Level()
        self._rms = Outliers()
        self._logits: np.ndarray | None = None
        self._rows = 0
        self._armed_until = 0
        self._armed_steps = 0

    def due(self, step: int, since_start: int) -> bool:
        """Never: rows come by themselves."""
        return False

    def row_complete(self, step: int, row: Decoded) -> Mapping[str, float]:
        """Look for a sign in what ``step`` has shown."""
        sign = self._sign(row)
        self._rows += 1  # not the step: a resumed attempt begins at a large one
        allowed = ARMED_STEPS + SHARE_ARMED * self._rows
        if sign is not None and step > self._armed_until and self._armed_steps + ARMED_STEPS <= allowed:
            self._armed_until = step + ARMED_STEPS
            self._armed_steps += ARMED_STEPS
            self.watch.arm(ARMED_STEPS)
            self.watch.tell("early_sign", step=step, text=f"{sign}; the next {ARMED_STEPS} steps are measured in full")
        return {}

    def _sign(self, row: Decoded) -> str | None:
        values = row.scalars
        found = [
            f"{name} {values[name]:.4g} stands {z:.0f} deviations above the last {WINDOW} steps"
            for name, window in self._windows.items()
            if (z := window.add(values.get(name, math.nan))) > OUTLIER_Z
        ]
        if self._level.add(values.get("train_loss", math.nan)):
            found.append(f"train_loss has stood {LEVEL_Z:.0f} deviations above the steps before for {LEVEL_ROWS} steps")
        scale = values.get("loss_scale", 0.0)
        if 0 < scale < self._scale:
            found.append(f"the loss scale fell from {self._scale:g} to {scale:g}")
        self._scale = scale
        rms = _largest(row.layers.get("adam_rms"))
        if self._rms.add(rms) > OUTLIER_Z and rms > LARGE_RMS:
            found.append(f"the gradient is {rms:.2g} times what Adam's second moment expects in one layer")
        if self._logits_grew(row.modules.get("attention_logit_bound")):
            found.append("the attention logits of a module have doubled")
        return found[0] if found else None

    def _logits_grew(self, stat: Stat | None) -> bool:
        if stat is None:
            return False
        bound, present = stat if isinstance(stat, tuple) else (stat, np.ones(len(stat), bool))
        before, self._logits = self._logits, np.where(present, bound, np.nan)
        if before is None:
            return False
        with np.errstate(invalid="ignore"):
            return bool((self._logits > np.maximum(LOGIT_GROWTH * before, LARGE_LOGITS)).any())


class Outliers:
    """Tells how far the newest value of a positive series stands above the last ones.

    Median and median absolute deviation of the logarithm: a gradient's norm varies by factors. Only a value that is
    larger than all in the window is looked at closer, so that a quiet step costs a comparison.
    """

    def __init__(self) -> None:
        self._logs: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> float:
        """Robust z of ``value``, 0 when it is not the largest, not positive, or there is too little to compare with."""
        if not (math.isfinite(value) and value > 0):
            return 0.0
        log = math.log(value)
        z = 0.0
        if len(self._logs) >= FEWEST and log > max(self._logs):
            before = np.array(self._logs)
            middle = float(np.median(before))
            deviation = 1.4826 * float(np.median(np.abs(before - middle)))
            z = (log - middle) / max(deviation, 1e-3)
        self._logs.append(log)
        return z


class Level:
    """Tells when a positive series has gone to a higher level. What is normal is taken again every eighth step."""

    def __init__(self) -> None:
        self._logs: deque[float] = deque(maxlen=WINDOW)
        self._raised: list[float] = []
        self._bar = math.inf
        self._rows = 0

    def add(self, value: float) -> bool:
        """Whether ``value`` is the last one that was needed; the new level is normal then."""
        if not (math.isfinite(value) and value > 0):
            return False
        log = math.log(value)
        if log > self._bar:
            self._raised.append(log)
            if len(self._raised) < LEVEL_ROWS:
                return False
            self._logs.clear()
            self._logs.extend(self._raised)
            self._raised, self._bar = [], math.inf
            return True
        self._logs.extend(self._raised)  # they were not the beginning of anything
        self._raised = []
        self._logs.append(log)
        self._rows += 1
        if len(self._logs) >= FEWEST and self._rows % 8 == 0:
            before = np.array(self._logs)
            middle = float(np.median(before))
            deviation = 1.4826 * float(np.median(np.abs(before - middle)))
            self._bar = middle + LEVEL_Z * max(deviation, 1e-3)
        return False


def _largest(stat: Stat | None) -> float:
    if stat is None:
        return 0.0
    values = stat[0][stat[1]] if isinstance(stat, tuple) else stat
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else 0.0
