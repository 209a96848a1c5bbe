"""What every reader of a foreign format yields, and what it has to say beside its rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monitor.runfile.format import MAX_COLUMNS, as_number

MAX_NAME = 200
"""Characters of a foreign name that are kept; our judgement."""
MAX_DEPTH = 8
"""Levels of nested JSON whose numbers are taken; our judgement."""
_MOMENTS = frozenset(("num", "mean", "std"))
"""How StyleGAN and EDM log a value."""
_WORDS = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


SPLITS = ("mode", "split", "phase", "stage", "set", "subset", "partition")
"""Columns and keys whose word says which data a row is of."""
_VALIDATION = frozenset(("val", "valid", "validation", "eval", "evaluation", "test", "testing", "dev"))
_COUNTERS = frozenset(("epoch", "iter", "iteration", "step", "global_step", "batch"))


@dataclass(slots=True)
class Row:
    """Numbers that a source gave together."""

    step: int | None
    """None: the source has none here; one is found by name, or the row is counted."""
    time: float | None
    """Unix seconds; None: the source does not say."""
    values: dict[str, float]
    """By the source's own names; NaN and infinities as it gave them."""
    fresh: bool = False
    """The first row of a further file of the same source: what goes back here was resumed."""


@dataclass(slots=True)
class Account:
    """What the reading of a source found out beside its rows. Filled while the rows are read."""

    name: str | None = None
    """What the source calls the run."""
    config: dict[str, Any] | None = None
    planned_steps: int | None = None
    outcome: str | None = None
    """``finished`` or ``crashed`` where the source says so; None: it does not."""
    reason: str | None = None
    origins: dict[str, str] = field(default_factory=dict)
    """Name -> what else is to be said of it, such as that it is a mean since the row before."""
    _said: dict[str, list[Any]] = field(default_factory=dict)

    def say(self, topic: str, text: str, count: int = 1) -> None:
        """Note that something could not be read or was guessed; each topic becomes one message, with how often."""
        entry = self._said.setdefault(topic, [text, 0])
        entry[1] += count

    @property
    def messages(self) -> list[str]:
        """One per topic: its first text, and how many there were."""
        return [text if count < 2 else f"{text} ({count:,} in all)" for text, count in self._said.values()]


@dataclass(frozen=True, slots=True)
class Source:
    """One training log of another tool."""

    format: str
    """In words: ``TensorBoard``, ``CSV``, ..."""
    path: Path
    """The file, or the folder of the files."""
    name: str
    """What the run is called unless told otherwise."""
    read: Callable[[Account], Iterator[Row]]
    fingerprint: Callable[[int | None], tuple[int, str]]
    """Identifies the source while it grows: ``(size, hash)`` of its beginning; with a size, the hash of that much."""
    inner: str = ""
    """Which of the path's several runs."""
    resumes: bool = False
    """A counter that starts again is the same run, taken up anew: several files of one folder."""


def number_of(value: Any) -> float | None:
    """The number that ``value`` is or spells (``1.5``, ``NaN``, ``-inf``); None for booleans and everything else."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 64:
            return None
        return float(text) if _NUMBER.fullmatch(text) else _WORDS.get(text.lower().removeprefix("+"))
    return as_number(value)


def step_of(value: float | None) -> int | None:
    """A step as an integer; None when it is none, or beyond what a run can hold."""
    if value is None or not math.isfinite(value) or value != int(value) or not 0 <= value < 1 << 53:
        return None
    return int(value)


def of_split(values: dict[str, float], word: object) -> dict[str, float]:
    """``values`` under ``val/`` where ``word`` says that a row is of data which is not trained on; else as they are."""
    if not isinstance(word, str) or word.strip().lower() not in _VALIDATION:
        return values
    return {name if name.lower() in _COUNTERS else f"val/{name}": value for name, value in values.items()}


def flat(record: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, float]:
    """The numbers of nested mappings by path: ``{"a": {"b": 1}}`` gives ``{"a/b": 1.0}``. Lists, texts are left out."""
    found: dict[str, float] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"[:MAX_NAME]
        if isinstance(value, Mapping) and value.keys() == _MOMENTS:
            value = value["mean"]
        if isinstance(value, Mapping) and depth < MAX_DEPTH:
            found.update(flat(value, f"{name}/", depth + 1))
        elif (number := number_of(value)) is not None:
            found[name] = number
        if len(found) > MAX_COLUMNS:
            break
    return found
