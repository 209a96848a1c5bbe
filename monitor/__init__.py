"""Gradiometer's monitor: measures a training loop, keeps the run on disk, explains what went wrong.

    import monitor

    with monitor.attach(model, optimizer, run="runs") as mon:     # in the training script
        for batch in loader:
            ...
            mon.step(loss=loss)

    run = monitor.open_run("runs/20261122-103000-demo-1f2e")      # anywhere, without torch
    print(monitor.diagnose(run).to_text())

Importing this package is cheap and does not import torch: every name below is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monitor.alerts import Alerts as Alerts
    from monitor.diagnosis.engine import diagnose as diagnose
    from monitor.diagnosis.report import Report as Report
    from monitor.errors import ConfigError as ConfigError
    from monitor.errors import GradiometerError as GradiometerError
    from monitor.errors import MonitorWarning as MonitorWarning
    from monitor.errors import RunError as RunError
    from monitor.hook.attach import attach as attach
    from monitor.hook.handle import Monitor as Monitor
    from monitor.runfile.reader import Run as Run
    from monitor.runfile.reader import open_run as open_run
    from monitor.runfile.store import list_runs as list_runs
    from monitor.signals import CATALOGUE as CATALOGUE
    from monitor.signals import LayerMatrix as LayerMatrix
    from monitor.signals import Signal as Signal

_HOME = {
    # measuring, inside the training process (needs torch)
    "attach": "monitor.hook.attach",
    "Monitor": "monitor.hook.handle",
    "Alerts": "monitor.alerts",
    # reading a run
    "open_run": "monitor.runfile.reader",
    "Run": "monitor.runfile.reader",
    "list_runs": "monitor.runfile.store",
    # explaining it
    "diagnose": "monitor.diagnosis.engine",
    "Report": "monitor.diagnosis.report",
    # what the numbers are called
    "Signal": "monitor.signals",
    "LayerMatrix": "monitor.signals",
    "CATALOGUE": "monitor.signals",
    # what can go wrong
    "GradiometerError": "monitor.errors",
    "RunError": "monitor.errors",
    "ConfigError": "monitor.errors",
    "MonitorWarning": "monitor.errors",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'monitor' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
