"""GPT: a small pre-norm transformer that predicts the next token of text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.config import ModelConfig, TrainConfig
from trainer.tasks.initialise import initialise
from trainer.tasks.next_token import NextToken
from trainer.tasks.text import load_text

# Shapes: B sequences, T tokens each, D = d_model, H heads of E = D / H features, V tokens in the vocabulary.


class Attention(nn.Module):
    """Causal self-attention by torch's own kernel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.proj = nn.Linear(config.d_model, config.d_model, bias=False)
        # Bounds |q·k| / sqrt(E) by sqrt(E), gains aside. Henry et al. 2020, https://arxiv.org/abs/2010.04245.
        features = config.d_model // config.n_head
        self.q_norm = nn.RMSNorm(features) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(features) if config.qk_norm else None
        self.prefix: nn.Module | None = None
        """Puts learnt keys and values before those of the text, see trainer/tasks/adapters.py."""

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        # Rows of qkv are ordered by head: a rank that holds some of them (tensor parallel) holds whole heads.
        q, k, v = self.qkv(x).view(B, T, -1, 3, D // self.n_head).permute(3, 0, 2, 1, 4)  # each [B, H, T, E]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mask = None
        if self.prefix is not None:
            k, v, mask = self.prefix(k, v)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=self.dropout if self.training else 0.0
        )
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
        self.attn: nn.Module = Attention(config)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.mlp: nn.Module = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """int64[B, T] tokens to float[B, T, V] logits of the token that follows each; ``shift`` is added to embeddings."""

    def __init__(self, config: ModelConfig, seq_len: int, vocabulary: int = 256) -> None:
        super().__init__()
        self.recompute = config.gradient_checkpointing
        self.token = nn.Embedding(vocabulary, config.d_model)
        self.position = nn.Embedding(seq_len, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, vocabulary, bias=False)
        initialise(self, config.init or "gpt2", d_model=config.d_model, n_layer=config.n_layer)
        if config.tied_head:
            self.head.weight = self.token.weight

    def forward(self, tokens: Tensor, shift: Tensor | None = None) -> Tensor:
        x = self.embed(tokens, shift)
        for block in self.blocks:
            # Only a block's input is kept; the rest is computed again in backward, with the same dropout.
            x = checkpoint(block, x, use_reentrant=False) if self.recompute and self.training else block(x)
        return self.logits(x)

    def embed(self, tokens: Tensor, shift: Tensor | None = None) -> Tensor:
        """What goes into the first block, [B, T, D]."""
        embedded = self.token(tokens) if shift is None else self.token(tokens) + shift
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.dropout(embedded + self.position(positions))

    def logits(self, x: Tensor) -> Tensor:
        """From what the last block gives."""
        return self.head(self.norm(x))


class GPTTask(NextToken):
    """The transformer on text."""

    def build_model(self) -> nn.Module:
        return GPT(self.config.model, self.config.task.seq_len, len(self.vocabulary))


def build_gpt(config: TrainConfig) -> GPTTask:
    """The GPT task on the text that ``task.data`` names."""
    return GPTTask("gpt", config, load_text(config.task))
