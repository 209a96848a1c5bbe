"""One way of watching gradients, in a process of its own: ``python -m tests.bench.watchers METHOD SIZE ...``.

Trains two copies of a model in turns, block by block: one bare, one watched in every step. Needs torch and the method,
so that a peer runs in the peers' own environment. Prints one line of JSON; what cannot be imported is a line that says
so. CPU time is that of all threads of the process; "in call" is the time of the calling thread in what the method does
outside of the training's own arithmetic, where that can be told apart.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from tests.bench.models import GPT, SIZES
from tests.bench.peer import LOGGERS


class Subject:
    """One model with its optimizer and its batch."""

    def __init__(self, size: str) -> None:
        torch.manual_seed(0)
        blocks, width, context = SIZES[size]
        self.model = GPT(blocks, width, context)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, foreach=True)
        self.tokens = torch.randint(0, 256, (4, context))
        self.names = [name for name, _ in self.model.named_parameters()]

    def grads(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]


@dataclass
class Method:
    """What is called in each step of the watched model."""

    after_backward: Callable[[int, Tensor], object] | None = None
    """With the number of the step and its loss, gradients complete."""
    after_step: Callable[[int, Tensor], object] | None = None
    around_backward: Callable[[int, Tensor], AbstractContextManager[Any]] | None = None
    resting: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Around the bare model's blocks."""
    close: Callable[[], object] = lambda: None
    in_call: Callable[[], list[float]] | None = None
    """After ``close``: milliseconds of each step, by the method's own account."""
    seen: dict[int, list[float]] = field(default_factory=dict)
    """The norms of some steps, for the tests."""


# Norms and nothing else ----------------------------------------------------------------------------------------------


def bare(subject: Subject, folder: Path) -> Method:
    """Nothing: the difference to the other copy is the noise."""
    return Method()


def limit(subject: Subject, folder: Path) -> Method:
    """One pass over as many bytes as the gradients have, after the step has displaced them from the caches."""
    flat = torch.cat([torch.zeros_like(parameter).view(-1) for parameter in subject.model.parameters()])
    return Method(after_step=lambda step, loss: torch.dot(flat, flat))


def item(subject: Subject, folder: Path) -> Method:
    """The loop that everybody writes first."""
    method = Method()

    def norms(step: int, loss: Tensor) -> None:
        method.seen[step] = [grad.norm().item() for grad in subject.grads()]

    method.after_backward = norms
    return method


def foreach_norms(subject: Subject) -> list[float]:
    return torch.stack(torch._foreach_norm(subject.grads(), 2.0)).tolist()


def foreach(subject: Subject, folder: Path) -> Method:
    """All norms in one call and one transfer, not stored."""
    method = Method()
    method.after_backward = lambda step, loss: method.seen.__setitem__(step, foreach_norms(subject))
    return method


# Peers ---------------------------------------------------------------------------------------------------------------


def logged(kind: str) -> Callable[[Subject, Path], Method]:
    """The same norms, given to a logger."""

    def method(subject: Subject, folder: Path) -> Method:
        log, close = LOGGERS[kind](folder, subject.names)
        return Method(after_backward=lambda step, loss: log(step, foreach_norms(subject)), close=close)

    return method


def wandb_watch(every: int) -> Callable[[Subject, Path], Method]:
    """``wandb.watch``: a histogram of every gradient."""

    def method(subject: Subject, folder: Path) -> Method:
        import wandb

        run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True, console="off"))
        run.watch(subject.model, log="gradients", log_freq=every)
        # In its hooks it works within backward, where its time cannot be told apart.
        return Method(after_step=lambda step, loss: run.log({"loss": loss.item()}), close=run.finish, in_call=list)

    return method


def lightning(subject: Subject, folder: Path) -> Method:
    """Lightning's ``grad_norm``, read as its loggers read it."""
    from lightning.pytorch.utilities import grad_norm

    method = Method()

    def norms(step: int, loss: Tensor) -> None:
        found = grad_norm(subject.model, 2)
        method.seen[step] = [float(value) for value in found.values()][:-1]

    method.after_backward = norms
    return method


def cockpit(subject: Subject, folder: Path) -> Method:
    """Cockpit's GradNorm, which needs nothing of BackPACK."""
    quantities = importlib.import_module("cockpit.quantities")
    every_step = importlib.import_module("cockpit.utils.schedules").linear(1)
    gradnorm = quantities.GradNorm(every_step)
    watch = importlib.import_module("cockpit").Cockpit(subject.model.parameters(), quantities=[gradnorm])

    def around(step: int, loss: Tensor) -> AbstractContextManager[Any]:
        return watch(step, info={"batch_size": len(subject.tokens), "loss": loss, "optimizer": subject.optimizer})

    return Method(around_backward=around)


def composer(subject: Subject, folder: Path) -> Method:
    """Composer's OptimizerMonitor with AdamW, written again from its description: per layer the norms of gradient,
    weight, update and first moment, in every step (its default is every tenth)."""
    method = Method()

    @torch.no_grad()
    def report(step: int, loss: Tensor) -> None:
        found: dict[str, Tensor] = {}
        norm = torch.linalg.vector_norm
        for group in subject.optimizer.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state = subject.optimizer.state[parameter]
                count = state["step"].item()
                root = (state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2**count)).add_(group["eps"])
                update = state["exp_avg"].clone().mul_(group["lr"] / (1 - beta1**count)).div_(root)
                update.add_(parameter, alpha=group["lr"] * group["weight_decay"])
                for name, tensor in (("grad", parameter.grad), ("param", parameter), ("update", update),
                                     ("moment", state["exp_avg"])):  # fmt: skip
                    found[f"{name}/{len(found) // 4}"] = norm(tensor)
        values = {name: value.item() for name, value in found.items()}
        for kind in ("grad", "param", "update", "moment"):
            each = [value for name, value in values.items() if name.startswith(kind)]
            values[f"{kind}/global"] = math.sqrt(sum(value * value for value in each))
        method.seen[step] = [value for name, value in values.items() if name.startswith("grad/")][:-1]

    method.after_step = report
    return method


# Ours ----------------------------------------------------------------------------------------------------------------


def ours(detail: Literal["norms", "standard"]) -> Callable[[Subject, Path], Method]:
    """The monitor, its rows stored in a run directory."""

    def method(subject: Subject, folder: Path) -> Method:
        from unittest import mock

        import monitor
        from monitor.hook.timing import StepClock
        from monitor.runfile.reader import open_run

        with mock.patch.object(StepClock.__init__, "__defaults__", (time.thread_time_ns,)):
            mon = monitor.attach(subject.model, subject.optimizer, run=folder, detail=detail)
        for probe in mon._probes.probes:
            probe.first_steps = 0  # dense for a moment, which no training of any length notices
        made = Method(resting=lambda: mon.phase("bare"), close=mon.close)
        made.after_step = lambda step, loss: mon.step(loss=loss, tokens=subject.tokens.numel(), batch_id=step)

        def spent() -> list[float]:
            run = open_run(mon.run_dir)
            norms = run.layers("grad_norm_preclip")
            made.seen = dict(zip(norms.step.tolist(), norms.value.tolist(), strict=True))
            return (run.series("monitor_s").value * 1e3).tolist()

        made.in_call = spent
        return made

    return method


METHODS: dict[str, Callable[[Subject, Path], Method]] = {
    "bare": bare,
    "limit": limit,
    "item": item,
    "foreach": foreach,
    "ours-norms": ours("norms"),
    "ours-standard": ours("standard"),
}
PEERS: dict[str, Callable[[Subject, Path], Method]] = {
    "composer": composer,  # needs torch alone
    "lightning": lightning,
    "cockpit": cockpit,
    **{f"{kind}-log": logged(kind) for kind in LOGGERS},
    "wandb-watch-100": wandb_watch(100),
    "wandb-watch-1": wandb_watch(1),
}


class Times:
    """Milliseconds a step of each block, bare and watched."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {"bare": [], "watched": []}
        self.cpu: dict[str, list[float]] = {"bare": [], "watched": []}
        self.call: list[float] = []
        """Of each watched step, of the calling thread's CPU time; empty when it cannot be told apart."""


def train(subject: Subject, method: Method, first: int, steps: int) -> list[float]:
    """``steps`` steps from number ``first``; milliseconds that the method's calls took in each."""
    spent = []
    for step in range(first, first + steps):
        logits = subject.model(subject.tokens)
        loss = functional.cross_entropy(logits.flatten(0, 1), subject.tokens.flatten())
        subject.optimizer.zero_grad()
        with method.around_backward(step, loss) if method.around_backward else nullcontext():
            loss.backward()
        began = time.thread_time()
        if method.after_backward is not None:
            method.after_backward(step, loss)
        own = time.thread_time() - began
        subject.optimizer.step()
        began = time.thread_time()
        if method.after_step is not None:
            method.after_step(step, loss)
        spent.append((own + time.thread_time() - began) * 1e3)
    return spent


def measure(name: str, size: str, rounds: int, steps: int, folder: Path) -> tuple[Times, Method]:
    """Blocks of both copies in turns, after one that warms up."""
    watched, plain = Subject(size), Subject(size)
    method, nothing = (METHODS | PEERS)[name](watched, folder), Method()
    times = Times()
    done = 0
    for number in range(rounds + 1):
        calls: list[float] = []
        for kind in ("bare", "watched") if number % 2 else ("watched", "bare"):
            with nullcontext() if kind == "watched" else method.resting():
                wall, cpu = time.perf_counter(), time.process_time()
                if kind == "watched":
                    calls = train(watched, method, done + 1, steps)
                    done += steps
                else:
                    train(plain, nothing, 1, steps)
                if number:
                    times.wall[kind].append((time.perf_counter() - wall) / steps * 1e3)
                    times.cpu[kind].append((time.process_time() - cpu) / steps * 1e3)
        if number and (method.after_backward or method.after_step) and method.in_call is None:
            times.call += calls
    method.close()
    if method.in_call is not None:
        times.call = method.in_call()[steps:]
    return times, method


def main() -> None:
    name, size, rounds, steps, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    torch.set_num_threads(threads)
    answer, sys.stdout = sys.stdout, sys.stderr  # loggers print
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            result: dict[str, Any] = vars(measure(name, size, rounds, steps, Path(folder))[0])
        except ImportError as error:
            result = {"skipped": str(error)}
    print(json.dumps(result), file=answer, flush=True)
    answer.flush()
    os._exit(0)  # a logger's threads need not be waited for: it has been closed


if __name__ == "__main__":
    main()
