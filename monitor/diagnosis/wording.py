"""Numbers as a reader wants them in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float) -> str:
    """Three significant digits; ``NaN``, ``+Inf`` and ``-Inf`` by name."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}"


def times(ratio: float) -> str:
    """``x3.9``, ``x12``, ``x1.2e+05``."""
    return f"x{ratio:.2g}" if ratio < 10 or ratio >= 1e5 else f"x{ratio:.0f}"


def percent(share: float) -> str:
    """A relative rise: ``+18 %``, ``+2.5 %``."""
    return f"{100 * share:+.2g} %" if abs(share) < 0.1 else f"{100 * share:+.0f} %"


def steps(first: int, last: int) -> str:
    """``step 7`` or ``steps 7 to 9``."""
    return f"step {first}" if first == last else f"steps {first} to {last}"


def count(n: int, noun: str) -> str:
    """``1 layer``, ``2 layers``, ``3 losses``, ``4 batches``."""
    if n == 1:
        return f"1 {noun}"
    return f"{n} {noun}es" if noun.endswith(("s", "tch")) else f"{n} {noun}s"


def word_for_incidents(onsets: Sequence[int]) -> str:
    """``1 incident, at step 300``; ``2 incidents, the first at step 300``."""
    where = "at" if len(onsets) == 1 else "the first at"
    return f"{count(len(onsets), 'incident')}, {where} step {min(onsets, default=0)}"
