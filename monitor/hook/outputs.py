"""Looking at what modules return, from forward hooks that are there in measured steps only.

Put in when the step begins and taken out when it ends, because a hook that stays has a price even when it does nothing:
``torch.nn.TransformerEncoderLayer`` leaves its fast path in evaluation, and every call of the module gets slower.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.utils.hooks import RemovableHandle

from monitor.hook.layers import named_modules

Saw = Callable[[int, nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
"""Called with (index, module, args, kwargs, output); of a pre-hook the output is None."""

_PLAIN = frozenset((Tensor, nn.Parameter))
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transform = torch._C._functorch.peek_interpreter_stack


class Hook:
    """One forward hook or pre-hook.

    In a copy or a pickle of the model it becomes ``contextlib.nullcontext().__exit__``, which takes anything and does
    nothing. Traced by torch.compile it is nothing, too: no graph break, no operation in the graph.
    """

    __slots__ = ("_index", "_saw")

    def __init__(self, saw: Saw, index: int) -> None:
        self._saw = saw
        self._index = index

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if not torch.compiler.is_compiling():
            self._saw(self._index, module, args, kwargs, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


class Hooks:
    """The hooks of one probe while they are in."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def after(self, saw: Saw, modules: Iterable[tuple[int, nn.Module]]) -> None:
        """Call ``saw`` after each forward of the modules, given with an index each."""
        for index, module in modules:
            self._handles.append(module.register_forward_hook(Hook(saw, index), with_kwargs=True))

    def before(self, saw: Saw, modules: Iterable[tuple[int, nn.Module]]) -> None:
        """Call ``saw`` before each forward."""
        for index, module in modules:
            self._handles.append(module.register_forward_pre_hook(Hook(saw, index), with_kwargs=True))

    def remove(self) -> None:
        """Take all of them out. Idempotent."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class Watchable:
    """The modules to put hooks into, found again every ``_AGAIN`` steps: a loop may compile some of them after attach.

    A hook that comes and goes in a compiled module makes torch.compile compile it again. A module that the model got
    later has no place in what is recorded, and is not watched.
    """

    _AGAIN = 50

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._places = {name: at for at, name in enumerate(named_modules(model))}
        self._found: list[tuple[int, nn.Module]] = []
        self._until = -1

    def at(self, step: int) -> list[tuple[int, nn.Module]]:
        """The modules with their index; the same list as long as they were not looked for again."""
        if step > self._until:
            names = list(named_modules(self._model))
            self._found = [
                (self._places[names[at]], module) for at, module in watchable(self._model) if names[at] in self._places
            ]
            self._until = step + self._AGAIN - 1
        return self._found


def watchable(model: nn.Module) -> list[tuple[int, nn.Module]]:
    """The modules of :func:`monitor.hook.layers.named_modules` whose forward is run by Python, with their place there.

    What is inside a compiled or scripted module is left out: its outputs exist only inside the graph. A module that is
    ``torch.compile``'s result, or whose ``forward`` is, counts, since its own hooks run outside the graph; one compiled
    in place does not.
    """
    hidden: set[int] = set()
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule) or getattr(module, "_compiled_call_impl", None) is not None:
            hidden.update(id(inner) for inner in module.modules())
        elif isinstance(module, OptimizedModule) or hasattr(module.forward, "_torchdynamo_orig_callable"):
            hidden.update(id(inner) for inner in module.modules() if inner is not module)
    return [(at, module) for at, module in enumerate(named_modules(model).values()) if id(module) not in hidden]


def first_float(output: Any) -> Tensor | None:
    """The first tensor of real floats in what a module returned: itself, or in a tuple, list or mapping.

    Detached. None when there is none, or when it cannot be looked at without harm (see :func:`measurable`).
    """
    found: Tensor | None
    if isinstance(output, Tensor):
        found = output if output.is_floating_point() else None
    else:
        found = next((tensor for tensor in tensors_of(output) if tensor.is_floating_point()), None)
    return found.detach() if found is not None and measurable(found) else None


def tensors_of(value: Any, depth: int = 2) -> Iterable[Tensor]:
    """The tensors in ``value``, in order."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, tuple | list):
        for part in value:
            yield from tensors_of(part, depth - 1)
    elif depth and isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part, depth - 1)


def measurable(tensor: Tensor) -> bool:
    """Whether operations on ``tensor`` here are ours alone.

    Not so for tensor subclasses (a DTensor may communicate), inside torch.func transforms, under a dispatch mode
    (selective checkpointing remembers every operation, a flop counter counts it) and in a CUDA graph's capture.
    """
    return (
        type(tensor) in _PLAIN
        and tensor.layout == torch.strided
        and not tensor.is_nested
        and not tensor.is_meta
        and tensor.numel() > 0
        and not _dispatch_modes()
        and _transform() is None
        and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def plainly(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """In the precision that is asked for: under autocast a bf16 tensor would be copied to take its norm.

    Gradients need no turning off here: all operations are on detached tensors.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


_NOTHING = contextlib.nullcontext()


def stacked(numbers: list[Tensor]) -> Tensor:
    """``[n, ...]``, on the device of the first: a model may lie on several."""
    if len(set(map(Tensor.get_device, numbers))) > 1:
        device = numbers[0].device
        numbers = [number.to(device, non_blocking=True) for number in numbers]
    return torch.stack(numbers)


def even_step(count: int, most: int, period: int) -> int:
    """Step with which at most ``most`` of ``count`` places in a row are taken, never all at one place of a period.

    A batch of 64 sequences of 256 with step 1024 would be looked at in the first position of each sequence only; a step
    that has no divisor in common with the period comes through all positions.
    """
    step = math.ceil(count / most)
    while math.gcd(step, period) != 1:
        step += 1
    return step
