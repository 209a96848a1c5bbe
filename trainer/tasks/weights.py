"""First weights from a file: a model that was trained before is trained further, or with an adapter."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from monitor.errors import ConfigError
from trainer.commit import MODEL


def load_weights(model: nn.Module, source: str) -> None:
    """Fill ``model`` from a checkpoint folder or a .safetensors file, which can hold no code.

    Raises:
        ConfigError: it cannot be read, or its names or shapes are not those of ``model``.
    """
    path = Path(source).expanduser()
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"model.weights = {source}: there is no file {file}. Give a checkpoint folder, such as "
            "runs/RUN/checkpoints/00001200, or a .safetensors file."
        )
    try:
        safetensors.torch.load_model(model, str(file))
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"model.weights = {source}: {file} cannot be read: {error}.") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:600]
        raise ConfigError(
            f"model.weights = {source}: made by another model ({reason}). Use its task and model sections."
        ) from None
