"""Attention on a few fixed samples: how the heads of a model change while it learns, on the same tokens throughout.

Every so often the model itself, in evaluation mode and without gradients, is run on the samples one by one; maps of
some layers and heads are kept as events, with the labels that the samples were given. Weights, gradients, buffers,
modes and random states are afterwards what they were; what else a model's forward changes (a cache of its own, a
counter) is not put back. Under data parallelism only the first rank does it, on the module inside the wrapper, without
communication.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from monitor.hook import attention_maps, observe
from monitor.hook.attention import Call, may_attend, of_multihead
from monitor.hook.attention_maps import HEADS, SIZE, Maps
from monitor.hook.flops import eagerly, unwrapped
from monitor.hook.layers import named_modules
from monitor.hook.outputs import Hooks, plainly
from monitor.hook.passes import PLAIN
from monitor.hook.probe import Decoded, Reading
from monitor.landscape.undisturbed import at_rest

MOST_SAMPLES = 4
LONGEST_LABEL = 24
THINNED_AFTER = 32
"""Times at one cadence; then it is halved, so that a long training does not fill the disk with maps."""


class AttentionSamples:
    """Fixed samples, and when they are looked at.

    Args:
        batch: what the model is called with: a tensor, a tuple of positional or a mapping of named arguments. Every
            tensor in it has the samples in its first dimension.
        labels: for each sample the words for its places; None: the model's integer tokens, where it takes such.
        every: steps between two looks; None: at steps 10, 100 and then each time that the step has doubled.

    Raises:
        TypeError, ValueError: what is wrong, and what is accepted.
    """

    def __init__(
        self, model: nn.Module, batch: Any, labels: Sequence[Sequence[str]] | None = None, every: int | None = None
    ) -> None:
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(f"every is {every!r}; a positive number of steps is accepted, or None")
        if any(type(weight) not in PLAIN for weight in model.parameters()):
            raise ValueError(
                "the model is sharded, so that it cannot be run on one rank alone; samples are not watched"
            )
        self._model = model
        self._arguments = _arguments(batch)
        tensors = [leaf for leaf in tree_leaves(self._arguments) if isinstance(leaf, Tensor)]
        if not tensors or any(tensor.dim() == 0 for tensor in tensors):
            raise TypeError(
                f"the batch is {type(batch).__name__} without tensors; accepted is a tensor, a tuple of the model's "
                "arguments or a mapping of its named ones, with the samples in the first dimension"
            )
        sizes = sorted({tensor.shape[0] for tensor in tensors})
        if len(sizes) > 1 or not 0 < sizes[0] <= MOST_SAMPLES:
            raise ValueError(f"the batch has {sizes} samples; the same number of 1 to {MOST_SAMPLES} is accepted")
        self.count = sizes[0]
        self._labels = _checked(labels, self.count)
        self._every = every
        self._taken = 0

    def due(self, step: int) -> bool:
        """Whether to look after ``step``."""
        if self._every is None:
            return attention_maps.due(step)
        return step % (self._every << self._taken // THINNED_AFTER) == 0

    def look(self, step: int, tell: Callable[..., None]) -> Reading | None:
        """Run the samples; the maps are told as events when they have arrived on the host."""
        self._taken += 1
        inner = unwrapped(self._model)
        modules = {**named_modules(inner), "model": inner}
        names = list(modules)
        looks: list[Maps] = []
        with at_rest(self._model), eagerly():
            for sample in range(self.count):
                args, kwargs = tree_map(partial(_one, sample=sample), self._arguments)
                maps = _Watched(list(modules.values())).run(inner, args, kwargs)
                maps.layers = attention_maps.some_layers(list(maps.found))
                maps.found = {index: found for index, found in maps.found.items() if index in maps.layers}
                looks.append(maps)
        tensors = [tensor for maps in looks for tensor in maps.tensors()]
        if not tensors:
            return None

        def decode(arrays: list[np.ndarray]) -> Decoded:
            supply = iter(arrays)
            for sample, maps in enumerate(looks):
                own = [next(supply) for _ in maps.tensors()]
                for fields in maps.events(own, names):
                    labels = None if self._labels is None else self._labels[sample][: fields["shape"][2]]
                    tell("attention_map", step=step, sample=sample, labels=labels, **fields)
            return Decoded()

        return Reading(tensors, decode)


class _Watched:
    """One forward pass of a model whose modules' attention is looked at."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._hooks = Hooks()
        self._running: list[int] = []
        self._maps = Maps(set())
        self._inside = [(at, module) for at, module in enumerate(modules) if may_attend(module)]

    def run(self, model: nn.Module, args: Any, kwargs: Any) -> Maps:
        self._hooks.before(lambda index, *_: self._running.append(index), self._inside)
        self._hooks.after(self._left, self._inside)
        observe.watch_attention(self._called)
        try:
            model(*args, **kwargs)
        finally:
            observe.unwatch_attention(self._called)
            self._hooks.remove()
        self._maps.see_tokens((args, kwargs))
        return self._maps

    def _left(self, index: int, module: nn.Module, args: Any, kwargs: Any, _output: Any) -> None:
        self._running.remove(index)
        if isinstance(module, nn.MultiheadAttention) and index not in self._maps.found:
            self._take(index, of_multihead(module, args, kwargs))

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._running and self._running[-1] not in self._maps.found:
            self._take(self._running[-1], Call.of(args, kwargs))

    def _take(self, index: int, call: Call | None) -> None:
        if call is not None:
            with plainly(call.query):
                self._maps.layers.add(index)
                self._maps.take(index, call.first_sequence(SIZE, HEADS).weights())


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments; tensors copied, because a loader may fill its buffer again."""
    copied = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, batch)
    if isinstance(copied, Mapping):
        return (), {str(name): value for name, value in copied.items()}
    return (tuple(copied) if isinstance(copied, tuple | list) else (copied,)), {}


def _one(leaf: Any, sample: int) -> Any:
    return leaf[sample : sample + 1] if isinstance(leaf, Tensor) else leaf


def _checked(labels: Any, count: int) -> list[list[str]] | None:
    """The labels as texts of bounded length.

    Raises:
        TypeError, ValueError: what is wrong, and what is accepted.
    """
    if labels is None:
        return None
    if not isinstance(labels, Sequence) or isinstance(labels, str) or len(labels) != count:
        found = f"{len(labels)} entries" if isinstance(labels, Sequence) else type(labels).__name__
        raise ValueError(f"labels has {found}; a list of words for each of the {count} samples is accepted")
    for words in labels:
        if isinstance(words, str) or not isinstance(words, Sequence):
            raise TypeError(
                f"the labels of a sample are {words!r:.60}; a list of words, one for each place, is accepted"
            )
    return [[str(word)[:LONGEST_LABEL] for word in words[:SIZE]] for words in labels]
