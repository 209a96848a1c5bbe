"""Next-byte MLP: a fixed window of bytes, embedded side by side, through a few dense layers (Bengio et al. 2003)."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig, TrainConfig
from trainer.tasks.gpt import INIT_STD, VOCABULARY, NextByte
from trainer.tasks.text import load_text

EMBEDDING = 16
"""Features per byte."""


class CharMLP(nn.Module):
    """int64[B, T] bytes to float[B, T, 256] logits; position t sees bytes t - context + 1 to t."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.context = config.context
        self.token = nn.Embedding(VOCABULARY, EMBEDDING)
        widths = [config.context * EMBEDDING] + [config.d_model] * config.n_layer
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.d_model, VOCABULARY)
        nn.init.normal_(self.head.weight, std=INIT_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = F.pad(self.token(tokens), (0, 0, self.context - 1, 0))  # [B, context - 1 + T, E]
        x = embedded.unfold(1, self.context, 1).flatten(2)  # [B, T, E * context]
        for layer in self.layers:
            x = self.dropout(F.relu(layer(x)))
        return self.head(self.norm(x))


class CharMLPTask(NextByte):
    """The same data and loss as the GPT, another model."""

    def build_model(self) -> nn.Module:
        return CharMLP(self.config.model)


def build_charmlp(config: TrainConfig) -> CharMLPTask:
    """The next-byte MLP task on the text that ``task.data`` names."""
    return CharMLPTask("charmlp", config, load_text(config.task))
