"""Tiny models with their data and loss, for everything that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # x: [B, T, width]
        b, t, d = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TinyGPT(nn.Module):
    """A GPT with tied embedding and head, 19 parameter tensors with two blocks."""

    def __init__(
        self, vocabulary: int = 31, width: int = 16, heads: int = 2, blocks: int = 2, context: int = 12
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Problem:
    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    """The batch of one micro-step, the same for the same number."""
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]

    def made(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.model()


def _classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x).float(), y)


def _next_token(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x).float().flatten(0, 1), y.flatten())


def _random(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + number)


def _vectors(number: int) -> tuple[Tensor, Tensor]:
    generator = _random(number)
    return torch.randn(24, 10, generator=generator), torch.randint(0, 5, (24,), generator=generator)


def _images(number: int) -> tuple[Tensor, Tensor]:
    generator = _random(number)
    return torch.randn(8, 1, 8, 8, generator=generator), torch.randint(0, 5, (8,), generator=generator)


def _text(number: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 31, (4, 13), generator=_random(number))
    return tokens[:, :-1], tokens[:, 1:]


def mlp(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )


MLP = Problem("mlp", mlp, _vectors, _classify)
MLP_DROPOUT = Problem("mlp-dropout", lambda: mlp(0.3), _vectors, _classify)
CNN = Problem("cnn", cnn, _images, _classify)
GPT = Problem("gpt", TinyGPT, _text, _next_token)
PROBLEMS = (MLP, CNN, GPT)
