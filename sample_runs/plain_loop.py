"""A training loop of your own with the monitor attached: a small byte-level transformer on a file of Python's library.

    python sample_runs/plain_loop.py            # some ten seconds on a CPU; the run goes to ./runs
    gradiometer app                                       # look at it

Lines with ``mon`` are all that the monitor adds; the rest is a loop as it would be without.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import monitor

WIDTH, HEADS, CONTEXT, BATCH = 48, 4, 32, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:  # [B, T, WIDTH]
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class BytesModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, tokens: Tensor) -> Tensor:  # [B, T] to logits [B, T, 256]
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def batch(text: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and the ones that follow them, [B, T] each."""
    begins = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1))
    pieces = text[begins + torch.arange(CONTEXT + 1)]
    return pieces[:, :-1], pieces[:, 1:]


def loss_of(model: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    return functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())


def main(steps: int, runs: str) -> None:
    """Train for ``steps`` and say what the doctor says."""
    torch.manual_seed(0)
    text = torch.tensor(list(Path(argparse.__file__).read_bytes()))
    train, held_out = text[:-10_000], text[-10_000:]
    model = BytesModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))

    with monitor.attach(
        model, optimizer, run=runs, name="plain loop", planned_steps=steps, tokens_per_step=BATCH * CONTEXT, flops=True,
    ) as mon:  # fmt: skip
        words = b"def main(steps):"
        mon.watch_samples(torch.tensor([list(words)]), labels=[[chr(byte) for byte in words]])
        for step in range(1, steps + 1):
            loss = loss_of(model, *batch(train))
            loss.backward()
            mon.clip_grad_norm_(1.0)  # torch.nn.utils.clip_grad_norm_ is seen too
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            mon.step(loss=loss)
            if step % 20 == 0:
                with mon.phase("eval"), torch.no_grad():
                    model.eval()
                    mon.log({"val_loss": loss_of(model, *batch(held_out))})
                    model.train()

    report = monitor.diagnose(mon.run_dir)
    print(report.to_text())
    print(json.dumps({"run": str(mon.run_dir), "loss": loss.item()}))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Train a small byte-level transformer with the monitor attached.")
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--runs", default="runs", help="the folder that the run is made in")
    given = options.parse_args()
    main(given.steps, given.runs)
