"""Tokens per second of the trainer, beside a bare loop of the same model on the same batches.

    python -m tests.bench.trainer_speed [--quick] [--rounds N] [--threads N] [--steps N]

The bare loop is what one would write by hand: batches, forward, backward, clip, optimizer, the loss read every tenth
step. The trainer is the real one with its display, its checks between steps and, with the monitor on, everything that
it measures by default, landscape samples included. Evaluation and checkpoints are off in both: they are no cost of a
step. Each is a process of its own, in turns, medians of the rounds; the first steps warm up. Both draw the same batches
from the same weights, so that equal losses show equal work.

Processor time is that of all threads; on a busy machine it is the figure to trust. Memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from tests.bench.report import Line, bars, save, table
from tests.bench.run_directory import ROOT, Rounds, child
from trainer import loop
from trainer.config import TrainConfig
from trainer.place import new_run
from trainer.stop import StopFlag
from trainer.tasks import build_task

KINDS = {"bare": "bare loop", "unmonitored": "trainer, monitor off", "trainer": "trainer, monitor on"}
WARM = 20
"""Steps before the clock starts: every probe measures the first ten."""
STEPS = 200
"""Timed steps: every cadence comes round at least once in them, that of the landscape too."""
GOAL = 0.99


class Stopwatch:
    """Reads the clocks after each step; ``result`` is what lies between the warm-up and the last step."""

    def __init__(self) -> None:
        self.stamps: list[tuple[float, float]] = []

    def lap(self) -> None:
        self.stamps.append((time.perf_counter(), time.process_time()))

    def result(self, tokens_per_step: int, warm: int) -> dict[str, float]:
        steps = len(self.stamps) - warm
        wall, cpu = (after - before for before, after in zip(self.stamps[warm - 1], self.stamps[-1], strict=True))
        return {
            "step_ms": wall / steps * 1e3,
            "cpu_ms": cpu / steps * 1e3,
            "tokens_per_s": tokens_per_step * steps / wall,
            "tokens_per_cpu_s": tokens_per_step * steps / cpu,
            "peak_mb": peak_mb(),
        }


def peak_mb() -> float:
    """Largest resident set of this process so far, in MB; NaN where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return math.nan
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1024 * 1024 if sys.platform == "darwin" else 1024)


def bare_loop(config: TrainConfig, lap: Callable[[], None]) -> float:
    """The whole training in one function; the last loss."""
    torch.manual_seed(config.seed)
    task = build_task(config)
    model = task.build_model()
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    chosen, shape = config.optimizer, config.schedule
    groups = [{"params": matrices, "weight_decay": chosen.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, chosen.lr, (chosen.beta1, chosen.beta2), chosen.eps, fused=True)
    order = torch.randperm(task.train_size, generator=torch.Generator().manual_seed(config.seed * 1_000_003))
    loss = torch.zeros(())
    for step in range(1, config.steps + 1):
        warm, after = step / shape.warmup_steps, max(1, config.steps - shape.warmup_steps)
        done = (step - 1 - shape.warmup_steps) / after
        cosine = shape.min_lr_ratio + (1 - shape.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = chosen.lr * (warm if done < 0 else cosine)
        batch = task.train_batch(order[(step - 1) * config.batch_size : step * config.batch_size])
        logits = model(batch.inputs)
        loss = functional.cross_entropy(logits.view(-1, logits.shape[-1]), batch.targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip.max_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.4f}", file=sys.stderr)
        lap()
    return loss.item()


def trainer(config: TrainConfig, lap: Callable[[], None], folder: Path) -> float:
    """The real thing; the last loss."""
    losses: list[Tensor] = []
    step = loop.training_step

    def timed(session: Any, mon: Any, display: Any) -> None:
        step(session, mon, _Reading(display, losses))
        lap()

    with mock.patch.object(loop, "training_step", timed):
        loop.train(config, new_run(config, folder), StopFlag())
    return float(losses[-1])


class _Reading:
    """The display, with the loss that it is given kept: the newest alone, as a tensor."""

    def __init__(self, display: Any, losses: list[Tensor]) -> None:
        self._display = display
        self._losses = losses

    def step(self, step: int, tokens: int, lr: float, loss: Tensor, *more: Any) -> None:
        self._losses[:] = [loss]
        self._display.step(step, tokens, lr, loss, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._display, name)


def measured(kind: str, config: TrainConfig, warm: int) -> dict[str, float]:
    """One training of one kind in this process."""
    watch = Stopwatch()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if kind == "bare":
        loss = bare_loop(config, watch.lap)
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            loss = trainer(config, watch.lap, Path(folder))
    return {**watch.result(config.tokens_per_step, warm), "loss": loss}


def config_of(kind: str, steps: int, threads: int | None, quick: bool) -> TrainConfig:
    """The trainer's default training, its evaluation and checkpoints left out."""
    values: dict[str, Any] = {
        "steps": steps, "threads": threads, "monitor": {"enabled": kind == "trainer"},
        "evaluation": {"every_steps": None, "batches": 1}, "checkpoint": {"every_steps": None},
    }  # fmt: skip
    if quick:
        values |= {"batch_size": 2, "model": {"n_layer": 1, "n_head": 2, "d_model": 16}}
        values |= {"task": {"seq_len": 16, "max_data_mib": 0.25}, "schedule": {"warmup_steps": 2}}
    return TrainConfig(**values)


def lines_of(found: Rounds) -> list[Line]:
    """The trainer's figures as shares of the bare loop's, round by round."""
    lines: list[Line] = []
    for kind in ("unmonitored", "trainer"):
        for name, of in (("tokens_per_cpu_s", "tokens per second of processor time"), ("tokens_per_s", "tokens/s")):
            pairs = zip(found.found["bare"][name], found.found[kind][name], strict=True)
            ratios = sorted(one / bare for bare, one in pairs)
            beside = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
            goal = GOAL if kind == "trainer" else None
            what = f"{KINDS[kind]}, {of}, of the bare loop's"
            lines.append(Line(what, statistics.median(ratios), "x", goal, True, beside))
        ratio = found.median(kind, "peak_mb") / found.median("bare", "peak_mb")
        beside = f"{found.median(kind, 'peak_mb'):.0f} MB to {found.median('bare', 'peak_mb'):.0f} MB, of which torch "
        lines.append(Line(f"{KINDS[kind]}, peak memory, of the bare loop's", ratio, "x", beside=beside + "is most"))
    return lines


def main(quick: bool | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and a few steps: whether it works")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--kind", choices=KINDS, help="one training in this process, its figures as JSON")
    options = parser.parse_args([] if quick is not None else None)
    quick = options.quick or bool(quick)
    warm, steps = (2, 6) if quick else (WARM, options.steps)
    if options.kind:
        answer, sys.stdout = sys.stdout, sys.stderr
        config = config_of(options.kind, warm + steps, options.threads, quick)
        print(json.dumps(measured(options.kind, config, warm)), file=answer, flush=True)
        return
    threads = options.threads or (1 if quick else torch.get_num_threads())
    given = ["--steps", str(steps), "--threads", str(threads), *(["--quick"] if quick else [])]
    found = Rounds()
    rounds = 1 if quick else options.rounds
    for number_of_round in range(rounds):
        turn = list(KINDS)
        for kind in turn[number_of_round % 3 :] + turn[: number_of_round % 3]:
            words = [sys.executable, "-m", "tests.bench.trainer_speed", "--kind", kind, *given]
            found.add(kind, child(words, timeout=900, threads=threads))
    if found.skipped:
        return
    lines = lines_of(found)
    title = f"trainer's default GPT, {threads} thread(s), {rounds} rounds of {steps} steps"
    print(table(title, lines))
    for kind, name in KINDS.items():
        print(f"  {name}: {found.median(kind, 'step_ms'):.2f} ms a step ({found.range(kind, 'step_ms')}), "
              f"{found.median(kind, 'cpu_ms'):.2f} ms of processor time ({found.range(kind, 'cpu_ms')}), "
              f"{found.median(kind, 'tokens_per_s'):,.0f} tokens/s, loss {found.median(kind, 'loss'):.4f}")  # fmt: skip
    rates = {name: found.median(kind, "tokens_per_s") for kind, name in KINDS.items()}
    more = {"threads": threads, "steps": steps, "quick": quick, "cpus": os.cpu_count(), "rounds": dict(found.found)}
    charts = [bars("Training speed", rates, "tokens/s", "trainer")]
    print("  written:", *(str(path.relative_to(ROOT)) for path in save("trainer_speed", lines, more, charts)))


if __name__ == "__main__":
    main()
