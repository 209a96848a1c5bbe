"""What a sweep varies: ``optimizer.lr=1e-4..1e-2:log``, ``model.n_layer=1..4``, ``optimizer.kind=adamw,sgd``."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.errors import ConfigError
from trainer.config import FormField, TrainConfig, form_fields, with_values

MOST_FIELDS = 20
"""More than a picture of parallel axes shows (our judgement)."""
MOST_CHOICES = 50
FORM = "Write LOW..HIGH, LOW..HIGH:log or A,B,C, such as optimizer.lr=1e-4..1e-2:log"


@dataclass(frozen=True, slots=True)
class Range:
    """All numbers between two, both included; whole ones where the field is a whole number."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def draw(self, random_: random.Random) -> float | int:
        """A value, uniform in the number or, with ``log``, in its logarithm."""
        if self.whole and not self.log:
            return random_.randint(int(self.low), int(self.high))
        # Half a unit further on both sides, so that the ends are as likely as the others.
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        value = math.exp(random_.uniform(math.log(low), math.log(high))) if self.log else random_.uniform(low, high)
        return int(min(max(round(value), self.low), self.high)) if self.whole else min(max(value, low), high)

    def record(self) -> dict[str, Any]:
        """As a plan keeps it."""
        return {"low": self.low, "high": self.high, "log": self.log, "whole": self.whole}

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{':log' if self.log else ''}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def draw(self, random_: random.Random) -> Any:
        """One of them, each as likely."""
        return random_.choice(self.values)

    def record(self) -> dict[str, Any]:
        """As a plan keeps it."""
        return {"values": list(self.values)}

    def __str__(self) -> str:
        return ",".join("none" if value is None else str(value) for value in self.values)


Space = Mapping[str, Range | Choice]
"""By the dotted name of the field."""


def parse_space(texts: Sequence[str], base: TrainConfig) -> dict[str, Range | Choice]:
    """What ``NAME=LOW..HIGH`` and ``NAME=A,B`` ask for; the field accepts each end and each choice.

    Raises:
        ConfigError: which text is wrong, what was found and what is accepted.
    """
    if not texts:
        raise ConfigError(f"Nothing is varied, so every trial would be the same. {FORM}")
    if len(texts) > MOST_FIELDS:
        raise ConfigError(f"{len(texts)} fields are varied; at most {MOST_FIELDS} are accepted.")
    known = {field.name: field for field in form_fields()}
    space: dict[str, Range | Choice] = {}
    for text in texts:
        name, equals, wanted = (part.strip() for part in text.partition("="))
        if not equals or not wanted:
            raise ConfigError(f"--vary {text}: not of the form NAME=VALUES. {FORM}")
        if name in space:
            raise ConfigError(f"--vary {text}: {name} is varied twice. Give all its values at once.")
        if name not in known:
            with_values(base, {name: wanted})  # refuses it in the configuration's own words
            raise ConfigError(f"--vary {text}: {name} cannot be varied.")
        space[name] = _parse(text, known[name], wanted, base)
    return space


def read_space(record: Any) -> dict[str, Range | Choice]:
    """The space in a plan's file.

    Raises:
        ConfigError: it is none.
    """
    try:
        if not 1 <= len(record) <= MOST_FIELDS:
            raise ValueError(f"{len(record)} fields")
        return {str(name): _read(one) for name, one in record.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the sweep's plan says in no way we know what is varied ({error}).") from None


def _read(record: Mapping[str, Any]) -> Range | Choice:
    if "values" in record:
        values = tuple(record["values"])
        if not 1 <= len(values) <= MOST_CHOICES or not all(isinstance(v, str | int | float | None) for v in values):
            raise ValueError("choices")
        return Choice(values)
    low, high = float(record["low"]), float(record["high"])
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (record["log"] and low <= 0):
        raise ValueError("range")
    return Range(low, high, bool(record["log"]), bool(record["whole"]))


def _parse(text: str, field: FormField, wanted: str, base: TrainConfig) -> Range | Choice:
    ends, _, scale = wanted.partition(":")
    low, dots, high = ends.partition("..")
    if not dots:
        values = tuple(_value(text, field, word.strip(), base) for word in wanted.split(","))
        if len(values) < 2 or len(set(map(repr, values))) < len(values) or len(values) > MOST_CHOICES:
            raise ConfigError(f"--vary {text}: 2 to {MOST_CHOICES} different values are needed. {FORM}")
        return Choice(values)
    if field.kind not in ("int", "float"):
        raise ConfigError(f"--vary {text}: {field.name} is no number, so it has no range. Write its values: A,B,C.")
    if scale not in ("", "log"):
        raise ConfigError(f"--vary {text}: {scale!r} after the colon is unknown; log is accepted.")
    first, last = (_value(text, field, word.strip(), base) for word in (low, high))
    if first is None or last is None or not first < last:
        raise ConfigError(f"--vary {text}: the first number must be less than the second. {FORM}")
    if scale and first <= 0:
        raise ConfigError(f"--vary {text}: a logarithmic range begins above 0, found {first:g}.")
    return Range(float(first), float(last), bool(scale), field.kind == "int")


def _value(text: str, field: FormField, word: str, base: TrainConfig) -> Any:
    """``word`` as the field's value, checked by the configuration itself."""
    value: Any = {"true": True, "false": False}.get(word.lower(), word) if field.kind == "bool" else word
    if field.optional and word.lower() in ("none", "off"):
        value = None
    elif field.kind in ("int", "float"):
        try:
            value = int(word) if field.kind == "int" else float(word)
        except ValueError:
            raise ConfigError(f"--vary {text}: {word!r} is no {_KINDS[field.kind]}. {FORM}") from None
    try:
        with_values(TrainConfig(), {field.name: value})
    except ConfigError as error:
        # What only does not fit together with other fields is judged trial by trial.
        if str(error).startswith((f"config: {field.name} = ", f"{field.name} = ")):
            raise ConfigError(f"--vary {text}: {str(error).removeprefix('config: ')}") from None
    return value


_KINDS = {"int": "whole number", "float": "number"}
