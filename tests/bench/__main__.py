"""``python -m tests.bench``: every benchmark in turn. Each prints its figures as ratios taken in one run."""

from __future__ import annotations

import importlib
import pkgutil

import tests.bench


def main() -> None:
    for module in pkgutil.iter_modules(tests.bench.__path__, "tests.bench."):
        if module.name.endswith("__main__"):
            continue
        print(f"== {module.name}", flush=True)
        importlib.import_module(module.name).main()


if __name__ == "__main__":
    main()
