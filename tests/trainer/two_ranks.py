"""What torchrun runs for test_parallel.py: several small trainings on two ranks, in one start of torch.

Usage: torchrun -m tests.trainer.two_ranks RUNS CONFIG.json. Prints nothing; the runs are the result.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch.distributed

from tests.trainer.conftest import Uneven
from trainer.allowance import Allowance
from trainer.config import TrainConfig, from_record
from trainer.loop import train
from trainer.place import Place, new_run, resumed_run
from trainer.stop import StopFlag, end_with_parent
from trainer.tasks import TASKS

RANK = int(os.environ.get("RANK", "0"))
UNEVEN = (
    "grad_accum_steps=2",
    "optimizer.kind=sgd",
    "optimizer.lr=0.5",
    "optimizer.momentum=0.0",
    "clip.max_norm=none",
)
SAMPLED = ("monitor.landscape_every=6", "monitor.landscape_share=1")


class StopsAtStep(StopFlag):
    """As if SIGTERM reached one rank, rank 1, in the middle of a step; rank 0 learns of it from rank 1 alone."""

    def __init__(self, asks: int) -> None:
        super().__init__()
        self.asks = asks

    @property
    def number(self) -> int:
        self.asks -= 1
        if RANK == 1 and self.asks < 0:
            self.request(signal.SIGTERM)
        return super().number


def fresh(config: TrainConfig, runs: Path) -> Place | None:
    return new_run(config, runs) if RANK == 0 else None


def again(
    config: TrainConfig, runs: Path, name: str, overrides: Sequence[str] = ()
) -> tuple[TrainConfig, Place | None]:
    if RANK != 0:
        return config, None
    (run_dir,) = (path for path in runs.iterdir() if f"-{name}-" in path.name)
    return resumed_run(run_dir, overrides, print)


def main() -> None:
    end_with_parent()
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    runs = Path(sys.argv[1])
    base = json.loads(Path(sys.argv[2]).read_text())

    straight = from_record(base, ["name=straight"])
    train(straight, fresh(straight, runs), StopFlag())

    # Rank 0 decides what is sampled: that rank 1 would see no room for it makes no difference.
    with mock.patch.object(Allowance, "room", -1.0) if RANK == 1 else nullcontext():
        sampled = from_record(base, ["name=sampled", *SAMPLED])
        train(sampled, fresh(sampled, runs), StopFlag())

    # Examples of unequal numbers of tokens, through a compiled forward.
    gpt, TASKS["gpt"] = TASKS["gpt"], lambda config: Uneven(gpt(config))
    uneven = from_record(base, ["name=uneven", *UNEVEN, "compile.enabled=true", "compile.backend=aot_eager"])
    train(uneven, fresh(uneven, runs), StopFlag())
    TASKS["gpt"] = gpt

    rough = [
        *("model.dropout=0.2", "grad_accum_steps=2", "ema.decay=0.9"),
        *("clip.kind=adaptive", "clip.warmup_steps=3", "clip.growth=1.0", "gradient_noise.eta=1e-6"),
    ]
    whole = from_record(base, ["name=whole", *rough])
    train(whole, fresh(whole, runs), StopFlag())

    halved = from_record(base, ["name=halved", *rough])
    # asked once before anything is built and once before each step: the sixth step is not begun
    outcome = train(halved, fresh(halved, runs), StopsAtStep(asks=6))
    assert (outcome.word, outcome.step) == ("stopped", 5), outcome
    config, place = again(halved, runs, "halved")
    train(config, place, StopFlag())
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
