"""For each rule, in the module of its name: runs on which it fires, near misses on which it stays silent, and runs on
which it cannot tell.

A near miss looks guilty: most differ from a firing case by one number, on the other side of a threshold.
"""

from __future__ import annotations

from importlib import import_module

from monitor.diagnosis.rules import RULES
from tests.monitor.diagnosis.cases.drawn import Case


def _table(name: str) -> dict[str, tuple[Case, ...]]:
    modules = {rule.id: import_module(f"{__name__}.{rule.id.replace('-', '_')}") for rule in RULES}
    return {rule: getattr(module, name) for rule, module in modules.items()}


FIRES, NEAR_MISSES, ABSTAINS = map(_table, ("FIRES", "NEAR_MISSES", "ABSTAINS"))
