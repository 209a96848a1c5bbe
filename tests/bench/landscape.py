"""A plane of the loss of a 1M GPT, beside plain forward passes; and curvature, beside gradients.

    python -m tests.bench.landscape [--quick] [--points 51] [--sequences N ...] [--threads N]

The limit of a plane is as many forward passes of the same model on the same batch, in evaluation mode and without
gradients, each with its loss read. Both are timed in one run in turns, a line of the plane and as many plain passes, so
that a busy machine hits them alike; the ratio is the median over the lines. Processor time is that of all threads: on a
busy machine it is the figure to trust.

The smaller the batch, the more moving the weights weighs. A move reads the origin and the direction and writes the
weights, 12 bytes a weight, and drives as much out of the caches for the pass to fetch again: of 1 M weights 0.2 and
0.4 ms on one core, beside 8.5 ms for a pass of 256 tokens. Adding to what is there would read less, and make a point's
bits depend on the points before it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from monitor.landscape.directions import random_direction
from monitor.landscape.hessian import Hessian
from monitor.landscape.surface import Surface, axis, fill
from monitor.landscape.undisturbed import undisturbed
from tests.bench.report import Line, save, table
from trainer.config import ModelConfig
from trainer.tasks.gpt import GPT

GOAL = 0.9
CONTEXT = 64
SEQUENCES = (4, 16)
"""Batches: 256 tokens, as a sample during training takes, and 1,024."""
PRODUCTS = 8


class InTurns:
    """Times the plane line by line, with as many plain passes after each line."""

    def __init__(self, loss: Callable[[], Tensor], line: int) -> None:
        self._loss, self._line = loss, line
        self._calls = 0
        self.plane: list[tuple[float, float]] = []
        self.plain: list[tuple[float, float]] = []
        """(wall, processor) seconds of each line, and of as many plain passes."""
        self._since = now()

    def __call__(self) -> Tensor:
        if self._calls and self._calls % self._line == 0:
            self.plane.append(since(self._since))
            begin = now()
            for _ in range(self._line):
                float(self._loss())
            self.plain.append(since(begin))
            self._since = now()
        self._calls += 1
        return self._loss()

    def ratio(self, clock: int) -> float:
        """Speed of the plane over that of plain passes; the first line warms up."""
        pairs = list(zip(self.plane, self.plain, strict=True))[1:]
        return statistics.median(plain[clock] / plane[clock] for plane, plain in pairs)


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(begin: tuple[float, float]) -> tuple[float, float]:
    wall, processor = now()
    return wall - begin[0], processor - begin[1]


def gpt() -> GPT:
    """1.05 M parameters in 77 tensors."""
    torch.manual_seed(0)
    return GPT(ModelConfig(n_layer=9, n_head=4, d_model=96), CONTEXT)


def loss_of(model: GPT, sequences: int) -> Callable[[], Tensor]:
    tokens = torch.randint(0, 256, (sequences, CONTEXT + 1), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
    return lambda: functional.cross_entropy(model(inputs).flatten(0, 1), targets)


def plane(model: GPT, sequences: int, points: int) -> tuple[InTurns, Surface]:
    """The whole plane, in turns with plain passes."""
    surface, turns = Surface.blank(axis(1.0, points), axis(1.0, points)), InTurns(loss_of(model, sequences), points)
    with undisturbed(model) as borrowed:
        fill(surface, borrowed, turns, [random_direction(borrowed.saved, 0, number) for number in (0, 1)])
    return turns, surface


def product_over_gradient(model: GPT, sequences: int) -> float:
    """Processor time of a Hessian-vector product in gradients (forward and backward)."""
    loss, gradients, products = loss_of(model, sequences), [], []
    parameters = list(model.parameters())
    with Hessian(model, loss) as hessian:
        for _ in range(PRODUCTS):
            begin = now()
            hessian.product(hessian.gradient)
            products.append(since(begin)[1])
            begin = now()
            with torch.enable_grad():
                torch.autograd.grad(loss(), parameters)
            gradients.append(since(begin)[1])
    return statistics.median(a / b for a, b in zip(products[1:], gradients[1:], strict=True))


def main(quick: bool = False) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", default=quick)
    parser.add_argument("--points", type=int, default=51)
    parser.add_argument("--sequences", type=int, nargs="+", default=SEQUENCES)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args([] if quick else None)
    if options.threads:
        torch.set_num_threads(options.threads)
    points = 11 if options.quick or quick else options.points
    model, lines = gpt(), []
    for sequences in options.sequences[:1] if options.quick else options.sequences:
        turns, surface = plane(model, sequences, points)
        assert surface.complete and np.isfinite(surface.loss).all()
        what = f"plane {points} x {points}, {sequences} x {CONTEXT} tokens"
        speed = points / statistics.median(wall for wall, _ in turns.plane[1:])
        plain = points / statistics.median(wall for wall, _ in turns.plain[1:])
        lines.append(
            Line(f"{what}: speed, processor time", turns.ratio(1), "of plain", GOAL, True,
                 f"{turns.ratio(0):.2f} by the wall; {speed:.1f} points/s beside {plain:.1f} passes/s")
        )  # fmt: skip
    times = product_over_gradient(model, options.sequences[0])
    lines.append(Line("Hessian-vector product", times, "gradients", beside="double backward, processor time"))
    print(table(f"the loss landscape of a 1M GPT, {torch.get_num_threads()} threads", lines), flush=True)
    for path in save("landscape", lines, {"points": points, "threads": torch.get_num_threads()}, []):
        print(path)


if __name__ == "__main__":
    main()
