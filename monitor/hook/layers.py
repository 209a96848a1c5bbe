"""The table of layers: which parameter tensor is which row of the per-layer statistics."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Put into parameter names, at any depth, by torch.compile, FSDP1 and activation checkpointing."""


@dataclass(frozen=True, slots=True)
class LayerTable:
    """All parameter tensors of a model in the order of ``named_parameters``, tied ones once.

    Frozen parameters are in the table too: one that is unfrozen later has its place, and has no value until then.
    """

    names: tuple[str, ...]
    """L names without the prefixes of wrappers."""
    shapes: tuple[tuple[int, ...], ...]
    parameters: tuple[nn.Parameter, ...]
    index: dict[int, int]
    """``id(parameter)`` to its row. The table keeps the parameters alive, so an id cannot be reused."""
    split: bool = False
    """Whether other ranks hold other layers (pipeline stages): what is of all layers is taken together with them."""

    def __len__(self) -> int:
        return len(self.names)


def layer_table(model: nn.Module, *, split: bool = False) -> LayerTable:
    """The table of ``model``, which may be wrapped (DistributedDataParallel, torch.compile)."""
    named = list(model.named_parameters())
    plain = [plain_name(name) for name, _ in named]
    names = plain if len(set(plain)) == len(plain) else [name for name, _ in named]
    parameters = tuple(parameter for _, parameter in named)
    return LayerTable(
        names=tuple(names),
        shapes=tuple(tuple(parameter.shape) for parameter in parameters),
        parameters=parameters,
        index={id(parameter): row for row, parameter in enumerate(parameters)},
        split=split,
    )


def plain_name(name: str) -> str:
    """``module._orig_mod.blocks.0.weight`` is ``blocks.0.weight``."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def module_names(model: nn.Module) -> tuple[str, ...]:
    """Every module of ``model`` but the model itself and its wrappers, in the order of ``named_modules``.

    Statistics of modules' outputs are in this order.
    """
    return tuple(named_modules(model))


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules behind :func:`module_names`."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        plain = plain_name(f"{name}.").removesuffix(".")
        if plain:
            found.setdefault(plain, module)
    return found
