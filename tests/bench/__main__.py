"""``python -m tests.bench [--quick]``: every benchmark in turn. Each prints its figures as ratios taken in one run.

With ``--quick`` only those that have a quick form, in that form: to see that they work.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys

import tests.bench


def main() -> None:
    quick = "--quick" in sys.argv
    for module in pkgutil.iter_modules(tests.bench.__path__, "tests.bench."):
        if module.name.endswith("__main__"):
            continue
        entry = getattr(importlib.import_module(module.name), "main", None)
        if entry is None:
            continue  # a part of another one
        has_quick = "quick" in inspect.signature(entry).parameters
        if quick and not has_quick:
            continue
        print(f"== {module.name}", flush=True)
        if has_quick:
            entry(quick=quick)
        else:
            entry()


if __name__ == "__main__":
    main()
