"""The handle that ``attach`` returns."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import signal as signals
import statistics
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from monitor.alerts import Alerts
from monitor.guard import contained
from monitor.hook import observe, sigterm
from monitor.hook.attention_samples import AttentionSamples
from monitor.hook.background import Background
from monitor.hook.budget import Budget
from monitor.hook.findings import Findings, Told
from monitor.hook.inputs import SAMPLES_SEEN
from monitor.hook.layers import layer_table, module_names
from monitor.hook.loop import Loop, StepFacts
from monitor.hook.observe import ClipCall, ValueClipCall
from monitor.hook.probe import Decoded, Probe, Probes, Reading
from monitor.hook.processor import ProcessorWait
from monitor.hook.recorder import FlightRecorder
from monitor.hook.rows import MOST_WAITING, Arriving, Row, Rows
from monitor.hook.system import SystemSampler
from monitor.hook.timing import PARTS, PAUSED, StepClock, as_signals
from monitor.hook.transfer import HostRead
from monitor.hook.values import as_value, batch_number, split_values
from monitor.runfile.control import DENSE_STEPS, KINDS, Inbox, Request
from monitor.runfile.writer import RankWriter, write_exit

if TYPE_CHECKING:
    from monitor.landscape.sample import Slice

LR_JUMP = 2.0
"""A learning rate that changes by more than this factor from one step to the next is an event. Our judgement: a
schedule's own ramps stay below it, except for the first two steps of a linear warm-up, which are exactly at it."""
TRACEBACK_LINES = 30
CURVATURE_TOLERANCE = 0.1
"""Relative residual of a sharpness that is sampled while training: of a GPT of 1 M parameters it is then within 2 %."""
MOST_ARMED = 8
"""Findings of one attempt that make the next steps be measured in full: such a step costs about a quarter more."""


class Monitor:
    """Measures one training loop into one run. Made by ``monitor.attach``; a context manager.

    No method raises into the loop, with exceptions that are the caller's own: ``clip_grad_norm_`` raises what torch's
    raises, ``landscape_sample`` what its loss function raises, and ``step`` what ``on_critical`` raises.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        writer: RankWriter,
        run_dir: Path,
        attempt: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        scaler: Any = None,
        planned_steps: int | None = None,
        tokens_per_step: float | None = None,
        start_step: int = 0,
        start_tokens: float = 0,
        landscape_every: int | None = None,
        budget: float = 0.02,
        probes: Sequence[Probe] = (),
        split_layers: bool = False,
        clock: StepClock | None = None,
        wall: Callable[[], float] = time.time,
        background: bool = True,
        on_sigterm: bool = False,
        on_critical: Callable[[Told], None] | None = None,
        requests: Sequence[str] = (),
        alerts: Alerts | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.attempt = attempt
        self.rank = rank
        self.world_size = world_size
        self.step_number = start_step
        """The last optimizer step that has ended; ``start_step`` before the first."""
        self._start_step = start_step
        self.budget = budget
        """Share of the step that the monitor may cost; recorded beside what it does cost."""
        self._costs = Budget(budget, self.event)
        self._sampled = False
        self._samples: AttentionSamples | None = None
        self.landscape_every = landscape_every
        self._sign_at: int | None = None
        self._sharpest: np.ndarray | None = None
        self._model = model
        self._optimizers = tuple(optimizers)
        self._writer = writer
        self._wall = wall
        self._planned_steps = planned_steps
        self._tokens_per_step = tokens_per_step
        self._tokens = float(start_tokens)
        self._table = layer_table(model, split=split_layers)
        self._clock = clock or StepClock()
        self._waiting = ProcessorWait()
        self._probes = Probes(probes, self._clock, start_step)
        self._recorder = FlightRecorder(self.event)
        self._probes.warn = self._warn_in_run
        self._probes.tell = self.event
        self._values: dict[str, float] = {}
        self._device_values: dict[str, Tensor] = {}
        self._skipped = 0
        self._last_lrs: dict[str, float] = {}
        self._state = "idle"
        self._share = 0.0
        self._recent_step_s: deque[float] = deque(maxlen=32)
        self._closed = False
        self._pid = os.getpid()
        self._rows = Rows(writer, self._finish_row)
        self._probes.on_arm = self._keep_dense
        self._on_critical = on_critical
        self._news: deque[Told] = deque()
        """Findings that the training's thread has not seen yet."""
        self._armed_for = 0
        self._alerts = alerts if rank == 0 else None
        if self._alerts is not None:
            self._alerts.tell = self._alerted
        follows = (on_critical is not None or alerts is not None) and rank == 0
        findings = Findings(run_dir, start_step, self._found, self._warn_in_run) if follows else None
        if len(self._table):
            writer.define_layers(self._table.names, self._table.shapes)
        if names := module_names(model):
            writer.define_modules(names)
        self._loop = Loop(
            model, optimizers, self._table,
            clock=self._clock, probes=self._probes, scaler=scaler,
            step_begins=self._step_begins, tell=self._warn_in_run,
        )  # fmt: skip
        sampler = SystemSampler(writer, event=self.event)
        self._requests = frozenset(requests)
        self._inbox: Inbox | None = None
        if rank == 0:
            with contained("requests to the training"):
                answers = self._requests | {_DENSE}
                self._inbox = Inbox(run_dir, attempt, answers, self._request_ended, lambda: self.step_number, wall)
                writer.heartbeat(requests=[kind for kind in KINDS if kind in answers])
        self._background = Background(self._rows, sampler, self._beat, findings, self._inbox) if background else None
        atexit.register(self._close_at_exit)
        if on_sigterm:
            with contained("the last steps before SIGTERM"):
                sigterm.watch(self._terminated)

    # What the loop calls ---------------------------------------------------------------------------------------------

    def step(
        self,
        loss: Any = None,
        *,
        tokens: float | None = None,
        samples: float | None = None,
        batch_id: int | str | None = None,
    ) -> None:
        """End one optimizer step, after ``optimizer.step()`` (and after ``scaler.update()``).

        Args:
            loss: the step's training loss; a tensor on a device stays there and is read when it has arrived.
            tokens: tokens of this step over all ranks and micro-steps.
            samples: samples of this step, likewise. With one process the first dimension of the model's inputs unless
                told otherwise; give it where that is not the batch.
            batch_id: identity of the step's batch, an integer or a string.
        """
        if not self._loop.live:
            return
        self._clock.switch("monitor")
        self._clock.settle("other")
        with contained("steps of the loop"):
            facts = self._loop.end_step()
            self._end_step(facts, loss, tokens, samples, batch_id)
        while self._news:
            self._answer(self._news.popleft())
        if self._inbox is not None and self._inbox.waiting and _DENSE not in self._requests:
            with contained("requests to the training"):
                for request in self._inbox.take({_DENSE}):
                    self.answer(request, self.record_dense(int(request.values["steps"] or DENSE_STEPS)))

    def log(self, values: dict[str, Any]) -> None:
        """Record values of the step in progress; right after ``mon.step()``, of the step that just ended.

        Values are numbers or tensors with one element; None is absent. A value for a step whose row has been written
        already (half a second after its end) is kept as an event.
        """
        if not self._loop.live:
            return
        before = self._clock.switch("monitor")
        with contained("mon.log"):
            host, device = split_values(values, "mon.log")
            if self._loop.begun or self.step_number == self._start_step:
                self._values.update(host)
                self._device_values.update(device)
            elif not self._rows.log(host, device):
                host.update((name, float(value)) for name, value in device.items())  # SYNC: logged late, outside a step
                if host:
                    self._writer.event("log", self.step_number, values=host)
        self._clock.switch(before)

    def forward_begins(self) -> None:
        """Say that the forward pass of a (micro-)step begins here, when it does not run in the model's own call.

        Not needed where the loop calls the model, as nearly every loop does.
        """
        if self._loop.live:
            self._loop.forward_begins(self._model)

    def event(self, kind: str, **fields: Any) -> None:
        """Record something that happened; visible to a reader at once."""
        if self._closed:
            return
        with contained(f"event {kind!r:.60}"):
            step = fields.pop("step", self.step_number)
            self._writer.event(str(kind), step, **fields)

    def requests(self) -> list[Request]:
        """What people have asked of this training since the last call, from the page or the command line.

        Only the kinds that ``attach(requests=...)`` named, and on rank 0 only: where several ranks have to act, tell
        them. Each is to be answered: ``mon.answer(request, "saved to ...")``. Call it between two steps; it reads no
        file and costs nothing while there is none.
        """
        if self._inbox is None or not self._inbox.waiting or not self._loop.live:
            return []
        with contained("requests to the training"):
            return self._inbox.take(self._requests)
        return []

    def answer(self, request: Request, text: str, *, failed: bool = False, **fields: Any) -> None:
        """Say what came of a request: it becomes its receipt, and an event of the run at the last step.

        Args:
            text: in words, such as ``saved to checkpoints/00000100``.
            failed: it could not be done; ``text`` says why.
            fields: kept with both.
        """
        if self._inbox is not None:
            with contained("requests to the training"):
                self._inbox.answer(request, "failed" if failed else "done", self.step_number, text, **fields)

    def _request_ended(self, *, step: int, **fields: Any) -> None:
        with contained("requests to the training"):  # not self.event: also while the monitor closes
            self._writer.event("request", step, **fields)

    def record_dense(self, steps: int = DENSE_STEPS) -> str:
        """Measure each of the next ``steps`` steps in full, and keep their rows; what was done, in words."""
        with contained("steps in full"):
            self._recorder.freeze("asked for")
            self._probes.arm(steps)
        return f"steps {self.step_number + 1} to {self.step_number + steps} are measured in full"

    @contextlib.contextmanager
    def phase(self, name: str, *, recorded: bool = True) -> Iterator[None]:
        """Time that is not training: ``eval``, ``checkpoint``, ``paused`` (which no step's time includes), or a name of
        your own (counted as ``other``).

        Forward passes inside do not begin a step, and ``mon.log`` still reaches the step before.

        Args:
            recorded: whether an event says how long it took; False for what every step has.
        """
        if not self._loop.live:
            yield
            return
        state, self._state = self._state, name if name in _PHASES else self._state
        began = time.perf_counter()
        try:
            with self._loop.aside(name if name in PARTS or name == PAUSED else "other"):
                yield
        finally:
            self._state = state
            if recorded:
                self.event("phase", name=name, seconds=time.perf_counter() - began)

    def clip_grad_norm_(
        self, max_norm: float, parameters: Sequence[Tensor] | None = None, *, error_if_nonfinite: bool = False
    ) -> Tensor:
        """Clip the gradients to ``max_norm`` and record their norms from the same pass.

        Bit for bit what ``torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)`` does; with a GradScaler the
        gradients are unscaled first, unless they have been in this step.

        Returns:
            The norm before clipping, on the gradients' device.
        """
        listed = self._table.parameters if parameters is None else list(parameters)
        loop = self._loop
        if not loop.live:
            return observe.original_clip()(listed, max_norm, error_if_nonfinite=error_if_nonfinite)
        loop.unscale_once()
        return loop.clip_called(ClipCall(listed, max_norm, error_if_nonfinite=error_if_nonfinite))

    def clip_grad_value_(self, clip_value: float, parameters: Sequence[Tensor] | None = None) -> None:
        """Clip every entry of the gradients to ``clip_value`` and record their norms before and after.

        Bit for bit what ``torch.nn.utils.clip_grad_value_(model.parameters(), clip_value)`` does; with a GradScaler the
        gradients are unscaled first, unless they have been in this step.
        """
        call = ValueClipCall(self._table.parameters if parameters is None else list(parameters), clip_value)
        if not self._loop.live:
            return call.run()
        self._loop.unscale_once()
        return self._loop.value_clip_called(call)

    def gradients_will_change(self) -> None:
        """Say that the loop changes the gradients itself next: clips them in its own way, or adds noise.

        Their norms from before are pre-clip then, and those from before the optimizer's step post-clip. Unsaid, it is
        found out and warned of, and the first such step has no pre-clip norm; noise after a clip is not found out.
        """
        if self._loop.live:
            self._loop.gradients_will_change()

    @property
    def landscape_due(self) -> bool:
        """Whether the step that just ended is one of every ``landscape_every``, or the first of an early sign.

        Never without ``landscape_every``. What a sample costs is the loop's to bear: see ``Allowance`` of the trainer.
        """
        every = self.landscape_every
        if every is None or every <= 0 or self.step_number <= 0:
            return False
        if not self._probes.armed:
            self._sign_at = None
        elif self._sign_at is None:
            self._sign_at = self.step_number
        return self.step_number in (self._sign_at, self.step_number // every * every)

    def landscape_sample(self, loss_fn: Callable[[], Tensor | float], *, split: bool = False, **options: Any) -> None:
        """Sample the loss around the present weights: mean and variance under perturbation, and a line through them.

        The training does not notice: weights, buffers, random states and modes are restored bit for bit.

        Args:
            loss_fn: the loss of a fixed batch, without gradients; called some 20 times. Under DDP it must not
                communicate (call the inner module), unless every rank samples.
            split: every rank calls this at the same step with the same batch, and they share the work out.
            options: ``radius``, ``perturbations``, ``points``, ``seed`` of ``monitor.landscape.sample``.
        """
        if not self._can_sample(split):
            return
        from monitor.landscape.sample import sample_landscape

        with self._loop.aside("monitor"):
            sample = sample_landscape(self._model, loss_fn, split=split, **{"seed": self.step_number, **options})
            if split and self.rank != 0:
                return
            self._keep_slices([sample.perturbation, sample.line], sample.baseline)
        self.log({"landscape_loss_mean": sample.mean, "landscape_loss_variance": sample.variance})

    def landscape(
        self, loss_fn: Callable[[Any], Tensor | float], batch: Any, *, curvature: bool = False, **options: Any
    ) -> None:
        """:meth:`landscape_sample` of ``loss_fn(batch)``; with ``curvature`` also the sharpness beside its limit.

        Args:
            loss_fn: the loss of ``batch`` under the model's present weights; for ``curvature`` a tensor.
            batch: a fixed one: the same each time, so that samples can be compared. For the sharpness one of the
                training data, as large as fits: the limit is about the loss that is trained.
            curvature: also what :meth:`curvature_sample` and :meth:`slices_sample` measure. ``loss_fn`` gives a tensor
                then.
            options: of :meth:`landscape_sample`.
        """
        self.landscape_sample(lambda: loss_fn(batch), **options)
        if curvature:
            self.curvature_sample(lambda: loss_fn(batch))
            self.slices_sample(lambda: loss_fn(batch))

    def curvature_sample(
        self,
        loss_fn: Callable[[], Tensor | float],
        *,
        tolerance: float = CURVATURE_TOLERANCE,
        budget_s: float = math.inf,
    ) -> None:
        """Sample the curvature: the sharpness beside the limit of stability, and along gradient and last update.

        The training does not notice, as with :meth:`landscape_sample`. A sample costs about 7 times two and a half
        gradients. The search begins with the gradient and the direction that the sample before found.

        Args:
            loss_fn: the loss of a fixed batch of the training data as a tensor that depends on the weights.
            tolerance: residual of the largest eigenvalue, relative to it, at which it is taken as found.
            budget_s: seconds after which no further product is made; there is no sharpness then, and the next sample
                begins where this one has ended.
        """
        if not self._can_sample():
            return
        from monitor.landscape.curvature import curvature

        with self._loop.aside("monitor"), contained("samples of the curvature"):
            found = curvature(
                self._model, loss_fn, self._only_optimizer(), sharpness_only=True, tolerance=tolerance,
                start=self._sharpest, budget_s=budget_s, seed=self.step_number,
            )  # fmt: skip
            self._sharpest = self._sharpest if found.vector is None else found.vector
            self._writer.landscape(
                self.step_number, self._wall(), kind="curvature", direction="", radius=float("nan"), coords=(), loss=(),
                baseline=found.loss, detail=found.detail(),
            )  # fmt: skip
            limit = found.stability.limit if found.stability is not None else math.nan
            measured = {
                "sharpness": found.sharpness, "sharpness_limit": limit,
                "curvature_along_gradient": found.along_gradient, "curvature_along_update": found.along_update,
            }  # fmt: skip
            self.log({name: value for name, value in measured.items() if not math.isnan(value)})

    def slices_sample(self, loss_fn: Callable[[], Tensor | float], *, split: bool = False) -> None:
        """Sample the loss along the last update and along minus the gradient, as far back as ahead.

        The training does not notice, as with :meth:`landscape_sample`. A sample costs some ten gradients.

        Args:
            loss_fn: as for :meth:`curvature_sample`.
            split: as for :meth:`landscape_sample`.
        """
        if not self._can_sample(split):
            return
        from monitor.landscape.sample import slices_ahead

        with self._loop.aside("monitor"), contained("samples of the curvature"):
            found = slices_ahead(self._model, loss_fn, self._only_optimizer(), split=split)
            if not split or self.rank == 0:
                self._keep_slices(found)

    def _can_sample(self, split: bool = False) -> bool:
        """Whether the landscape of this model can be taken, on every rank where they share it; says once why not."""
        from monitor.landscape.undisturbed import moving

        ready = False
        if self._loop.live:
            with contained("landscape samples"):
                ready = bool(moving(self._model))
        if split:
            flag = torch.tensor(float(ready), device=next(self._model.parameters()).device)
            dist.all_reduce(flag, op=dist.ReduceOp.MIN)
            ready = bool(flag.item())  # SYNC: a landscape sample is out of the loop's own path
        self._sampled = self._sampled or ready
        return ready

    def _only_optimizer(self) -> torch.optim.Optimizer | None:
        return self._optimizers[0] if len(self._optimizers) == 1 else None

    def _keep_slices(self, slices: Sequence[Slice], baseline: float | None = None) -> None:
        """``baseline`` None: that of each line itself."""
        with contained("landscape samples"):
            now = self._wall()
            for one in slices:
                self._writer.landscape(
                    self.step_number, now, kind=one.kind, direction=one.direction, radius=one.radius,
                    coords=one.coords, loss=one.loss, baseline=one.middle if baseline is None else baseline,
                    detail={"unit": one.unit} if one.unit else None,
                )  # fmt: skip

    def watch_samples(
        self, batch: Any, labels: Sequence[Sequence[str]] | None = None, *, every: int | None = None
    ) -> None:
        """Keep attention maps of fixed samples from here on: the same tokens, at rising steps.

        The model itself runs on them in evaluation mode, without gradients, when a step ends. The training does not
        notice. Whatever is wrong with the arguments is a warning.

        Args:
            batch: 1 to 4 samples: a tensor, a tuple of the model's arguments or a mapping of its named ones, each
                tensor with the samples in its first dimension, on the model's device.
            labels: for each sample the words for its places, for the axes of the maps; None: the integer tokens.
            every: steps between two looks, doubled after every 32; None: at steps 10, 100, 200, 400, ...
        """
        if not self._loop.live or self.rank != 0:
            return
        with contained("attention on fixed samples"):
            self._samples = AttentionSamples(self._model, batch, labels, every)

    def _look_at_samples(self) -> list[Reading]:
        samples, reading = self._samples, None
        if samples is None or not samples.due(self.step_number):
            return []
        self._sampled = True
        self._samples = None  # an error once is an error every time
        with self._loop.aside("monitor"), contained("attention on fixed samples"):
            reading = samples.look(self.step_number, self.event)
            self._samples = samples
        return [reading] if reading is not None else []

    def sync(self) -> None:
        """Make everything recorded so far durable on disk; for checkpoints."""
        with contained("rows of the run"):
            self._rows.drain()
            self._writer.sync()

    def remove(self) -> None:
        """Take every hook out of the model, the optimizer and torch. The run stays open for ``close``."""
        if self._loop.live:
            self._loop.remove()
            with contained("rows of the run"):
                self._rows.drain()

    def close(
        self,
        outcome: str = "finished",
        reason: str = "",
        *,
        signal: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Remove the hooks, write what is left, seal the run and say how it ended. Idempotent.

        Args:
            outcome: ``finished``, ``stopped`` or ``crashed``. The first exit record of an attempt stands.
            signal: number of the signal that asked the loop to end, if one did.
            error: what ended the loop; its traceback's last lines go into the record.
        """
        if self._closed or os.getpid() != self._pid:  # a forked child holds a copy of the handle: not its run
            return
        self.remove()
        atexit.unregister(self._close_at_exit)
        sigterm.unwatch(self._terminated)
        if outcome == "crashed" or signal is not None:
            with contained("the last steps in full"):
                self._recorder.freeze(outcome if signal is None else f"signal {signal}", at_end=True)
                self._writer.keep_dense(0)
        if self._alerts is not None:
            if outcome == "crashed":
                self._alert("crash", "critical", f"crashed after step {self.step_number}: {reason}"[:1000])
            with contained("alerts"):
                self._alerts.close()
        self._closed = True
        if self._values:  # of a step that never ended
            with contained("mon.log"):
                self._writer.event("log", self.step_number + 1, values=self._values)
        self._waiting.close()
        self._beat("closing")
        if self._background is not None:
            self._background.stop()
        if self._inbox is not None:
            with contained("requests to the training"):
                self._inbox.close(f"the training ended ({outcome}) before it came to this")
        with contained("the end of the run"):
            self._writer.close()
            if self.rank == 0 or outcome != "finished":
                lines = traceback.format_exception(error) if error is not None else []
                write_exit(
                    self.run_dir, self.attempt, outcome=outcome, step=self.step_number,
                    reason=reason, signal=signal, traceback="".join(lines).splitlines()[-TRACEBACK_LINES:],
                )  # fmt: skip

    def _terminated(self) -> None:
        """SIGTERM has come, and nobody handles it: write what is in memory. In a thread of its own, and not for long.

        Rows last: they may wait for a device that hangs.
        """
        number = int(signals.SIGTERM)
        with contained("the last steps in full"):
            self._recorder.freeze(f"signal {number}", at_end=True)
            self._writer.keep_dense(0)
        with contained("the end of the run"):
            reason = "SIGTERM, and the loop has no handler for it"
            write_exit(
                self.run_dir, self.attempt, outcome="stopped", step=self.step_number, reason=reason, signal=number
            )
        with contained("rows of the run"):
            self._writer.flush()
            self._rows.drain()
            self._writer.flush()

    def __enter__(self) -> Monitor:
        if not self._loop.begun:
            self._clock.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            self.close("stopped", type(error).__name__, error=error)
        else:
            self.close("crashed", f"{type(error).__name__}: {error}", error=error)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The parameter tensors in the order of the per-layer statistics."""
        return self._table.names

    # How a row is made -----------------------------------------------------------------------------------------------

    def _end_step(
        self, facts: StepFacts, loss: Any, tokens: float | None, samples: float | None, batch_id: int | str | None
    ) -> None:
        self.step_number += 1
        values, device = self._values, self._device_values
        self._values, self._device_values = {}, {}
        if loss is not None:
            with contained("the loss given to mon.step"):
                _put(values, device, "train_loss", as_value("loss", loss))
        if batch_id is not None:
            with contained("the batch_id given to mon.step"):
                values["batch_id"] = batch_number(batch_id)
        if samples is not None:
            with contained("the samples given to mon.step"):
                values["samples"] = float(samples)
        row = Row(self.step_number, self._wall(), values, lr_names=_LR_NAMES[: len(facts.lrs)])
        for name, lr in zip(row.lr_names, facts.lrs, strict=False):
            _put(values, device, name, lr)
        if facts.loss_scale is not None:
            row.scaled = True
            _put(values, device, "loss_scale", facts.loss_scale)
            values["skipped_steps"] = float(facts.skipped)
            if facts.scale_after is not None:
                _put(values, device, _SCALE_AFTER, facts.scale_after)
        readings = [*([facts.norms.reading()] if facts.norms else ()), *facts.readings, *self._look_at_samples()]
        tensors = [tensor for reading in readings for tensor in reading.tensors]
        if tensors or device:
            row.arriving.append(Arriving(HostRead([*tensors, *device.values()]), list(device), readings))
        spent = self._clock.end_step()  # from here on the monitor's time is the next step's
        self._clock.switch("monitor")
        values.update(as_signals(spent))
        with contained("waiting for a processor"):
            if (waited := self._waiting.taken_s()) is not None:
                values["cpu_wait_s"] = waited
        asked_for, self._sampled = facts.dense or self._sampled, False
        self._costs.end_step(values["monitor_s"], values["step_time_s"], facts.measured, asked_for)
        self._count_tokens(values, tokens)
        row.urgent = facts.dense or facts.skipped or _breaks_off(values, facts)
        self._state = "training"
        self._rows.end_step(row)
        self._clock.switch("gap")

    def _count_tokens(self, values: dict[str, float], tokens: float | None) -> None:
        seconds = values["step_time_s"]
        self._recent_step_s.append(seconds)
        if seconds > 0:
            self._share += 0.05 * (values["monitor_s"] / seconds - self._share)
        tokens = self._tokens_per_step if tokens is None else tokens
        if tokens is None:
            return
        with contained("the tokens given to mon.step"):
            count = float(tokens)
            self._tokens += count
            values["tokens"] = self._tokens
            if seconds > 0:
                values["tokens_per_s"] = count / seconds

    def _step_begins(self) -> None:
        with contained("rows of the run"):
            self._rows.step_begins()
        with contained("random states"):
            self._recorder.step_begins(self.step_number + 1)
        self._probes.begin(self.step_number + 1)

    def _keep_dense(self, steps: int) -> None:
        """There is an early sign: keep what was measured lately and what comes next."""
        # Rows reach the writer some steps late: so many more, that the window does not end early.
        self._writer.keep_dense(steps + MOST_WAITING + 1)
        self._recorder.freeze("early sign")

    def _found(self, finding: Told) -> None:
        """In the monitor's thread: the rules have found something."""
        self.event("finding", step=finding["first_step"], **finding)
        self._alert(finding["id"], finding["severity"], finding["text"],
                    step=finding["first_step"], onset_step=finding["onset_step"], remedy=finding["remedy"])  # fmt: skip
        self._news.append(finding)

    def _alert(self, about: str, severity: str, text: str, **fields: Any) -> None:
        """Tell somebody who does not look; from any thread, without waiting."""
        if self._alerts is not None:
            with contained("alerts"):
                run = self.run_dir.name
                self._alerts.send(about, severity, f"{run}: {about}", text, run=run, attempt=self.attempt, **fields)

    def _alerted(self, outcome: Mapping[str, Any]) -> None:
        """In the alerts' thread: what became of one."""
        with contained("alerts"):
            self._writer.event("alert", self.step_number, **outcome)

    def _answer(self, finding: Told) -> None:
        """In the loop's thread, right after a step: the next steps are recorded in full, and the loop is told."""
        with contained("the steps round a finding"):
            if self._armed_for < MOST_ARMED:
                self._armed_for += 1
                self._recorder.freeze(f"finding {finding['id']}")
                self._probes.arm()
        if finding["severity"] == "critical" and self._on_critical is not None:
            self._on_critical(finding)

    def _finish_row(self, row: Row) -> None:
        """Values that depend on the rows before. Called in the order of steps, with every value on the host."""
        values = row.values
        if row.scaled:
            fell = values.pop(_SCALE_AFTER, float("inf")) < values["loss_scale"]
            self._skipped += int(values["skipped_steps"] or fell)
            values["skipped_steps"] = float(self._skipped)
        seen = values.pop(SAMPLES_SEEN, None)
        samples = values.get("samples", seen)
        if samples is not None:
            values["samples"] = samples
            if values["step_time_s"] > 0:
                values.setdefault("samples_per_s", samples / values["step_time_s"])
        for name in row.lr_names:
            lr = values[name]
            before = self._last_lrs.get(name, 0.0)
            self._last_lrs[name] = lr
            if _jumps(before, lr):
                self._writer.event("lr_change", row.step, name=name, before=before, after=lr)
        values.update(self._probes.row_complete(row.step, Decoded(values, row.layers, row.modules)))

    def _warn_in_run(self, text: str, **fields: Any) -> None:
        self.event("warning", **{"step": self.step_number + 1, "text": text, **fields})

    def _beat(self, state: str | None = None) -> None:
        """Say how the loop is doing; the writer puts it on disk at most once a second."""
        with contained("the heartbeat"):
            recent = list(self._recent_step_s)
            self._writer.heartbeat(
                step=self.step_number,
                state=state or self._state,
                step_time_s=statistics.median(recent) if recent else None,
                planned_steps=self._planned_steps,
                monitor_share=round(self._share, 5),
                monitor_budget=self.budget,
            )

    def _close_at_exit(self) -> None:
        """The script ended without ``close``: by an exception that nobody caught, or simply at its end."""
        error = getattr(sys, "last_value", None)
        self.__exit__(type(error) if error else None, error, None)


_PHASES = ("eval", "checkpoint", PAUSED)
"""Phases that the heartbeat tells of."""
_DENSE = "record_dense"
"""What every loop can be asked for: the monitor does it itself."""
_LR_NAMES = ("lr", *(f"lr/{group}" for group in range(1, 1000)))
"""One per parameter group over all optimizers. A loop with more groups than these has the first thousand recorded."""
_SCALE_AFTER = "\0scale after"
"""Key of a value that only ``_finish_row`` sees; no user's name can begin so."""


def _put(host: dict[str, float], device: dict[str, Tensor], name: str, value: float | Tensor) -> None:
    host.pop(name, None)
    device.pop(name, None)
    if isinstance(value, Tensor):
        device[name] = value
    else:
        host[name] = value


def _breaks_off(values: dict[str, float], facts: StepFacts) -> bool:
    """Whether the host knows already that the loss or the gradient is not finite."""
    return not math.isfinite(values.get("train_loss", 0.0)) or (facts.norms is not None and facts.norms.overflows())


def _jumps(before: float, after: float) -> bool:
    """More than ``LR_JUMP`` up or down, or down to nothing. From zero every rate is a first one, no jump."""
    if before <= 0:
        return False
    limit = LR_JUMP * (1 + 1e-6)  # a warm-up's second step doubles the first, to rounding
    return after > before * limit or after < before / limit
