"""Training a small part in place of the whole model: LoRA by the peft library, prefixes and bottlenecks of our own.

peft puts LoRA into any module. Its prefix tuning is made for transformers' key-value cache, and it has no bottleneck
adapters, so that these two, a few lines each, are here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monitor.errors import ConfigError
from trainer.config import AdapterConfig
from trainer.tasks.gpt import GPT, Attention, Block
from trainer.tasks.initialise import GPT2_STD


class Prefix(nn.Module):
    """P learnt keys and values that every token may attend to. Li and Liang 2021, https://arxiv.org/abs/2101.00190."""

    def __init__(self, attention: Attention, length: int) -> None:
        super().__init__()
        features = attention.proj.in_features // attention.n_head
        self.keys = nn.Parameter(torch.empty(attention.n_head, length, features).normal_(std=GPT2_STD))
        self.values = nn.Parameter(torch.empty(attention.n_head, length, features).normal_(std=GPT2_STD))

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, H, T, E] each to [B, H, P + T, E] each, and what may be seen, bool[T, P + T]."""
        B, _, T, _ = k.shape
        seen = torch.ones(T, T, dtype=torch.bool, device=k.device).tril()
        seen = F.pad(seen, (self.keys.shape[1], 0), value=True)
        k, v = (
            torch.cat([learnt.to(text.dtype).expand(B, -1, -1, -1), text], dim=2)
            for learnt, text in ((self.keys, k), (self.values, v))
        )
        return k, v, seen


class Bottleneck(nn.Module):
    """A part of a block, followed by a narrow MLP beside a skip. Houlsby et al. 2019, https://arxiv.org/abs/1902.00751."""

    def __init__(self, inner: nn.Module, d_model: int, width: int) -> None:
        super().__init__()
        self.inner = inner
        self.narrow = nn.Linear(d_model, width)
        self.wide = nn.Linear(width, d_model)
        nn.init.zeros_(self.wide.weight)  # changes nothing at first
        nn.init.zeros_(self.wide.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + self.wide(F.gelu(self.narrow(y)))


def adapt(model: nn.Module, config: AdapterConfig) -> None:
    """Freeze ``model`` and put the adapter into it, in place; only the adapter has gradients then. Nothing for none.

    Raises:
        ConfigError: peft is not installed, or the adapter does not fit the model.
    """
    if config.kind == "lora":
        _put_lora(model, config)
    elif config.kind is not None:
        model.requires_grad_(False)
        if not isinstance(model, GPT):
            raise ConfigError(f"adapter.kind = {config.kind} is made for the GPT; lora fits any model.")
        d_model = model.head.in_features
        for block in model.blocks:
            assert isinstance(block, Block) and isinstance(block.attn, Attention)
            if config.kind == "prefix":
                block.attn.prefix = Prefix(block.attn, config.prefix_len)
            else:
                block.attn = Bottleneck(block.attn, d_model, config.rank)
                block.mlp = Bottleneck(block.mlp, d_model, config.rank)


def merge(model: nn.Module) -> None:
    """Add the LoRA of ``model`` to the weights it belongs to, in place; the outputs stay the same, to rounding."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()


def _put_lora(model: nn.Module, config: AdapterConfig) -> None:
    """Hu et al. 2021, https://arxiv.org/abs/2106.09685."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError(
            "adapter.kind = lora needs the peft library, which is not installed. "
            "Install it with: pip install 'gradiometer[peft]'"
        ) from None
    wanted = [name.strip() for name in config.layers.split(",") if name.strip()]
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in wanted:
        if not any(layer == name or layer.endswith(f".{name}") for layer in linear):
            last = sorted({layer.rpartition(".")[2] for layer in linear})
            raise ConfigError(
                f"adapter.layers = {config.layers}: no linear layer's name ends in {name}. "
                f"There are: {', '.join(last)}."
            )
    inject_adapter_in_model(LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=wanted), model)
