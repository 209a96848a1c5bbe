"""Calls of torch watched while a monitor is attached: backward, clipping, the steps of a GradScaler, attention.

A training loop says what it is doing by calling ``loss.backward()``, ``torch.nn.utils.clip_grad_norm_`` and
``scaler.unscale_ / step``. These functions are wrapped once per process while at least one monitor is attached, and put
back when the last one leaves. Why wrapping and not hooks: a module's backward hook breaks torch.compile's graph, a
hook per parameter costs a Python call per tensor and micro-step, and there is no hook at all for clipping.

A function that the loop imported by name before ``attach`` (``from torch.nn.utils import clip_grad_norm_``) escapes
this; ``gradients.py`` notices from the gradients' version counters that something changed them.
"""

from __future__ import annotations

import functools
import os
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.jit._builtins
from torch.nn import functional
from torch.optim import Optimizer


class Listener(Protocol):
    """What a monitor is told. ``call`` is the original call, to be made exactly once by the listener."""

    def backward_begins(self) -> None: ...
    def backward_ended(self) -> None: ...
    def claims_clip(self, parameters: list[torch.Tensor]) -> bool: ...
    def clip_called(self, call: ClipCall) -> torch.Tensor: ...
    def value_clip_called(self, call: ValueClipCall) -> None: ...
    def claims_scaler(self, scaler: Any, optimizer: Optimizer) -> bool: ...
    def unscale_called(self, optimizer: Optimizer, call: Callable[[], Any]) -> Any: ...
    def scaler_step_called(self, optimizer: Optimizer, call: Callable[[], Any]) -> Any: ...
    def forget(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ClipCall:
    """The arguments of one ``torch.nn.utils.clip_grad_norm_``, and the original to run it."""

    parameters: Sequence[torch.Tensor]
    max_norm: float
    norm_type: float = 2.0
    error_if_nonfinite: bool = False
    foreach: bool | None = None
    original: Callable[..., torch.Tensor] | None = None
    """torch's function, past our wrapper; None when the call is the monitor's own, made by ``mon.clip_grad_norm_``."""

    def run(self) -> torch.Tensor:
        clip = self.original or original_clip()
        return clip(self.parameters, self.max_norm, self.norm_type, self.error_if_nonfinite, self.foreach)


@dataclass(frozen=True, slots=True)
class ValueClipCall:
    """The arguments of one ``torch.nn.utils.clip_grad_value_``, and the original to run it."""

    parameters: Sequence[torch.Tensor]
    clip_value: float
    foreach: bool | None = None
    original: Callable[..., None] | None = None

    def run(self) -> None:
        (self.original or _original("clip_grad_value_"))(self.parameters, self.clip_value, self.foreach)


_listeners: tuple[Listener, ...] = ()
_wrapped: list[tuple[Any, str, Any, Any]] = []
"""(owner, attribute, original, ours) of everything wrapped at present."""


def watch(listener: Listener) -> None:
    """Tell ``listener`` of the watched calls from now on."""
    global _listeners
    _listeners = (*_listeners, listener)
    if not _wrapped:
        _wrap_all()


def unwatch(listener: Listener) -> None:
    """Stop telling ``listener``; with the last one gone torch is as it was before."""
    global _listeners
    _listeners = tuple(other for other in _listeners if other is not listener)
    if not _listeners:
        _unwrap_all()


AttentionCalled = Callable[[tuple[Any, ...], dict[str, Any]], None]
"""Called with the arguments of one ``torch.nn.functional.scaled_dot_product_attention``, after it has returned."""

_attention_watchers: tuple[AttentionCalled, ...] = ()
_wrapped_attention: list[tuple[Any, Any]] = []
"""(original, ours) while attention is wrapped."""


def watch_attention(called: AttentionCalled) -> None:
    """Tell ``called`` of every ``scaled_dot_product_attention`` from now on.

    A loop whose attention is compiled already compiles it once more, because the function has become another one.
    """
    global _attention_watchers
    _attention_watchers = (*_attention_watchers, called)
    if not _wrapped_attention:
        original = functional.scaled_dot_product_attention
        ours = _watched_attention(original)
        _wrapped_attention.append((original, ours))
        functional.scaled_dot_product_attention = ours


def unwatch_attention(called: AttentionCalled) -> None:
    """Stop telling ``called``; with the last one gone torch is as it was before."""
    global _attention_watchers
    _attention_watchers = tuple(other for other in _attention_watchers if other != called)
    if not _attention_watchers and _wrapped_attention:
        original, ours = _wrapped_attention.pop()
        if functional.scaled_dot_product_attention is ours:  # else somebody wrapped ours: see _unwrap_all
            functional.scaled_dot_product_attention = original


def original_clip() -> Callable[..., torch.Tensor]:
    """torch's own ``clip_grad_norm_``, past our wrapper."""
    return _original("clip_grad_norm_")


def _original(name: str) -> Callable[..., Any]:
    """A function of ``torch.nn.utils``, past our wrapper."""
    for _, attribute, original, _ in _wrapped:
        if attribute == name:
            return original
    return getattr(torch.nn.utils, name)


def _wrap_all() -> None:
    clip = _watched_clip(torch.nn.utils.clip_grad_norm_)
    clip_value = _watched_value_clip(torch.nn.utils.clip_grad_value_)
    _wrap(torch.autograd, "backward", _watched_backward(torch.autograd.backward))
    _wrap(torch.nn.utils, "clip_grad_norm_", clip)
    _wrap(torch.nn.utils.clip_grad, "clip_grad_norm_", clip)
    _wrap(torch.nn.utils, "clip_grad_value_", clip_value)
    _wrap(torch.nn.utils.clip_grad, "clip_grad_value_", clip_value)
    _wrap(torch.amp.GradScaler, "unscale_", _watched_unscale(torch.amp.GradScaler.unscale_))
    _wrap(torch.amp.GradScaler, "step", _watched_scaler_step(torch.amp.GradScaler.step))


def _wrap(owner: Any, attribute: str, ours: Any) -> None:
    _wrapped.append((owner, attribute, getattr(owner, attribute), ours))
    setattr(owner, attribute, ours)


def _unwrap_all() -> None:
    for owner, attribute, original, ours in reversed(_wrapped):
        # Somebody may have wrapped our wrapper since: then taking ours out would take theirs out too. Ours stays
        # inside theirs and passes every call through, because nobody listens.
        if getattr(owner, attribute) is ours:
            setattr(owner, attribute, original)
    _wrapped.clear()


def _forget_in_child() -> None:
    """A forked child (a DataLoader worker) is not the training: nothing it does is told to the parent's monitors."""
    global _listeners, _attention_watchers
    for listener in _listeners:
        listener.forget()
    _listeners, _attention_watchers = (), ()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _watched_backward(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> None:
        if not _listeners or torch.compiler.is_compiling():
            return original(*args, **kwargs)
        listeners = _listeners
        for listener in listeners:
            listener.backward_begins()
        try:
            return original(*args, **kwargs)
        finally:
            for listener in listeners:
                listener.backward_ended()

    return backward


@functools.cache  # the same one at every attach: what torch.compile and torch.jit know of it stays true
def _watched_attention(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.compiler.is_compiling() or not _attention_watchers:
            return original(*args, **kwargs)
        mixed = original(*args, **kwargs)
        for called in _attention_watchers:
            called(args, kwargs)
        return mixed

    if register := getattr(torch.jit._builtins, "_register_builtin", None):  # else torch.jit.script would compile ours
        register(scaled_dot_product_attention, "aten::scaled_dot_product_attention")
    return scaled_dot_product_attention


def _watched_clip(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def clip_grad_norm_(
        parameters: torch.Tensor | Iterable[torch.Tensor],
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> torch.Tensor:
        if not _listeners or torch.compiler.is_compiling():
            return original(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
        listed = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        if not listed and isinstance(parameters, types.GeneratorType):
            # torch warns of exactly this, but from the list that we must pass on it could no longer tell.
            warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2)
        call = ClipCall(listed, max_norm, norm_type, error_if_nonfinite, foreach, original)
        for listener in _listeners:
            if listener.claims_clip(listed):
                return listener.clip_called(call)
        return call.run()

    return clip_grad_norm_


def _watched_value_clip(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def clip_grad_value_(
        parameters: torch.Tensor | Iterable[torch.Tensor], clip_value: float, foreach: bool | None = None
    ) -> None:
        if not _listeners or torch.compiler.is_compiling():
            return original(parameters, clip_value, foreach)
        listed = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        call = ValueClipCall(listed, clip_value, foreach, original)
        for listener in _listeners:
            if listener.claims_clip(listed):
                return listener.value_clip_called(call)
        return call.run()

    return clip_grad_value_


def _watched_unscale(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def unscale_(self: Any, optimizer: Optimizer) -> None:
        for listener in _listeners:
            if listener.claims_scaler(self, optimizer):
                return listener.unscale_called(optimizer, functools.partial(original, self, optimizer))
        return original(self, optimizer)

    return unscale_


def _watched_scaler_step(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def step(self: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(original, self, optimizer, *args, **kwargs)
        for listener in _listeners:
            if listener.claims_scaler(self, optimizer):
                return listener.scaler_step_called(optimizer, call)
        return call()

    return step
