"""Handwritten digits: the 1797 images of 8 by 8 pixels that scikit-learn brings along, for an MLP and a CNN.

Source: Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80 (its test set).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monitor.errors import ConfigError
from trainer.config import ModelConfig, TaskConfig, TrainConfig
from trainer.losses import token_loss
from trainer.tasks.base import Batch, Task
from trainer.tasks.initialise import initialise

CLASSES = 10
SIDE = 8
"""Pixels."""
VIEWS = 16
"""How many augmented versions there are of each training image (our judgement): an epoch shows each of them once."""


class DigitsMLP(nn.Module):
    """float32[B, 1, 8, 8] to float[B, 10]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [SIDE * SIDE] + [config.d_model] * config.n_layer
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.activations = nn.ModuleList(nn.ReLU() for _ in self.layers)  # modules, so that dead units can be counted
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.d_model, CLASSES)
        if config.init:
            initialise(self, config.init, d_model=config.d_model, n_layer=config.n_layer)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = self.dropout(activation(layer(x)))
        return self.head(x)


class DigitsCNN(nn.Module):
    """float32[B, 1, 8, 8] to float[B, 10]: 3 by 3 convolutions, halved to 4 by 4 in the middle, averaged at the end."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = [1] + [config.d_model] * config.n_layer
        self.convolutions = nn.ModuleList(
            # A bias would be taken off again by the mean of BatchNorm.
            nn.Conv2d(before, after, kernel_size=3, padding=1, bias=not config.batch_norm)
            for before, after in pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(config.d_model) for _ in channels[1:] if config.batch_norm)
        self.activations = nn.ModuleList(nn.ReLU() for _ in self.convolutions)  # as in DigitsMLP
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.d_model, CLASSES)
        if config.init:
            initialise(self, config.init, d_model=config.d_model, n_layer=config.n_layer)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for index, convolution in enumerate(self.convolutions):
            x = convolution(x)
            x = self.activations[index](self.norms[index](x) if self.norms else x)
            if index == (len(self.convolutions) - 1) // 2:
                x = F.max_pool2d(x, 2)
        return self.head(self.dropout(x.mean(dim=(2, 3))))


class DigitsTask(Task):
    """Which digit an image shows."""

    score_names = ("loss", "accuracy")

    def __init__(self, config: TrainConfig) -> None:
        self.name = config.task.kind
        self.config = config
        images, labels = load_digits()
        # The same split whatever the seed, so that runs can be compared.
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        held_out = max(1, round(len(images) * config.task.val_fraction))
        self._val = Batch(images[order[:held_out]], labels[order[:held_out]])
        self._train = augmented(Batch(images[order[held_out:]], labels[order[held_out:]]), config.task, config.seed)
        self.train_size, self.val_size = len(self._train.targets), held_out
        self.data_summary = f"handwritten digits: {len(images) - held_out} images to train on, {held_out} held out"

    def build_model(self) -> nn.Module:
        return DigitsCNN(self.config.model) if self.name == "cnn" else DigitsMLP(self.config.model)

    def train_batch(self, indices: Tensor) -> Batch:
        return Batch(self._train.inputs[indices], self._train.targets[indices])

    def val_batch(self, indices: Tensor) -> Batch:
        return Batch(self._val.inputs[indices], self._val.targets[indices])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, and in training what the section ``loss`` adds to it."""
        added = self.config.loss.model_dump() if model.training else {}
        return token_loss(_logits(model, batch), batch.targets, **added)

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, and images whose likeliest class is right."""
        logits = _logits(model, batch)
        return torch.stack([token_loss(logits, batch.targets), (logits.argmax(-1) == batch.targets).sum()])

    def no_shift(self, model: nn.Module, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.inputs)


def build_digits(config: TrainConfig) -> DigitsTask:
    """The digits task with the model that ``task.kind`` names.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    return DigitsTask(config)


def load_digits() -> tuple[Tensor, Tensor]:
    """Images float32[N, 1, 8, 8] in 0 to 1 and classes int64[N].

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise ConfigError(
            "task.kind = mlp and cnn read the digits that scikit-learn brings along, and it is not installed. "
            "Install it with: pip install 'gradiometer[digits]'"
        ) from None
    digits = datasets.load_digits()
    return torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target).long()


def augmented(batch: Batch, config: TaskConfig, seed: int) -> Batch:
    """``VIEWS`` versions of every image, each shifted by whole pixels and noisy; ``batch`` itself when both are off.

    All are drawn here, before training: which version an index stands for then depends on the seed alone, so that a
    resumed run sees the same ones.
    """
    if not config.shift_px and not config.noise_std:
        return batch
    generator = torch.Generator().manual_seed(seed)
    images = batch.inputs.repeat(VIEWS, 1, 1, 1)
    N, most = len(images), config.shift_px
    down, right = torch.randint(-most, most + 1, (2, N, 1), generator=generator)
    padded = F.pad(images[:, 0], (most,) * 4)  # what is moved in is empty, as the margin is
    rows, columns = (torch.arange(SIDE) + most - shift for shift in (down, right))  # [N, 8] each
    moved = padded[torch.arange(N)[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)
    noise = torch.randn(moved.shape, generator=generator) * config.noise_std
    return Batch(moved + noise, batch.targets.repeat(VIEWS))


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch.inputs if batch.shift is None else batch.inputs + batch.shift)
