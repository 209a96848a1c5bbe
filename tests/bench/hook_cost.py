"""What the monitor adds to a training step, beside clipping alone and a bare step.

    python tests/bench/hook_cost.py [1M] [10M] [--rounds N] [--threads N]

Two views, both interleaved so that a busy machine hits all alike, both medians:

    in call   every call the monitor makes in one step (hooks, norms with clipping, the row), gradients present, without
              the model's own arithmetic; beside torch's clip_grad_norm_ on the same gradients
    step      the whole training step: bare, with torch's clipping, with the monitor doing the clipping

On a shared machine trust the in-call difference; a step ratio within the noise of its own repeats says nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

import monitor

GOALS = {"1M": (0.1, 1.03), "10M": (0.3, 1.01)}
"""Milliseconds added to clipping, and step ratio over clipping; from the design's performance table."""


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (part.view(b, t, d // 32, 32).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, blocks: int, width: int, context: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


SIZES = {"1M": (9, 96, 64), "10M": (6, 384, 256)}


class Subject:
    """One model with its optimizer, and a monitor if it has one."""

    def __init__(self, size: str, monitored: bool) -> None:
        torch.manual_seed(0)
        blocks, width, context = SIZES[size]
        self.model = GPT(blocks, width, context)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, foreach=True)
        self.tokens = torch.randint(0, 256, (4, context))
        self.monitor = monitor.attach(self.model, self.optimizer, run=tempfile.mkdtemp()) if monitored else None

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
    subject = Subject(size, monitored=True)
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
    subjects = {name: Subject(size, False) for name in results if name != "monitor"}
    torch_clip = monitor_free_clip()
    for number in range(rounds + 1):
        names = list(results)
        for name in names[number % 4 :] + names[: number % 4]:
            # Attached for its own rounds only: while it is, torch's functions are wrapped for everybody.
            subject = subjects.get(name) or Subject(size, True)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", default=["1M", "10M"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for size in options.sizes:
        model = GPT(*SIZES[size])
        count, tensors = sum(p.numel() for p in model.parameters()), len(list(model.parameters()))
        goal_ms, goal_ratio = GOALS[size]
        print(f"{size}: {count / 1e6:.2f} M parameters in {tensors} tensors, {options.threads} threads")
        clip_ms, ours_ms = in_call(size, 300 if size == "1M" else 60)
        for word, share in (("median", 0.5), ("tenth", 0.1)):  # the fastest tenth: what a quiet machine would show
            alone, with_monitor = (values[int(share * len(values))] for values in (clip_ms, ours_ms))
            print(
                f"  in call   {word}: clip alone {alone:.3f} ms, monitor with clip {with_monitor:.3f} ms, "
                f"added {with_monitor - alone:+.3f} ms (goal <= {goal_ms})"
            )
        results = whole_step(size, options.rounds, 24 if size == "1M" else 4)
        middle = {name: statistics.median(values) for name, values in results.items()}
        for name, values in results.items():
            print(f"  step      {name:10} {middle[name]:8.2f} ms  ({min(values):.2f} to {max(values):.2f})")
        print(f"  ratio     monitor / clip {middle['monitor'] / middle['clip']:.3f} (goal <= {goal_ratio}), "
              f"monitor / bare {middle['monitor'] / middle['bare']:.3f}, "
              f"clip again / clip {middle['clip again'] / middle['clip']:.3f} (noise)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
