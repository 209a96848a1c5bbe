"""Next-token MLP: a fixed window of tokens, embedded side by side, through a few dense layers (Bengio et al. 2003)."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig, TrainConfig
from trainer.tasks.initialise import GPT2_STD, initialise
from trainer.tasks.next_token import NextToken
from trainer.tasks.text import load_text

EMBEDDING = 16
"""Features per token."""


class CharMLP(nn.Module):
    """int64[B, T] tokens to float[B, T, V] logits; position t sees tokens t - context + 1 to t."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.context = config.context
        self.token = nn.Embedding(vocabulary, EMBEDDING)
        widths = [config.context * EMBEDDING] + [config.d_model] * config.n_layer
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.activations = nn.ModuleList(nn.ReLU() for _ in self.layers)  # modules, so that dead units can be counted
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.d_model, vocabulary)
        if config.init:
            initialise(self, config.init, d_model=config.d_model, n_layer=config.n_layer)
        nn.init.normal_(self.head.weight, std=GPT2_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, shift: Tensor | None = None) -> Tensor:
        """``shift``, float[B, T, E], is added to the embeddings."""
        embedded = self.token(tokens) if shift is None else self.token(tokens) + shift
        x = F.pad(embedded, (0, 0, self.context - 1, 0))  # [B, context - 1 + T, E]
        x = x.unfold(1, self.context, 1).flatten(2)  # [B, T, E * context]
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = self.dropout(activation(layer(x)))
        return self.head(self.norm(x))


class CharMLPTask(NextToken):
    """The same data and loss as the GPT, another model."""

    def build_model(self) -> nn.Module:
        return CharMLP(self.config.model, len(self.vocabulary))


def build_charmlp(config: TrainConfig) -> CharMLPTask:
    """The next-token MLP task on the text that ``task.data`` names."""
    return CharMLPTask("charmlp", config, load_text(config.task))
