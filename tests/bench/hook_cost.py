"""What the monitor adds to a training step, beside clipping alone and a bare step.

    python tests/bench/hook_cost.py [1M] [10M] [--rounds N] [--threads N] [--only norms | default]

Gradient norms alone (``detail="norms"``), two views, both interleaved so that a busy machine hits all alike, both
medians:

    in call   every call the monitor makes in one step (hooks, norms with clipping, the row), gradients present, without
              the model's own arithmetic; beside torch's clip_grad_norm_ on the same gradients
    step      the whole training step: bare, with torch's clipping, with the monitor doing the clipping

The whole default set (``detail="standard"``) at its own cadences, which repeat every ``CYCLE`` steps, so the figures
are means over whole cycles and medians of those:

    in call   CPU time of one thread of everything that the monitor does, by probe; the share is of the bare step's
              CPU time, also of one thread
    step      the whole step beside a bare one and one with torch's clipping

On a shared machine trust the in-call difference; a step ratio within the noise of its own repeats says nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch.nn import functional

import monitor
from monitor.hook.detail import Detail
from tests.bench import watchers
from tests.bench.models import GPT, SIZES

CYCLE = 20
"""Steps after which the cadences of the default set repeat, but for what comes every 50 or 100."""
WHOLE_GOALS = {"1M": 1.03, "10M": 1.01}
"""Step ratio of the whole default set over bare; from the same table."""
GOALS = {"1M": (0.1, 1.03), "10M": (0.3, 1.01)}
"""Milliseconds added to clipping, and step ratio over clipping; from the design's performance table."""


class Subject(watchers.Subject):
    """One model with its optimizer, and a monitor if it has one."""

    def __init__(self, size: str, detail: Detail | None) -> None:
        super().__init__(size)
        self.monitor = None
        if detail is not None:
            self.monitor = monitor.attach(self.model, self.optimizer, run=tempfile.mkdtemp(), detail=detail)
            for probe in self.monitor._probes.probes:
                probe.first_steps = 0  # dense for a moment, which no training of any length notices

    def step(self, clip: Callable[[], object] | None) -> None:
        logits = self.model(self.tokens)
        loss = functional.cross_entropy(logits.flatten(0, 1), self.tokens.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            clip()
        self.optimizer.step()
        if self.monitor is not None:
            self.monitor.step(loss=loss, tokens=self.tokens.numel(), batch_id=7)


def in_call(size: str, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds of torch's clip alone, and of all that the monitor does in a step including the clip; sorted.

    In CPU time of one thread, which other processes on the machine do not stretch.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    subject = Subject(size, "norms")
    mon, optimizer = subject.monitor, subject.optimizer
    assert mon is not None
    parameters = list(subject.model.parameters())
    for _ in range(3):
        subject.step(lambda: mon.clip_grad_norm_(1.0))
    logits = subject.model(subject.tokens)
    loss = functional.cross_entropy(logits.flatten(0, 1), subject.tokens.flatten())
    loss.backward()
    loop = mon._loop
    torch_clip = monitor_free_clip()

    def ours() -> None:
        loop.forward_begins(subject.model)
        loop.backward_begins()
        loop.backward_ended()
        mon.clip_grad_norm_(1.0)
        loop._optimizer_begins(optimizer, (optimizer,), {})
        loop._optimizer_ended(optimizer, (optimizer,), {})
        mon.step(loss=loss, tokens=1024, batch_id=7)

    def theirs() -> None:
        torch_clip(parameters, 1.0)

    times: dict[Callable[[], None], list[float]] = {theirs: [], ours: []}
    for number in range(repeats + 20):
        for call in (theirs, ours) if number % 2 else (ours, theirs):
            began = time.thread_time()
            call()
            if number >= 20:
                times[call].append(time.thread_time() - began)
    mon.close()
    torch.set_num_threads(threads)
    return sorted(t * 1e3 for t in times[theirs]), sorted(t * 1e3 for t in times[ours])


def monitor_free_clip() -> Callable[..., torch.Tensor]:
    from monitor.hook.observe import original_clip

    return original_clip()


def whole_step(size: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """Median step milliseconds of each round: bare, clip, monitor, and clip again as the noise floor."""
    results: dict[str, list[float]] = {"bare": [], "clip": [], "monitor": [], "clip again": []}
    subjects = {name: Subject(size, None) for name in results if name != "monitor"}
    torch_clip = monitor_free_clip()
    for number in range(rounds + 1):
        names = list(results)
        for name in names[number % 4 :] + names[: number % 4]:
            # Attached for its own rounds only: while it is, torch's functions are wrapped for everybody.
            subject = subjects.get(name) or Subject(size, "norms")
            mon = subject.monitor
            parameters = list(subject.model.parameters())
            clips: dict[str, Callable[[], object] | None] = {
                "bare": None,
                "monitor": lambda mon=mon: mon.clip_grad_norm_(1.0),
            }
            clip = clips.get(name, lambda parameters=parameters: torch_clip(parameters, 1.0))
            times = []
            for _ in range(steps + 2):
                began = time.perf_counter()
                subject.step(clip)
                times.append(time.perf_counter() - began)
            if mon is not None:
                mon.close()
            if number:  # the first round warms up
                results[name].append(statistics.median(times[2:]) * 1e3)
    return results


class Calls:
    """Makes the monitor's calls of whole steps by hand, around a real optimizer step, and adds up their CPU time."""

    def __init__(self, size: str, detail: Detail) -> None:
        self.subject = subject = Subject(size, detail)
        for _ in range(2):
            subject.step(None)
        logits = subject.model(subject.tokens)
        self.loss = functional.cross_entropy(logits.flatten(0, 1), subject.tokens.flatten())
        self.loss.backward()
        assert subject.monitor is not None
        self.monitor = subject.monitor
        self.by_probe = dict.fromkeys((probe.name for probe in self.monitor._probes.probes), 0.0)

    def cycle(self) -> float:
        """Milliseconds a step."""
        mon, optimizer, loop = self.monitor, self.subject.optimizer, self.monitor._loop
        spent = 0.0
        for _ in range(CYCLE):
            began = time.thread_time()
            loop.forward_begins(self.subject.model)
            loop.backward_begins()
            loop.backward_ended()
            loop._optimizer_begins(optimizer, (optimizer,), {})
            spent += time.thread_time() - began
            with mon.phase("bare"):  # the hooks rest: the optimizer's own time is not the monitor's
                optimizer.step()
            began = time.thread_time()
            loop._optimizer_ended(optimizer, (optimizer,), {})
            measuring = list(mon._probes._active)
            mon.step(loss=self.loss, tokens=1024, batch_id=7)
            spent += time.thread_time() - began
            for probe in measuring:
                self.by_probe[probe.name] += probe.spent_ns * 1e-6
        return spent / CYCLE * 1e3


def default_in_call(size: str, cycles: int) -> tuple[float, float, dict[str, float], float]:
    """Milliseconds a step in CPU time of one thread: the bare step, the monitor with norms alone, its probes beside
    them, the monitor with the default set. Nobody clips, so the norms are all the monitor's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with mock.patch("monitor.hook.probe.time.perf_counter_ns", time.thread_time_ns):
        bare, norms, default = Subject(size, None), Calls(size, "norms"), Calls(size, "standard")
        bare.step(None)
        default.cycle()
        default.by_probe = dict.fromkeys(default.by_probe, 0.0)
        of_bare, of_norms, of_default = [], [], []
        for _ in range(cycles):
            with norms.monitor.phase("bare"), default.monitor.phase("bare"):
                began = time.thread_time()
                bare.step(None)
                of_bare.append((time.thread_time() - began) * 1e3)
            of_norms.append(norms.cycle())
            of_default.append(default.cycle())
        norms.monitor.close()
        default.monitor.close()
    torch.set_num_threads(threads)
    by_probe = {name: spent / (cycles * CYCLE) for name, spent in default.by_probe.items()}
    return statistics.median(of_bare), statistics.median(of_norms), by_probe, statistics.median(of_default)


def default_step(size: str, rounds: int) -> dict[str, list[float]]:
    """Mean step milliseconds of each round of one cycle: bare, clip, the default set, and bare again as the noise."""
    results: dict[str, list[float]] = {"bare": [], "clip": [], "default set": [], "bare again": []}
    subjects = {name: Subject(size, None) for name in results if name != "default set"}
    torch_clip = monitor_free_clip()
    for number in range(rounds + 1):
        names = list(results)
        for name in names[number % 4 :] + names[: number % 4]:
            subject = subjects.get(name) or Subject(size, "standard")
            mon, parameters = subject.monitor, list(subject.model.parameters())
            clip = (lambda parameters=parameters: torch_clip(parameters, 1.0)) if name == "clip" else None
            for _ in range(2):
                subject.step(clip)
            began = time.perf_counter()
            for _ in range(CYCLE):
                subject.step(clip)
            spent = (time.perf_counter() - began) / CYCLE * 1e3
            if mon is not None:
                mon.close()
            if number:
                results[name].append(spent)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", default=["1M", "10M"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["norms", "default"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for size in options.sizes:
        model = GPT(*SIZES[size])
        count, tensors = sum(p.numel() for p in model.parameters()), len(list(model.parameters()))
        print(f"{size}: {count / 1e6:.2f} M parameters in {tensors} tensors, {options.threads} threads")
        if options.only != "default":
            print_norms(size, options.rounds)
        if options.only != "norms":
            print_default(size, options.rounds)


def print_norms(size: str, rounds: int) -> None:
    """Both views of the gradient norms."""
    goal_ms, goal_ratio = GOALS[size]
    clip_ms, ours_ms = in_call(size, 300 if size == "1M" else 60)
    for word, share in (("median", 0.5), ("tenth", 0.1)):  # the fastest tenth: what a quiet machine would show
        alone, with_monitor = (values[int(share * len(values))] for values in (clip_ms, ours_ms))
        print(
            f"  in call   {word}: clip alone {alone:.3f} ms, monitor with clip {with_monitor:.3f} ms, "
            f"added {with_monitor - alone:+.3f} ms (goal <= {goal_ms})"
        )
    results = whole_step(size, rounds, 24 if size == "1M" else 4)
    middle = {name: statistics.median(values) for name, values in results.items()}
    for name, values in results.items():
        print(f"  step      {name:10} {middle[name]:8.2f} ms  ({min(values):.2f} to {max(values):.2f})")
    print(f"  ratio     monitor / clip {middle['monitor'] / middle['clip']:.3f} (goal <= {goal_ratio}), "
          f"monitor / bare {middle['monitor'] / middle['bare']:.3f}, "
          f"clip again / clip {middle['clip again'] / middle['clip']:.3f} (noise)", flush=True)  # fmt: skip


def print_default(size: str, rounds: int) -> None:
    """Both views of the default set."""
    bare, norms, by_probe, default = default_in_call(size, 12 if size == "1M" else 3)
    goal = WHOLE_GOALS[size]
    print(f"  in call   bare step {bare:.1f} ms of CPU, norms alone {norms:.3f} ms, default set {default:.3f} ms: "
          f"added to norms {(default - norms) / bare:.2%} of the step")  # fmt: skip
    for name, milliseconds in by_probe.items():
        print(f"            {milliseconds:8.4f} ms  {name}")
    results = default_step(size, rounds)
    middle = {name: statistics.median(values) for name, values in results.items()}
    for name, values in results.items():
        print(f"  step      {name:12} {middle[name]:8.2f} ms  ({min(values):.2f} to {max(values):.2f})")
    print(f"  ratio     default set / bare {middle['default set'] / middle['bare']:.3f} (goal <= {goal}), "
          f"clip / bare {middle['clip'] / middle['bare']:.3f}, "
          f"bare again / bare {middle['bare again'] / middle['bare']:.3f} (noise)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
