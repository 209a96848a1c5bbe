"""torch.compile for the training forward and backward."""

from __future__ import annotations

import os
import shutil
import sys

import torch
from torch import nn

from monitor.errors import ConfigError
from trainer.config import CompileConfig


def compiled(model: nn.Module, config: CompileConfig, device: torch.device) -> nn.Module:
    """``model`` itself, or its compiled form: the same parameters behind another forward, compiled at its first call.

    The monitor is attached to the result before that call: its hook on the whole model runs outside the graph, and what
    it knows of modules inside is there when the graph is made.

    Raises:
        ConfigError: inductor lacks its compiler; it would say so in the middle of the first step.
    """
    if not config.enabled:
        return model
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if config.backend == "inductor" and device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"compile.backend = inductor needs a C++ compiler on a CPU, and {compiler} is not found. Install one, name "
            "it in the environment variable CXX, or set compile.enabled = false."
        )
    forward = torch.compile(model, backend=config.backend)
    assert isinstance(forward, nn.Module)
    return forward
