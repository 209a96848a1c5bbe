"""First weights, by scheme: how large the entries of linear and convolutional layers are before the first step."""

from __future__ import annotations

import math

from torch import nn

GPT2_STD = 0.02
"""Radford et al. 2019: logits of a fresh model are then small and its loss is close to the logarithm of its classes."""
RESIDUAL_WRITERS = ("proj", "down")
"""Names of the two layers per block that write to the residual stream."""


def initialise(model: nn.Module, scheme: str, *, d_model: int, n_layer: int) -> None:
    """Draw the weights of ``model`` anew; biases and norms stay as torch made them.

    ========  ==================================================================================================
    gpt2      std 0.02; layers that write to the residual stream 1 / sqrt(2 L) of it, so that the stream's variance
              does not grow with depth. Radford et al. 2019, section 2.3.
    xavier    std sqrt(2 / (inputs + outputs)). Glorot and Bengio 2010, equation 16.
    he        std sqrt(2 / inputs). He et al. 2015, equation 10.
    small     std sqrt(2 / (5 d_model)). Nguyen and Salazar 2019, https://arxiv.org/abs/1910.05895, section 2.2.
    ========  ==================================================================================================

    Embeddings have std 0.02 in all of them.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=GPT2_STD)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            if scheme == "xavier":
                nn.init.xavier_normal_(module.weight)
            elif scheme == "he":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif scheme == "small":
                nn.init.normal_(module.weight, std=math.sqrt(2 / (5 * d_model)))
            else:
                writes = name.endswith(RESIDUAL_WRITERS)
                nn.init.normal_(module.weight, std=GPT2_STD / math.sqrt(2 * n_layer) if writes else GPT2_STD)
