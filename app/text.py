"""Other people's words as text: names, tags, log lines and messages never become markup, links or pictures."""

from __future__ import annotations

import html
import math
import re
import time

_PUNCTUATION = re.compile(r"([!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~])")
_JOINER = "\u2060"
"""Word joiner: invisible and without width. Put where an escape is not enough, because Streamlit replaces arrows and
links bare addresses after the markdown has been parsed."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LONGEST = 300


def plain(text: object, longest: int = _LONGEST) -> str:
    """``text`` on one line, without control or text-direction characters, cut to ``longest`` with an ellipsis."""
    line = _CONTROL.sub("\ufffd", str(text).replace("\r", " ").replace("\n", " ").replace("\t", " "))
    return line if len(line) <= longest else line[: longest - 1] + "…"


def markdown(text: object, longest: int = _LONGEST) -> str:
    """``text`` for a Streamlit label, title or caption: every ASCII punctuation mark is escaped.

    Arrows (``->``, ``>=``), addresses (``http://``, ``www.``, ``a@b``) and ``:name:`` forms are broken by an invisible
    joiner as well: Streamlit works on them after parsing.
    """
    line = plain(text, longest)
    line = re.sub(r"([<>=!\-~])(?=[<>=\-])", rf"\1{_JOINER}", line)
    line = re.sub(r"(?i)(https?|ftp|mailto|www)(?=[.:])", rf"\1{_JOINER}", line)
    line = re.sub(r":(?=[\w+\-/]+:)", f":{_JOINER}", line).replace("@", f"{_JOINER}@{_JOINER}")
    return _PUNCTUATION.sub(r"\\\1", line)


def plotly(text: object, longest: int = 80) -> str:
    """``text`` for a Plotly title, axis, legend or hover: no tag, no entity, no template variable survives."""
    return html.escape(plain(text, longest), quote=False).replace("%{", "%&#123;")


# ---- numbers and times for the page -------------------------------------------------------------------------------


def number(value: float | None, digits: int = 4) -> str:
    """``value`` with ``digits`` significant digits; a dash when nothing was measured."""
    if value is None:
        return "–"
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** max(digits + 2, 6) or size < 1e-3:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:.{min(decimals, 8)}f}".replace("-", "−")


def nats(loss: float | None) -> str:
    """``2.314 nats``; no unit on what is no number."""
    return f"{number(loss)} nats" if loss is not None and math.isfinite(loss) else number(loss)


def count(value: int | None) -> str:
    """A whole number with thin spaces between thousands; a dash for None."""
    return "–" if value is None else f"{int(value):,}".replace(",", "\u202f")


def rate(value: float | None, unit: str) -> str:
    """A speed with an SI prefix: ``12.4k tokens/s``."""
    if value is None or not math.isfinite(value):
        return "–"
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (limit if prefix != 'k' else 1e3):.3g}{prefix} {unit}"
    return f"{value:,.0f} {unit}".replace(",", "\u202f") if abs(value) >= 100 else f"{value:.3g} {unit}"


def duration(seconds: float | None) -> str:
    """``8 s``, ``3 min 20 s``, ``2 h 05 min``, ``3 d 4 h``; a dash for None."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def ago(then: float | None, now: float | None = None) -> str:
    """``12 s ago``; ``just now`` below two seconds, also for a clock that is a little ahead."""
    if then is None:
        return "never"
    passed = (time.time() if now is None else now) - then
    return "just now" if passed < 2 else f"{_coarse(passed)} ago"


def _coarse(seconds: float) -> str:
    for limit, size, unit in ((100, 1, "s"), (5_400, 60, "min"), (129_600, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
