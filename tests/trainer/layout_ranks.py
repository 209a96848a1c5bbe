"""What torchrun runs for test_layouts.py: several small trainings one after the other, in one start of torch.

Usage: torchrun -m tests.trainer.layout_ranks RUNS CONFIG.json PLAN.json. PLAN lists trainings: the name of a run,
then overrides of CONFIG; a name that is there already is resumed. Prints nothing; the runs are the result.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from tests.trainer.two_ranks import again, fresh
from trainer.config import from_record
from trainer.loop import train
from trainer.stop import StopFlag, end_with_parent


def main() -> None:
    end_with_parent()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    runs, config, plan = (Path(word) for word in sys.argv[1:])
    base = json.loads(config.read_text())
    begun: set[str] = set()
    for name, *overrides in json.loads(plan.read_text()):
        wanted = from_record(base, [f"name={name}", *overrides])
        there = name in begun or any(f"-{name}-" in path.name for path in runs.glob("*"))
        wanted, place = again(wanted, runs, name, overrides) if there else (wanted, fresh(wanted, runs))
        dist.barrier()  # nobody looks for the runs that the first is making
        train(wanted, place, StopFlag())
        begun.add(name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
