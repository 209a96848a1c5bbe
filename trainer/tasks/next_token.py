"""Next-token prediction on text, for any model from tokens to logits."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.losses import IGNORED, token_loss
from trainer.tasks.base import Batch, Task
from trainer.tasks.generation import generate
from trainer.tasks.text import Text, Windows

PROMPT_TOKENS = 64
"""How much of the held-out text a sample begins with."""


class NextToken(Task):
    """Text, its loss, and what is measured of it; a subclass adds the model."""

    score_names = ("loss", "accuracy", "bytes")

    def __init__(self, name: str, config: TrainConfig, text: Text) -> None:
        self.name = name
        self.config = config
        self.train = Windows(text.train, config.task.seq_len)
        self.val = Windows(text.val, config.task.seq_len)
        self.train_size = len(self.train)
        self.val_size = len(self.val)
        self.data_summary = text.summary
        self.tokens_per_example = config.task.seq_len
        self.vocabulary = text.vocabulary
        self._byte_counts = torch.tensor([len(word) for word in text.vocabulary])

    def train_batch(self, indices: Tensor) -> Batch:
        return self.train.batch(indices)

    def val_batch(self, indices: Tensor) -> Batch:
        return self.val.batch(indices)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, and in training what the section ``loss`` adds to it."""
        added = self.config.loss.model_dump() if model.training else {}
        return token_loss(_logits(model, batch), batch.targets, **added)

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, hits of the likeliest token, and bytes that the targets stand for."""
        logits = _logits(model, batch)
        counted = batch.targets != IGNORED
        hits = ((logits.argmax(-1) == batch.targets) & counted).sum()
        sizes = self._byte_counts.to(batch.targets.device)[batch.targets.where(counted, 0)]
        return torch.stack([token_loss(logits, batch.targets), hits, (sizes * counted).sum()])

    def held_out(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity is that of a token. Bits per byte can be compared whatever a token is."""
        loss = means["loss"]
        return {
            "val_loss": loss,
            "val_perplexity": math.exp(loss) if not loss > 700 else math.inf,
            "val_bits_per_byte": loss / math.log(2) / means["bytes"],
            "val_accuracy": means["accuracy"],
        }

    def no_shift(self, model: nn.Module, batch: Batch) -> Tensor:
        embedding = model.get_submodule("token")
        assert isinstance(embedding, nn.Embedding)  # both models of text have one of that name
        return torch.zeros(*batch.inputs.shape, embedding.embedding_dim, device=batch.inputs.device)

    def sample(self, model: nn.Module, size: int) -> tuple[str, str]:
        """The prompt is from the middle of the held-out text, up to the end of a line where there is one."""
        middle = len(self.val.data) // 2
        prompt = self.val.data[middle : middle + min(PROMPT_TOKENS, self.tokens_per_example)].tolist()
        ends = [place for place, token in enumerate(prompt, 1) if self.vocabulary[token].endswith(b"\n")]
        prompt = prompt[: ends[-1]] if ends else prompt
        tokens = generate(model, prompt, size, context=self.tokens_per_example, seed=self.config.seed)
        return _shown(self._text(prompt)), _shown(self._text(tokens)[:size])

    def _text(self, tokens: list[int]) -> bytes:
        return b"".join(self.vocabulary[token] for token in tokens)


def _shown(content: bytes) -> str:
    """Text that does nothing to a terminal: what is neither printable nor a line end or tab is replaced."""
    text = content.decode(errors="replace")
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch.inputs) if batch.shift is None else model(batch.inputs, batch.shift)
