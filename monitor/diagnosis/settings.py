"""A rule with other thresholds than its own, by the names that its docstring explains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial, update_wrapper

from monitor.diagnosis.rule import Rule
from monitor.errors import ConfigError

Threshold = float | int


def thresholds_of(rule: Rule) -> dict[str, Threshold]:
    """Name and default of each threshold of ``rule``, in the order of its signature."""
    given = inspect.signature(rule.check).parameters.values()
    return {parameter.name: parameter.default for parameter in given if parameter.kind is parameter.KEYWORD_ONLY}


def rule_named(id: str, rules: Sequence[Rule]) -> Rule:
    """The rule of that id.

    Raises:
        ConfigError: there is none; the message names those there are.
    """
    known = {rule.id: rule for rule in rules}
    if id in known:
        return known[id]
    close = get_close_matches(id, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(f"no rule is called {id!r}.{hint} Rules: {', '.join(sorted(known))}.")


def with_thresholds(rule: Rule, values: Mapping[str, Threshold]) -> Rule:
    """``rule`` with some of its thresholds replaced.

    Raises:
        ConfigError: a name is not a threshold of this rule, or a value is not of its kind.
    """
    own = thresholds_of(rule)
    for name, value in values.items():
        if name not in own:
            accepted = ", ".join(f"{key}={default:g}" for key, default in own.items()) or "none"
            raise ConfigError(f"{rule.id} has no threshold {name!r}. Its thresholds and their defaults: {accepted}.")
        if isinstance(own[name], int) and value != int(value):
            raise ConfigError(f"{rule.id}: {name} = {value:g} must be a whole number, such as {own[name]}.")
    kinds = {name: type(own[name])(value) for name, value in values.items()}
    return replace(rule, check=update_wrapper(partial(rule.check, **kinds), rule.check))
