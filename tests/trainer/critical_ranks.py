"""What torchrun runs for test_on_critical.py: rank 0 alone finds something critical at one step of every attempt.

Usage: torchrun -m tests.trainer.critical_ranks RUNS CONFIG.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from monitor import Monitor
from tests.trainer.test_on_critical import AT, finding
from trainer.config import from_record
from trainer.loop import train
from trainer.place import new_run
from trainer.stop import StopFlag, end_with_parent

STEP = Monitor.step


def and_find(self: Any, *given: Any, **named: Any) -> None:
    STEP(self, *given, **named)
    if self.rank == 0 and self.step_number == AT:
        self._answer(finding({"optimizer.lr": 1e-4}, onset=7))


if __name__ == "__main__":
    end_with_parent()
    Monitor.step = and_find
    config = from_record(json.loads(Path(sys.argv[2]).read_text()), source=sys.argv[2])
    first = os.environ["RANK"] == "0"
    train(config, new_run(config, Path(sys.argv[1])) if first else None, StopFlag())
