"""How long DDP takes to reduce the gradients over ranks, and how much of that backward does not hide.

DDP's own timers say when the first bucket was sent, when the last gradient of backward was there and when the last
bucket had come back. From the first to the last is the time of the communication: the buckets overlap, so their times
added up would count it several times. What is left after backward's last gradient is exposed: the step is that much
longer than without communication.

On CUDA reading these timers makes the host wait for the device, so there the same three moments are events of our own,
read when they have passed. They are recorded on the stream of backward: when the last gradient of the first bucket is
there, which is what its reduction waits for; when the last gradient of all is there; and after backward, which has the
stream wait for every bucket.

A rank that waits for a slow one communicates for long, and the slow one does not: who is slow is told by
``first_gradient_s``, never by these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monitor.hook.device_time import Event, timing_event
from monitor.hook.probe import Decoded, Probe, Reading

_DEFAULT_RATE = 100
"""How often DDP takes its times when nobody asks: ``kDDPRuntimeLoggingSampleRate``, which cannot be read."""


class Communication(Probe):
    """``comm_s``, ``comm_exposed_s`` and ``comm_overlap_share`` of the last reduction of a step, on the CPU.

    The interface is private to DDP; a torch without it has no such values.
    """

    name = "communication time"
    every = 10
    first_steps = 10
    alike = True

    def __init__(self, ddp: nn.parallel.DistributedDataParallel) -> None:
        super().__init__()
        self._ddp: Any = ddp
        self._usable: bool | None = None
        self._sent = 0
        self._found: dict[str, float] = {}

    def begin(self) -> None:
        """In the first measured step DDP is asked to take its times in every step: five looks at the clock."""
        self._found = {}
        if self._usable is None:
            self._usable = self._ask()

    def _ask(self) -> bool:
        ddp = self._ddp
        if all(map(hasattr, (ddp, ddp, getattr(ddp, "logger", None)), _NEEDED)):
            ddp._set_ddp_runtime_logging_sample_rate(1)
            return True
        self.watch.tell("note", text=f"{_ABSENT}: this version of torch does not give DDP's timers")
        return False

    def backward_ended(self) -> None:
        """DDP has waited for every bucket before backward returns."""
        if self._usable and self._ddp.require_forward_param_sync:
            self._ddp.logger.set_runtime_stats_and_log()
            times = self._ddp._get_ddp_logging_data()
            sent = times.get("backward_comm_time_start", 0)
            back, ready = times.get("backward_comm_time_end", 0), times.get("backward_compute_time_end", 0)
            if sent > self._sent and back > sent:  # else these are an earlier step's
                self._found = _values((back - sent) * 1e-9, (back - max(ready, sent)) * 1e-9)
            self._sent = sent

    def end_step(self) -> Reading | None:
        """What DDP has measured."""
        found = self._found
        return Reading([], lambda _: Decoded(found)) if found else None

    def remove(self) -> None:
        """DDP measures as often as it does by default."""
        if self._usable:
            self._usable = False
            self._ddp._set_ddp_runtime_logging_sample_rate(_DEFAULT_RATE)


class DeviceCommunication(Probe):
    """The same on a device, from events.

    Which gradients are in the first bucket is what DDP reports once it has arranged its buckets, after the first step.
    When the reduction of all of them is over before backward is, nobody knows when: it then ends with backward, as in
    DDP's own account.

    Args:
        event: makes an event with timing; an argument so that tests can turn its clock by hand.
    """

    name = "communication time"
    every = 10
    first_steps = 10
    alike = True

    def __init__(self, ddp: nn.parallel.DistributedDataParallel, event: Callable[[], Event] = timing_event) -> None:
        super().__init__()
        self._ddp: Any = ddp
        self._event = event
        self._parameters = [parameter for parameter in ddp.module.parameters() if parameter.requires_grad]
        self._first: frozenset[int] | None = None
        self._asked = 0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._new_backward()
        self._marks: tuple[Event, Event, Event] | None = None

    def _new_backward(self) -> None:
        self._awaited = set(self._first or ())
        self._sent: Event | None = None
        self._ready: Event | None = None

    def begin(self) -> None:
        """Hooks are in the model in measured steps only."""
        self.remove()
        self._marks = None
        if self._first is None:
            self._asked += 1
            self._first = self._first_bucket()
        if self._first is None:
            if self._asked == _PATIENCE:
                self.watch.tell("note", text=f"{_ABSENT}: DDP does not tell which gradients it sends first")
            return
        self._new_backward()
        for number, parameter in enumerate(self._parameters):
            hook = functools.partial(self._accumulated, number)
            self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def _first_bucket(self) -> frozenset[int] | None:
        """Numbers of the parameters whose gradients are sent first; None as long as that is not known."""
        ask = getattr(self._ddp, "_get_ddp_logging_data", None)  # private: names and numbers, nothing is waited for
        told: Mapping[str, Any] = ask() if ask is not None else {}
        buckets = [bucket.split() for bucket in str(told.get("rebuilt_per_bucket_param_indices", "")).split(",")]
        numbers = sorted(int(number) for bucket in buckets for number in bucket)
        if numbers != list(range(len(self._parameters))):  # not yet, or some parameters are not DDP's to reduce
            return None
        return frozenset(map(int, buckets[0]))

    def _accumulated(self, number: int, parameter: Tensor) -> None:
        if torch.compiler.is_compiling() or not self.watch.in_backward():
            return
        with self.watch.charged(self):
            if self._ready is None:
                self._ready = self._event()
            self._ready.record()  # again and again: the last time counts
            self._awaited.discard(number)
            if not self._awaited and self._sent is None:
                self._sent = self._event()
                self._sent.record()

    def backward_ended(self) -> None:
        """The stream waits for every bucket from here on."""
        sent, ready = self._sent, self._ready
        self._new_backward()
        if sent is not None and ready is not None and self._ddp.require_forward_param_sync:
            back = self._event()
            back.record()
            self._marks = sent, ready, back

    def end_step(self) -> Reading | None:
        """Three events, to be read when the step's row is taken."""
        self.remove()
        marks, self._marks = self._marks, None
        if marks is None:
            return None

        def decode(_arrays: list[np.ndarray]) -> Decoded:
            sent, ready, back = marks
            if not all(event.query() for event in marks):
                return Decoded()
            return Decoded(_values(sent.elapsed_time(back) * 1e-3, ready.elapsed_time(back) * 1e-3))

        return Reading((), decode)

    def remove(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def communication(ddp: nn.parallel.DistributedDataParallel) -> Probe:
    """The probe that fits where the gradients of ``ddp`` are."""
    return Communication(ddp) if ddp.device_type == "cpu" else DeviceCommunication(ddp)


def _values(seconds: float, exposed: float) -> dict[str, float]:
    exposed = max(0.0, exposed)
    share = 1 - exposed / seconds if seconds > 0 else 1.0
    return {"comm_s": seconds, "comm_exposed_s": exposed, "comm_overlap_share": share}


_ABSENT = "communication time is not measured"
_PATIENCE = 5
"""Measured steps until it is said that DDP has not told its buckets."""
_NEEDED = ("_set_ddp_runtime_logging_sample_rate", "_get_ddp_logging_data", "set_runtime_stats_and_log")
