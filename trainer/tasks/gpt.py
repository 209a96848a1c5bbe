"""Byte-level GPT: a small pre-norm transformer that predicts the next byte of text."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import LossConfig, ModelConfig, TrainConfig
from trainer.losses import token_loss
from trainer.tasks.base import Batch
from trainer.tasks.text import Text, Windows, load_text

VOCABULARY = 256
PLAIN = LossConfig()
"""Nothing is added: the loss by which models are compared."""
INIT_STD = 0.02
"""GPT-2's, Radford et al. 2019: logits of a fresh model are then small and its loss is close to ln 256 = 5.545."""

# Shapes: B sequences, T bytes each, D = d_model, H heads of E = D / H features, V = 256.


class Attention(nn.Module):
    """Causal self-attention by torch's own kernel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        # Rows of qkv are ordered by head: a rank that holds some of them (tensor parallel) holds whole heads.
        q, k, v = self.qkv(x).view(B, T, -1, 3, D // self.n_head).permute(3, 0, 2, 1, 4)  # each [B, H, T, E]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.mlp_ratio * config.d_model, bias=False)
        self.down = nn.Linear(config.mlp_ratio * config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """int64[B, T] bytes to float[B, T, V] logits of the byte that follows each."""

    def __init__(self, config: ModelConfig, seq_len: int) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, config.d_model)
        self.position = nn.Embedding(seq_len, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, VOCABULARY, bias=False)
        self._initialise(config.n_layer)
        if config.tied_head:
            self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token(tokens) + self.position(positions))  # [B, T, D]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def _initialise(self, n_layer: int) -> None:
        """Normal with INIT_STD; the two layers per block that write to the residual stream are scaled by 1 / sqrt(2 L),

        so that the stream's variance does not grow with depth (Radford et al. 2019, section 2.3).
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                writes_residual = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * n_layer) if writes_residual else INIT_STD)


class NextByte:
    """Next-byte prediction on text, for any model from bytes to logits."""

    loss_unit = "nats"

    def __init__(self, name: str, config: TrainConfig, text: Text) -> None:
        self.name = name
        self.config = config
        self.train = Windows(text.train, config.task.seq_len)
        self.val = Windows(text.val, config.task.seq_len)
        self.train_size = len(self.train)
        self.val_size = len(self.val)
        self.data_summary = text.summary

    def build_model(self) -> nn.Module:
        return GPT(self.config.model, self.config.task.seq_len)

    def train_batch(self, indices: Tensor) -> Batch:
        return self.train.batch(indices)

    def val_batch(self, indices: Tensor) -> Batch:
        return self.val.batch(indices)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, and in training what the section ``loss`` adds to it."""
        added = self.config.loss if model.training else PLAIN
        return token_loss(
            model(batch.inputs), batch.targets, label_smoothing=added.label_smoothing, z_loss=added.z_loss
        )


def build_gpt(config: TrainConfig) -> NextByte:
    """The byte-level GPT task on the text that ``task.data`` names."""
    return NextByte("gpt", config, load_text(config.task))
