"""A small query language for runs. A run matches when every term does.

    word                 in the name, id, task, device, tags or notes;
                         "two words" is one term
    state:running        also tag, task, device, parent (forked from):
                         the whole value
    name:base            also id, notes: a part; name="base" is all of it
    loss<2.5             also best, step, planned, attempts, with any of
                         = != < <= > >=; loss=nan finds what went wrong
    duration>2h          also age; s, min, h, d, w
    created>=2026-01-31  a year, month, day or minute in local time;
                         > means after its end
    lr>=1e-3             any other name is one of the configuration, in
                         full (optimizer.lr) or its end (lr); where both
                         fit: config.steps=500
    -word                not; goes before any term

Case matters only in names of the configuration. What a run does not have
matches nothing, not even !=: -lr=0.1 also finds the runs without an lr,
lr!=0.1 does not.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from monitor.errors import GradiometerError
from monitor.runfile import format as fmt
from monitor.runfile.records import RunSummary

MAX_QUERY = 1000
"""Characters; a query may come with an address."""
MAX_TERMS = 40

STATES = (
    "starting", "running", "paused", "pending", "requeued", "finished", "stopped", "crashed", "stale", "lost"
)  # fmt: skip
"""``pending`` and ``requeued`` only where an engine is asked."""

T = TypeVar("T")
Config = Callable[[RunSummary], Mapping[str, Any]]
"""Gives the flat configuration of a run, such as ``RunIndex.config_of``."""


class QueryError(GradiometerError):
    """A query that is not understood; the message says what is accepted."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run as the terms see it."""

    summary: RunSummary
    now: float
    more: Mapping[str, str]
    """Further texts by field; the one called ``words`` is searched by plain words."""
    config: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Term:
    """One condition."""

    fits: Callable[[Candidate], bool]
    negated: bool
    field: str | None
    """None for a plain word."""
    key: str | None
    """Name in the configuration that it asks for."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query that was understood."""

    text: str
    terms: tuple[Term, ...]

    def asks_for(self, field: str) -> bool:
        """Whether any term is about ``field``."""
        return any(term.field == field for term in self.terms)

    def matches(
        self, summary: RunSummary, now: float, config_of: Config, more: Mapping[str, str] | None = None
    ) -> bool:
        """Whether a run matches. ``more`` has the texts of the fields that were named to :func:`parse`."""
        candidate = Candidate(summary, now, more or {}, lambda: config_of(summary))
        return all(term.fits(candidate) != term.negated for term in self.terms)

    def select(
        self,
        rows: Iterable[T],
        now: float,
        config_of: Config,
        summary: Callable[[T], RunSummary],
        more: Callable[[T], Mapping[str, str]] = lambda row: {},
    ) -> list[T]:
        """The rows that match, in their order."""
        if not self.terms:
            return list(rows)
        return [row for row in rows if self.matches(summary(row), now, config_of, more(row))]

    def unknown_keys(self, summaries: Iterable[RunSummary], config_of: Config) -> list[str]:
        """Names that the query asks for and that no run has in its configuration: most likely typing errors."""
        missing = {term.key for term in self.terms if term.key is not None}
        for summary in summaries:
            if not missing:
                break
            config = config_of(summary)
            missing -= {key for key in missing if _values(config, key)}
        return sorted(missing)


def parse(text: str, more: Collection[str] = ()) -> Query:
    """The query that ``text`` spells; every run matches an empty one.

    Args:
        more: further text fields that the caller knows of each run, compared as a whole.

    Raises:
        QueryError: what is ill-formed, what was found, and what is accepted.
    """
    if len(text) > MAX_QUERY:
        raise QueryError(f"the query has {len(text)} characters; at most {MAX_QUERY} are read. Shorten it.")
    if text.count('"') % 2:
        raise QueryError(f'{text!r}: a " is not closed. Put one at each end of the words that belong together.')
    tokens = _TOKEN.findall(text)
    if len(tokens) > MAX_TERMS:
        raise QueryError(f"the query has {len(tokens)} terms; at most {MAX_TERMS} are read. Shorten it.")
    return Query(text, tuple(_term(token, more) for token in tokens))


_TOKEN = re.compile(r'(?:[^\s"]|"[^"]*")+')
_FIELD = re.compile(r"([A-Za-z_][\w./-]*)(<=|>=|!=|<|>|=|:)(.*)", re.DOTALL)


def _term(token: str, more: Collection[str]) -> Term:
    negated = token.startswith("-") and len(token) > 1
    token = token[1:] if negated else token
    parts = _FIELD.fullmatch(token)
    if parts is None:
        word = token.replace('"', "").lower()
        return Term(lambda run: word in _words(run), negated, None, None)
    name, sign, value = parts[1], parts[2], parts[3].replace('"', "")
    if not value:
        raise QueryError(f"{token!r}: nothing follows {name}{sign}. Give a value, or quote the word to search for it.")
    field = name.lower()
    if field in more or field in _WHOLE or field in _PART:
        return Term(_text_test(token, field, sign, value, more), negated, field, None)
    if field in _NUMBERS:
        return Term(_number_test(token, field, sign, value), negated, field, None)
    if field == "created":
        return Term(_date_test(token, sign, value), negated, field, None)
    if name.startswith("config."):
        name = name.removeprefix("config.")
    elif sign == ":":
        known = ", ".join(sorted({*_WHOLE, *_PART, *_NUMBERS, "created", *more}))
        raise QueryError(
            f'{token!r}: nothing is called {name}. Choose from: {known}. Write "{token}" with quotes to search for the '
            f"text, {name}={value} to look into the configuration."
        )
    return Term(_config_test(token, name, sign, value), negated, "config", name)


def _words(run: Candidate) -> str:
    row = run.summary
    parts = (row.name, row.id, row.task, row.device, *row.tags, row.notes, run.more.get("words"))
    return "\n".join(part for part in parts if part).lower()


# Texts -------------------------------------------------------------------------------------------------------------

_WHOLE: dict[str, Callable[[RunSummary], tuple[str | None, ...]]] = {
    "state": lambda row: (row.state.word,),
    "tag": lambda row: row.tags,
    "task": lambda row: (row.task,),
    "device": lambda row: (row.device,),
    "parent": lambda row: (row.parent,),
}
_PART: dict[str, Callable[[RunSummary], str | None]] = {
    "name": lambda row: row.name,
    "id": lambda row: row.id,
    "notes": lambda row: row.notes,
}


def _text_test(token: str, field: str, sign: str, value: str, more: Collection[str]) -> Callable[[Candidate], bool]:
    if sign not in (":", "=", "!="):
        raise QueryError(f"{token!r}: {field} is a text and has no order. Write {field}:{value}.")
    value = value.lower()
    if field == "state" and value not in STATES:
        raise QueryError(f"{token!r}: no run is ever {value!r}. Choose from: {', '.join(STATES)}.")
    if field in _PART:
        part = _PART[field]
        if sign == ":":
            return lambda run: value in (part(run.summary) or "").lower()
        return lambda run: (text := part(run.summary)) is not None and (text.lower() == value) == (sign == "=")
    if field in more:
        return lambda run: field in run.more and (run.more[field].lower() == value) == (sign != "!=")
    whole = _WHOLE[field]

    def fits(run: Candidate) -> bool:
        texts = [text.lower() for text in whole(run.summary) if text is not None]
        return bool(texts) and (value in texts) == (sign != "!=")

    return fits


# Numbers and times -------------------------------------------------------------------------------------------------

_NUMBERS: dict[str, Callable[[RunSummary, float], float | None]] = {
    "step": lambda row, now: row.last_step,
    "steps": lambda row, now: row.last_step,
    "planned": lambda row, now: row.planned_steps,
    "attempts": lambda row, now: row.attempts,
    "loss": lambda row, now: row.last_loss,
    "best": lambda row, now: row.best_loss,
    "duration": lambda row, now: row.duration_s,
    "age": lambda row, now: None if row.created is None else now - row.created,
}
_SPANS = ("duration", "age")
_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(s|min|h|d|w|)")


def _equal(one: float, other: float) -> bool:
    """Equal as a person types it; NaN is NaN."""
    return math.isclose(one, other, rel_tol=1e-9) or (math.isnan(one) and math.isnan(other))


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": _equal,
    ":": _equal,
    "!=": lambda one, other: not _equal(one, other),
}


def _number_test(token: str, field: str, sign: str, value: str) -> Callable[[Candidate], bool]:
    wanted = _span(token, value) if field in _SPANS else _number(value)
    if wanted is None:
        raise QueryError(
            f"{token!r}: {field} is compared with a number, found {value!r}. Write for example {field}<2.5."
        )
    number, compare = _NUMBERS[field], _COMPARE[sign]

    def fits(run: Candidate) -> bool:
        found = fmt.as_number(number(run.summary, run.now))  # a step from outside may be too large for a float
        return found is not None and compare(found, wanted)

    return fits


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _span(token: str, value: str) -> float:
    parts = _SPAN.fullmatch(value.lower())
    if parts is None:
        raise QueryError(f"{token!r}: {value!r} is no span of time. Write 90s, 15min, 2h, 7d or 2w.")
    return float(parts[1]) * _SECONDS[parts[2]]


_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[Tt ](\d\d):(\d\d))?)?)?")


def _date_test(token: str, sign: str, value: str) -> Callable[[Candidate], bool]:
    first, after = _period(token, value)

    def fits(run: Candidate) -> bool:
        made = run.summary.created
        if made is None:
            return False
        if sign == "<" or sign == ">=":
            return (made < first) == (sign == "<")
        if sign == "<=" or sign == ">":
            return (made < after) == (sign == "<=")
        return (first <= made < after) == (sign != "!=")

    return fits


def _period(token: str, value: str) -> tuple[float, float]:
    """Unix time of the beginning of a year, month, day or minute, local time, and of the next one."""
    parts = _DATE.fullmatch(value)
    try:
        if parts is None:
            raise ValueError
        year, month, day, hour, minute = (int(part) if part else None for part in parts.groups())
        first = datetime(year or 0, month or 1, day or 1, hour or 0, minute or 0)
        if minute is not None:
            after = first + timedelta(minutes=1)
        elif day is not None:
            after = first + timedelta(days=1)
        elif month is not None:
            after = (first + timedelta(days=31)).replace(day=1)
        else:
            after = first.replace(year=first.year + 1)
        return first.timestamp(), after.timestamp()
    except (ValueError, OverflowError, OSError):
        raise QueryError(
            f"{token!r}: {value!r} is no date. Write created>2026, created>=2026-01-31 or created<2026-01-31T12:00; "
            "age<7d finds the runs of the last seven days."
        ) from None


# Configuration -----------------------------------------------------------------------------------------------------


def _values(config: Mapping[str, Any], key: str) -> list[Any]:
    """Values of the entries that ``key`` names, in full or by the end of their names."""
    if key in config:
        return [config[key]]
    end = "." + key
    return [value for name, value in config.items() if name.endswith(end)]


def _config_test(token: str, key: str, sign: str, value: str) -> Callable[[Candidate], bool]:
    number, compare = _number(value), _COMPARE[sign]
    ordered = sign in ("<", "<=", ">", ">=")
    if ordered and number is None:
        raise QueryError(
            f"{token!r}: {sign} compares numbers, found {value!r}. Write {key}{sign}0.001, or {key}={value} for a text."
        )
    text = value.lower()

    def fits_one(found: Any) -> bool:
        if number is not None and (measured := _as_number(found)) is not None:
            return compare(measured, number)
        return not ordered and (_spelled(found) == text) == (sign != "!=")

    return lambda run: any(fits_one(found) for found in _values(run.config(), key))


def _as_number(value: Any) -> float | None:
    """The number that an entry is or spells: YAML takes 1e-3 for a text."""
    return _number(value) if isinstance(value, str) else fmt.as_number(value)


def _spelled(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))).lower()
