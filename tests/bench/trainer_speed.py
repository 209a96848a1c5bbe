"""Tokens per second of the trainer, beside a bare loop of the same model on the same batches.

    python -m tests.bench.trainer_speed [--quick] [--rounds N] [--threads N] [--steps N]

The bare loop is what one would write by hand: batches, forward, backward, clip, optimizer, the loss read every tenth
step. The trainer is the real one with its display, its checks between steps and, with the monitor on, everything that
it measures by default, landscape samples included. Evaluation and checkpoints are off in both: they are no cost of a
step. A process trains both in turns, block by block, so that a busy machine hits them alike; ratios are of all timed
steps of a process, medians of the rounds. The first block warms up. Both draw the same batches from the same weights,
so that equal losses show equal work. Memory is from short trainings that are alone in their process.

Processor time is that of all threads; on a busy machine it is the figure to trust.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
BLOCK = 20
"""Steps of a block; the first block is not timed: every probe measures the first ten steps."""
WARM = 40
"""Steps of the trainings that tell the memory."""
STEPS = 200
"""Timed steps: every cadence comes round at least once in them, that of the landscape too."""
GOAL = 0.99


class Blocks:
    """Time of each block of steps after the first: (wall, processor) seconds by who trained."""

    def __init__(self) -> None:
        self.spent: dict[str, list[tuple[float, float]]] = {"trainer": [], "bare": []}
        self._since = (0.0, 0.0)

    def begin(self) -> None:
        self._since = (time.perf_counter(), time.process_time())

    def end(self, who: str) -> None:
        now = (time.perf_counter(), time.process_time())
        self.spent[who].append((now[0] - self._since[0], now[1] - self._since[1]))

    def result(self, block: int) -> dict[str, float]:
        """The trainer's tokens per second as shares of the bare loop's, and milliseconds a step of both."""
        found: dict[str, float] = {}
        total: dict[tuple[str, str], float] = {}
        for who, blocks in self.spent.items():
            for clock, seconds in zip(("wall", "cpu"), zip(*blocks[1:], strict=True), strict=True):
                total[who, clock] = sum(seconds)
                found[f"{who}_{clock}_ms"] = sum(seconds) / (block * len(seconds)) * 1e3
        return found | {clock: total["bare", clock] / total["trainer", clock] for clock in ("wall", "cpu")}


def peak_mb() -> float:
    """Largest resident set of this process so far, in MB; NaN where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return math.nan
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1024 * 1024 if sys.platform == "darwin" else 1024)


def bare_loop(config: TrainConfig) -> Iterator[float]:
    """The whole training in one function; yields after each step, nothing before the last, then its loss."""
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
        yield loss.item() if step == config.steps else math.nan


def trainer(config: TrainConfig, after_step: Callable[[int, Any], None], folder: Path) -> float:
    """The real thing, ``after_step`` called with the step and the monitor; the last loss."""
    losses: list[Tensor] = []
    step = loop.training_step

    def timed(session: Any, mon: Any, display: Any) -> None:
        step(session, mon, _Reading(display, losses))
        after_step(session.state.step, mon)

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


def measured(kind: str, config: TrainConfig, block: int) -> dict[str, float]:
    """The trainer and the bare loop in turns; with ``block`` 0 one of them alone, for its memory."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if kind == "bare":
        return {"bare_loss": list(bare_loop(config))[-1], "peak_mb": peak_mb()}
    blocks, bare = Blocks(), bare_loop(config)
    losses: list[float] = []

    def after_step(step: int, mon: Any) -> None:
        if block and step % block == 0:
            blocks.end("trainer")
            with mon.phase("bare"):  # the monitor rests
                blocks.begin()
                losses[:] = [next(bare) for _ in range(block)]
                blocks.end("bare")
            blocks.begin()

    blocks.begin()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        loss = trainer(config, after_step, Path(folder))
    alone = {"peak_mb": peak_mb(), "loss": loss}
    return alone if not block else {**alone, "bare_loss": losses[-1], **blocks.result(block)}


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
    """The trainer's figures as shares of the bare loop's."""
    lines: list[Line] = []
    for kind in ("unmonitored", "trainer"):
        for clock, of in (("cpu", "tokens per second of processor time"), ("wall", "tokens/s")):
            step = f"{found.median(kind, f'bare_{clock}_ms'):.2f} to {found.median(kind, f'trainer_{clock}_ms'):.2f}"
            beside = f"rounds {found.range(kind, clock)}; ms a step from {step}"
            goal = GOAL if kind == "trainer" else None
            lines.append(
                Line(f"{KINDS[kind]}, {of}, of the bare loop's", found.median(kind, clock), "x", goal, True, beside)
            )
        mine, bare = (found.median(f"{who} alone", "peak_mb") for who in (kind, "bare"))
        what = f"{KINDS[kind]}, peak memory, of the bare loop's"
        lines.append(Line(what, mine / bare, "x", beside=f"{mine:.0f} MB to {bare:.0f} MB, most of it torch's code"))
    return lines


def main(quick: bool | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and a few steps: whether it works")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--kind", choices=KINDS, help="one training in this process, its figures as JSON")
    parser.add_argument("--alone", action="store_true", help="with --kind: nothing beside it, for its memory")
    options = parser.parse_args([] if quick is not None else None)
    quick = options.quick or bool(quick)
    block, steps = (2, 6) if quick else (BLOCK, options.steps)
    if options.kind:
        answer, sys.stdout = sys.stdout, sys.stderr
        config = config_of(options.kind, (1 if options.alone else block) + steps, options.threads, quick)
        result = measured(options.kind, config, 0 if options.alone else block)
        print(json.dumps(result), file=answer, flush=True)
        return
    threads = options.threads or (1 if quick else torch.get_num_threads())
    found = Rounds()
    rounds = 1 if quick else options.rounds

    def add(kind: str, steps: int, *more: str) -> None:
        given = ["--steps", str(steps), "--threads", str(threads), *(["--quick"] if quick else []), *more]
        words = [sys.executable, "-m", "tests.bench.trainer_speed", "--kind", kind, *given]
        found.add(" ".join([kind, *(word.removeprefix("--") for word in more)]), child(words, 900, threads))

    for kind in KINDS:
        add(kind, WARM, "--alone")
    for _ in range(rounds):
        for kind in ("unmonitored", "trainer"):
            add(kind, steps)
    if found.skipped:
        return
    lines = lines_of(found)
    title = f"trainer's default GPT, {threads} thread(s), {rounds} rounds of {steps} steps"
    print(table(title, lines))
    for kind in ("unmonitored", "trainer"):
        bare = found.median(kind, "bare_loss")
        reached = f"bare loop {bare:.4f}" if math.isfinite(bare) else "the bare loop's last step was not reached"
        print(f"  last loss, {KINDS[kind]} {found.median(kind, 'loss'):.4f}, {reached}")
    shares = {KINDS[kind]: found.median(kind, "cpu") for kind in ("unmonitored", "trainer")}
    more = {"threads": threads, "steps": steps, "quick": quick, "cpus": os.cpu_count(), "rounds": dict(found.found)}
    charts = [bars("Training speed beside the bare loop", {"bare loop": 1.0, **shares}, "of its tokens", "trainer")]
    print("  written:", *(str(path.relative_to(ROOT)) for path in save("trainer_speed", lines, more, charts)))


if __name__ == "__main__":
    main()
