"""Attention logits and how spread out attention is: what drifts for hundreds of steps before the gradient norm moves.

Fused kernels never show the logits. Two ways to them, for every call of
``torch.nn.functional.scaled_dot_product_attention`` in the training's forward pass:

    bound     max ‖q‖ · max ‖k‖ · scale over each sequence and head, by Cauchy-Schwarz at least the largest |logit|;
              two small reductions
    exact     the logits of the first sequence computed again in float32, as many query rows of it as fit ``_MOST``

Both belong to the innermost module whose forward makes the call (``torch.nn.MultiheadAttention`` is one). That module,
asked for its weights (``need_weights=True``), attends without the function; then its exact logits come from its inputs.
On a few of these steps the maps of some heads are kept as events (``attention_maps``).
Attention in a compiled graph, flex_attention and kernels of other packages are not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from monitor.hook import attention_maps, observe
from monitor.hook.attention_maps import Maps
from monitor.hook.layers import module_names
from monitor.hook.outputs import Hooks, Watchable, measurable, plainly, stacked
from monitor.hook.probe import Decoded, Probe, Reading, Stat

EXACT_EVERY = 100
MOST_CALLS = 8
"""Attention calls of one module that are measured in one step."""
_MOST = 1 << 22
"""Logits that are computed again for one call: 16 MB."""
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")

STATS = ("attention_logit_max", "attention_entropy_min", "attention_entropy_mean")


class Attention(Probe):
    """Bound of the attention logits every 10 steps; largest logit and entropy of one sequence every 100."""

    name = "attention logits"
    every = 10
    first_steps = 1

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._watched = Watchable(model)
        self._model = model
        self._names = module_names(model)
        self._hooks = Hooks()
        self._exact = False
        self._attending: list[int] = []
        """Modules that have been seen to attend, in the order of execution."""
        self._reset()
        observe.watch_attention(self._called)

    def _reset(self) -> None:
        self._running: list[int] = []
        """Watched modules whose forward has begun and not ended, outermost first."""
        self._calls: dict[int, int] = {}
        self._bounded: list[int] = []
        self._bounds: list[Tensor] = []
        self._exacts: list[int] = []
        self._found: list[Tensor] = []
        self._maps: Maps | None = None

    def due(self, step: int, since_start: int) -> bool:
        self._exact = since_start <= self.first_steps or step % EXACT_EVERY == 0 or attention_maps.due(step)
        return super().due(step, since_start)

    def begin(self) -> None:
        self._reset()
        self._exact |= self.watch.armed
        self._hooks.remove()
        inside = [(at, module) for at, module in self._watched.at(self.watch.step) if may_attend(module)]
        self._hooks.before(self._entered, inside)
        self._hooks.after(self._left, inside)
        if self._attending and attention_maps.due(self.watch.step):
            self._maps = Maps(attention_maps.some_layers(self._attending))
            self._hooks.after(self._ended, [(0, self._model)])

    def _ended(self, _index: int, _model: nn.Module, args: Any, kwargs: Any, _output: Any) -> None:
        if self.measuring and self._maps is not None and self.watch.in_forward():
            with self.watch.charged(self):
                self._maps.see_tokens((args, kwargs))

    def _entered(self, index: int, *_given: object) -> None:
        if self.measuring and self.watch.in_forward():
            self._running.append(index)

    def _left(self, index: int, module: nn.Module, args: Any, kwargs: Any, _output: Any) -> None:
        if not self.measuring or index not in self._running:
            return
        while self._running.pop() != index:  # those whose forward ended by an exception
            pass
        if not self._exact or index in self._calls or not self.watch.in_forward():
            return
        if isinstance(module, nn.MultiheadAttention):
            with self.watch.charged(self):
                call = of_multihead(module, args, kwargs)
                if call is not None:
                    self._calls[index] = 1
                    self._measure_exactly(index, call)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.measuring and self._running and self.watch.in_forward():
            with self.watch.charged(self):
                call = Call.of(args, kwargs)
                index = self._running[-1]
                calls = self._calls.get(index, 0)
                if call is None or calls >= MOST_CALLS:
                    return
                self._calls[index] = calls + 1
                with plainly(call.query):
                    self._bounded.append(index)
                    self._bounds.append(call.bound())
                if self._exact:
                    self._measure_exactly(index, call)

    def _measure_exactly(self, index: int, call: Call) -> None:
        with plainly(call.query):
            self._exacts.append(index)
            self._found.append(call.first_sequence().summary())
            if index not in self._attending:
                self._attending.append(index)
            if self._maps is not None and index in self._maps.layers:
                self._maps.take(index, call.first_sequence(attention_maps.SIZE, attention_maps.HEADS).weights())

    def end_step(self) -> Reading | None:
        self._hooks.remove()
        bounded, exacts = self._bounded, self._exacts
        maps, step = self._maps, self.watch.step
        tensors = [stacked(group) for group in (self._bounds, self._found) if group]
        if maps is not None:
            tensors += maps.tensors()
        self._reset()
        if not tensors:
            return None

        def decode(arrays: list[np.ndarray]) -> Decoded:
            supply = iter(arrays)
            modules: dict[str, Stat] = {}
            if bounded:
                modules["attention_logit_bound"] = self._placed(bounded, next(supply), np.maximum)
            if exacts:
                largest, lowest, mean, rows = next(supply).T
                modules[STATS[0]] = self._placed(exacts, largest, np.maximum)
                told = rows > 0
                if told.any():
                    at = np.asarray(exacts)[told]
                    modules[STATS[1]] = self._placed(at, lowest[told], np.minimum)
                    modules[STATS[2]] = self._placed(at, mean[told], np.minimum)
            if maps is not None and maps.found:
                for fields in maps.events(list(supply), self._names):
                    self.watch.tell("attention_map", step=step, **fields)
            return Decoded(modules=modules)

        return Reading(tensors, decode)

    def _placed(self, at: Sequence[int] | np.ndarray, values: np.ndarray, combine: np.ufunc) -> Stat:
        """One value a module; of several calls the worst."""
        row, present = np.zeros(len(self._names), np.float32), np.zeros(len(self._names), bool)
        with np.errstate(invalid="ignore"):
            for index, value in zip(at, values, strict=True):
                row[index] = combine(row[index], value) if present[index] else value
                present[index] = True
        return row, present

    def remove(self) -> None:
        observe.unwatch_attention(self._called)
        self._hooks.remove()
        self._reset()


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one attention that say what its logits are."""

    query: Tensor
    """[..., H, L, E], detached."""
    key: Tensor
    """[..., H', S, E]: H' is H, a divisor of it (grouped queries), or 1."""
    mask: Tensor | None
    """Broadcasts to [..., H, L, S]; bool (True takes part) or added to the logits."""
    causal: bool
    """Query i sees keys 0 ... i."""
    scale: float

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """From a call of ``scaled_dot_product_attention``; None when its tensors cannot be looked at."""
        given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
        query, key, mask = given["query"], given["key"], given.get("attn_mask")
        if not all(isinstance(each, Tensor) and measurable(each) for each in (query, key)) or query.dim() < 2:
            return None
        if mask is not None and not measurable(mask):
            return None
        query, key = query.detach(), key.detach()
        scale = given.get("scale")
        if given.get("enable_gqa") and query.dim() > 2 and key.shape[-3] != query.shape[-3]:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        return cls(
            query, key, None if mask is None else mask.detach(), bool(given.get("is_causal", False)),
            abs(float(scale)) if scale is not None else 1 / math.sqrt(query.shape[-1]),
        )  # fmt: skip

    def bound(self) -> Tensor:
        """Largest ‖q‖ times largest ‖k‖ of a sequence and head, times the scale; the largest of these."""
        longest = [
            torch.linalg.vector_norm(each, dim=-1, dtype=torch.float32).amax(-1) for each in (self.query, self.key)
        ]
        return (longest[0] * longest[1]).amax() * self.scale

    def first_sequence(self, queries: int | None = None, heads: int | None = None) -> Logits:
        """The logits of the first sequence of the batch.

        Args:
            queries: of the first so many; by default of at most ``_MOST // (H · S)`` queries spread evenly.
            heads: of the first so many; by default of all.
        """
        *batch, all_heads, length, _ = (1, *self.query.shape) if self.query.dim() == 2 else self.query.shape
        keys = self.key.shape[-2]
        step = max(1, math.ceil(length * all_heads * keys / _MOST))
        rows = slice((length - 1) % step, None, step)  # the last row is always one of them
        rows = rows if queries is None else slice(queries)
        query, key = self.query, self.key
        for _ in batch:
            query, key = query[0], key[0]
        if query.dim() > 2:
            query, key = query[:heads], key[:heads]
        logits = query[..., rows, :].float() @ key.float().transpose(-1, -2) * self.scale
        logits = logits.reshape(-1, logits.shape[-2], keys)
        visible = torch.ones((), dtype=torch.bool, device=logits.device)
        bias = None
        if self.causal:
            at = torch.arange(length, device=logits.device)[rows]
            visible = torch.arange(keys, device=logits.device) <= at[:, None]
        if self.mask is not None:
            mask = self.mask.expand(*batch, all_heads, length, keys)
            for _ in batch:
                mask = mask[0]
            mask = mask[:heads, rows]
            visible = visible & (mask if mask.dtype == torch.bool else mask != -math.inf)
            bias = None if mask.dtype == torch.bool else mask.float()
        return Logits(logits, visible.expand(logits.shape), bias)


@dataclass(frozen=True, slots=True)
class Logits:
    """Attention logits of some queries of one sequence."""

    scaled: Tensor
    """float32[H, R, S]: scale · q·k."""
    visible: Tensor
    """bool[H, R, S]."""
    bias: Tensor | None
    """Added to ``scaled``."""

    def weights(self) -> Tensor:
        """float32[H, R, S]: what attention multiplies the values by, before dropout; NaN for a query that sees none."""
        biased = self.scaled if self.bias is None else self.scaled + self.bias
        return biased.masked_fill(~self.visible, -math.inf).softmax(-1)

    def summary(self) -> Tensor:
        """float32[4]: largest |logit| visible; lowest and mean entropy of a head; queries that entropy is known of.

        Entropy is that of the weights of a query as a share of the entropy of equal weights, ln(keys it sees), averaged
        over the queries that see two keys or more.
        """
        largest = self.scaled.masked_fill(~self.visible, 0.0).abs().amax()
        seen = self.visible.sum(-1)  # [H, R]
        several = seen > 1
        entropy = torch.special.entr(self.weights()).sum(-1) / seen.clamp(min=2).log()
        entropy = torch.where(several, entropy, 0.0).sum(-1) / several.sum(-1).clamp(min=1)  # [H]
        return torch.stack([largest, entropy.amin(), entropy.mean(), several.sum().float()])


def may_attend(module: nn.Module) -> bool:
    """Whether the module's own forward may call attention: of torch's own modules only one does."""
    return isinstance(module, nn.MultiheadAttention) or not type(module).__module__.startswith("torch.nn.modules")


def of_multihead(module: nn.MultiheadAttention, args: Any, kwargs: Any) -> Call | None:
    """The attention of the first sequence of a call that did not use ``scaled_dot_product_attention``.

    Keys that the module adds itself (``bias_k``, ``add_zero_attn``) are left out.
    """
    names = (
        "query",
        "key",
        "value",
        "key_padding_mask",
        "need_weights",
        "attn_mask",
        "average_attn_weights",
        "is_causal",
    )
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    query, key = given["query"], given["key"]
    if not all(isinstance(each, Tensor) and measurable(each) for each in (query, key)):
        return None
    with plainly(query):
        if query.dim() == 3:
            query, key = (each[0] if module.batch_first else each[:, 0] for each in (query, key))
        width, heads = module.embed_dim, module.num_heads
        if module.in_proj_weight is not None:
            weights = module.in_proj_weight.detach().split(width)[:2]
        else:
            weights = (module.q_proj_weight.detach(), module.k_proj_weight.detach())
        bias = module.in_proj_bias
        biases = bias.detach().split(width)[:2] if bias is not None else (None, None)
        query, key = (
            functional.linear(each.detach().to(weight.dtype), weight, part).unflatten(-1, (heads, -1)).transpose(0, 1)
            for each, weight, part in zip((query, key), weights, biases, strict=True)
        )
        mask = _first_mask(given.get("attn_mask"), given.get("key_padding_mask"), heads, query.dtype)
    return Call(query, key, mask, False, 1 / math.sqrt(width // heads))


def _first_mask(mask: Tensor | None, padding: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """The first sequence's masks as one that is added. In this module's masks True means left out."""
    if mask is not None and mask.dim() == 3:
        mask = mask[:heads]
    if padding is not None:
        padding = padding[0] if padding.dim() == 2 else padding
    added = [_as_added(each, dtype) for each in (mask, padding) if each is not None]
    return None if not added else added[0] if len(added) == 1 else added[0] + added[1]


def _as_added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.detach().to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -math.inf)
