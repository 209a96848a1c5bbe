"""Text that a model writes, token by token."""

from __future__ import annotations

import torch
from torch import nn

TEMPERATURE = 0.8
"""Below 1, so that a small model's text is readable: its unlikely tokens are drawn less often than it thinks right."""
NUCLEUS = 0.95
"""Tokens are drawn among the likeliest that together have this share. Holtzman et al. 2020, section 3.1."""
LONGEST_RUN = 24
"""Small models are caught in endless blanks: after that many equal tokens, a deep indentation, another one is drawn."""


def generate(model: nn.Module, prompt: list[int], count: int, *, context: int, seed: int) -> list[int]:
    """The ``count`` tokens that ``model``, int64[1, T] to float[1, T, V], lets follow ``prompt``.

    It sees at most the last ``context`` tokens. The same draws each time, from a generator of its own: two texts of one
    run differ only by what the model has learnt between them, and training goes on as without them. Logits that are not
    finite end the text, for nothing can be drawn from them.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            logits = model(torch.tensor([tokens[-context:]], device=device))[0, -1].float().cpu()
            if not logits.isfinite().all():
                break
            if len(tokens) >= LONGEST_RUN and len(set(tokens[-LONGEST_RUN:])) == 1:
                logits[tokens[-1]] = -torch.inf
            shares, order = torch.softmax(logits / TEMPERATURE, dim=0).sort(descending=True)
            shares[shares.cumsum(0) - shares >= NUCLEUS] = 0.0
            tokens.append(int(order[torch.multinomial(shares, 1, generator=generator)]))
    return tokens[len(prompt) :]
