"""An incident of the doctor's JSON in words: the page, the HTML file and the Markdown say the same of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from app import text
from monitor.signals import CATALOGUE, LAYER_CATALOGUE, MODULE_CATALOGUE, SignalSpec

_NONFINITE = {"NaN": "NaN", "Infinity": "∞", "-Infinity": "−∞"}
RULE_TITLES = {"non-finite": "non-finite values"}
STEPS_BEFORE = 60
"""Steps of the curves that are shown before an incident."""
STEPS_AFTER = 40
"""Steps that are shown after its end."""
MOST_STEPS_AFTER = 400
"""Steps after the onset of an incident that goes on and on."""
Fields = Mapping[str, Any]
"""An object of the doctor's JSON."""


def incident_key(event: Fields) -> str:
    """What the address calls an incident, or a finding: rule and onset, stable while the run grows."""
    return f"{event.get('id')}@{onset_of(event)}"


def onset_of(event: Fields) -> int | None:
    """Where it began; where it was noticed when that is not known."""
    step = event.get("onset_step")
    return event.get("first_step") if step is None else step


def span_of(event: Fields, last_step: int | None) -> tuple[int, int]:
    """First and last step of the curves around an incident."""
    onset = onset_of(event) or 0
    after = int(event.get("last_step") or onset) - onset + STEPS_AFTER
    most = (last_step or onset) - onset
    return onset - STEPS_BEFORE, onset + max(10, min(MOST_STEPS_AFTER, after, most))


def rule_title(rule: object) -> str:
    """``gradient-explosion`` in words."""
    return RULE_TITLES.get(str(rule), str(rule).replace("-", " ").replace("_", " "))


def cause_title(cause: Fields) -> str:
    """The cause in words."""
    return "something else" if cause.get("id") == "unknown" else rule_title(cause.get("id"))


def where(event: Fields) -> str:
    """``gradient explosion, steps 300 to 399, noticed at step 302; first layer head.weight``."""
    onset, first, last = onset_of(event), event.get("first_step"), event.get("last_step")
    words = f"{rule_title(event.get('id'))}, "
    words += (
        f"step {text.count(onset)}" if last in (None, onset) else f"steps {text.count(onset)} to {text.count(last)}"
    )
    if first is not None and first != onset:
        words += f", noticed at step {text.count(first)}"
    if event.get("layer"):
        words += f"; first layer {event['layer']}"
    return words + (f"; rank {event['rank']}" if event.get("rank") is not None else "")


def value(number: object, unit: str = "1") -> str:
    """A number of the JSON, where a non-finite one is a string, with its unit."""
    if isinstance(number, str):
        return _NONFINITE.get(number, number)
    if not isinstance(number, int | float):
        return text.number(None)
    said = text.number(float(number))
    return said if unit == "1" else f"{said} {unit}"


def strength(departure: Fields) -> str:
    """How far a signal went, in standard deviations of its own baseline: ``12 σ``, ``over 1000 σ``."""
    if departure.get("signal") == "lr":
        return "set"
    if isinstance(departure.get("value"), str):
        return "not finite"
    z = departure.get("z")
    if isinstance(z, str):
        return f"{value(z)} σ"
    return f"{z:.0f} σ" if isinstance(z, int | float) and z <= 1000 else "over 1000 σ"


def moved(event: Fields) -> list[dict[str, Any]]:
    """A row for every signal that left its baseline, in order: step, signal, layer, before, furthest, strength."""
    rows = []
    for departure in event.get("timeline") or []:
        spec = _spec(departure)
        unit = spec.unit if spec else "1"
        rows.append(
            {
                "step": departure.get("step"),
                "signal": str(departure.get("signal")),
                "layer": str(departure.get("layer") or ""),
                "before": value(departure.get("before"), unit),
                "furthest": value(departure.get("value"), unit),
                "strength": strength(departure),
            }
        )
    return rows


def _spec(departure: Fields) -> SignalSpec | None:
    name = str(departure.get("signal")).split("/", 1)[0]
    if departure.get("layer"):
        return LAYER_CATALOGUE.get(name) or MODULE_CATALOGUE.get(name)
    return CATALOGUE.get(name)


def findings_in(event: Fields, findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The findings of an incident, the one that gives it its summary first."""
    own = [findings[place] for place in event.get("findings") or [] if place < len(findings)]
    return sorted(own, key=lambda finding: finding.get("summary") != event.get("summary"))


def notes(report: Fields) -> list[dict[str, Any]]:
    """The findings that belong to no incident: for information."""
    taken = {place for event in report.get("incidents") or [] for place in event.get("findings") or []}
    return [finding for place, finding in enumerate(report.get("findings") or []) if place not in taken]


def evidence(finding: Fields) -> list[tuple[str, str]]:
    """The numbers behind a finding's summary, as ``(name, value)``."""
    measured = {name: item for name, item in (finding.get("evidence") or {}).items() if item not in (None, "", [])}
    return [(text.plain(name, 80).replace("_", " "), shown(item)) for name, item in measured.items()]


def shown(item: object) -> str:
    """A piece of evidence as text."""
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, list):
        return text.plain(", ".join(shown(part) for part in item), 200)
    if not isinstance(item, int | float):
        return text.plain(json.dumps(item, ensure_ascii=False) if isinstance(item, dict) else item, 200)
    return text.count(item) if isinstance(item, int) else text.number(item)


def cannot_tell(report: Fields) -> list[str]:
    """The rules that could not tell, each with the reason and what it lacks."""
    lines = []
    for rule in report.get("abstained") or []:
        reason = str(rule.get("reason"))
        needs = ", ".join(str(need) for need in rule.get("needs") or [] if str(need) not in reason)
        lacking = f" (needs {needs})" if needs else ""
        lines.append(f"{rule_title(rule.get('id'))}: {reason}{lacking}")
    return lines


def _spelled(item: object) -> str:
    """A value as the configuration writes it: ``none`` is what turns a thing off."""
    return "none" if item is None else json.dumps(item)


_MISSING = object()


def config_diff(config: Fields, patch: Fields) -> str:
    """``- optimizer.lr = 0.002`` and ``+ optimizer.lr = 0.001`` for each value of the patch."""
    lines = []
    for name, after in patch.items():
        before: Any = config
        for part in str(name).split("."):
            before = before.get(part, _MISSING) if isinstance(before, dict) else _MISSING
        if before is not _MISSING:
            lines.append(f"- {name} = {_spelled(before)}")
        lines.append(f"+ {name} = {_spelled(after)}")
    return "\n".join(lines)


def as_lines(values: Fields, prefix: str = "") -> str:
    """Nested values as ``optimizer.lr = 0.002`` lines."""
    lines: list[str] = []
    for name, item in values.items():
        if isinstance(item, dict):
            lines += [as_lines(item, f"{prefix}{name}.")] if item else []
        else:
            lines.append(f"{prefix}{name} = {text.plain(json.dumps(item, ensure_ascii=False, default=str), 400)}")
    return "\n".join(lines)
