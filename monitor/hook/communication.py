"""How long DDP takes to reduce the gradients over ranks, and how much of that backward does not hide.

DDP's own timers say when the first bucket was sent, when the last gradient of backward was there and when the last
bucket had come back. From the first to the last is the time of the communication: the buckets overlap, so their times
added up would count it several times. What is left after backward's last gradient is exposed: the step is that much
longer than without communication.

A rank that waits for a slow one communicates for long, and the slow one does not: who is slow is told by
``first_gradient_s``, never by these.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from monitor.hook.probe import Decoded, Probe, Reading

_DEFAULT_RATE = 100
"""How often DDP takes its times when nobody asks: ``kDDPRuntimeLoggingSampleRate``, which cannot be read."""


class Communication(Probe):
    """``comm_s``, ``comm_exposed_s`` and ``comm_overlap_share`` of the last reduction of a step.

    On CUDA these timers are events, and reading them makes the host wait for the device, so there they are left alone.
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
        if ddp.device_type != "cpu":
            why = f"on {ddp.device_type} reading DDP's timers would make the host wait for the device"
        elif not all(map(hasattr, (ddp, ddp, getattr(ddp, "logger", None)), _NEEDED)):
            why = "this version of torch does not give DDP's timers"
        else:
            ddp._set_ddp_runtime_logging_sample_rate(1)
            return True
        self.watch.tell("note", text=f"communication time is not measured: {why}")
        return False

    def backward_ended(self) -> None:
        """DDP has waited for every bucket before backward returns."""
        if self._usable and self._ddp.require_forward_param_sync:
            self._ddp.logger.set_runtime_stats_and_log()
            times = self._ddp._get_ddp_logging_data()
            sent = times.get("backward_comm_time_start", 0)
            back, ready = times.get("backward_comm_time_end", 0), times.get("backward_compute_time_end", 0)
            if sent > self._sent and back > sent:  # else these are an earlier step's
                exposed = max(0, back - max(ready, sent))
                self._found = {
                    "comm_s": (back - sent) * 1e-9,
                    "comm_exposed_s": exposed * 1e-9,
                    "comm_overlap_share": 1 - exposed / (back - sent),
                }
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


_NEEDED = ("_set_ddp_runtime_logging_sample_rate", "_get_ddp_logging_data", "set_runtime_stats_and_log")
