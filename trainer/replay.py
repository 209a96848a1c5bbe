"""``python -m trainer.replay RUN --step N``: was the batch of step N to blame for its loss, or the state of the model?

The batch is drawn again exactly (the order of the data is a function of seed and position) and its loss taken under
the weights of two checkpoints before the step, beside those of other batches of that time. ``counterfactual.py`` says
what follows from it. That it is the same batch is checked: by the loss of a step that can be repeated exactly, and by
the fingerprint of its input. With ``--rerun`` the steps from the last checkpoint on are trained again, in memory, and
held against the recorded ones. The run itself is left as it is; the verdict is added beside what it wrote, and the
doctor weighs causes with it.

Exit codes: 0 replayed, whatever the verdict; 2 a mistake that one message explains; 1 a crash.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor, nn

from monitor.errors import ConfigError, GradiometerError, RunError
from monitor.hook.inputs import Inputs
from monitor.hook.recorder import restore_random_states
from monitor.runfile.afterwards import add_afterwards
from monitor.runfile.format import CHECKPOINTS_DIR, MAX_STEP, dump_json
from monitor.runfile.reader import Attempt, Run, open_run
from trainer import checkpoint
from trainer.adversarial import attacked
from trainer.commit import Checkpoint, newest_complete
from trainer.config import TrainConfig, differences, from_record, require_named
from trainer.counterfactual import FAR, Height, Verdict, Weighed, height_after, height_among, judge, share_of_few
from trainer.loop import Session, build_session, seed_everything, sequence_length, training_step
from trainer.parallel import Parallel, start_parallel, stop_parallel
from trainer.progress import Silent
from trainer.random_states import random_states, set_random_states
from trainer.tasks import Batch
from trainer.unmonitored import Unmonitored

OTHERS = 16
"""Other batches that the step's own is held against, unless told otherwise."""
STEPS_BEFORE = 32
"""Recorded steps that say what the loss usually was. Our judgement."""
MOST_SAMPLES = 256
"""Samples of the batch whose loss is taken one by one."""
SAMPLES_TOLD = 5
SOON = 20
"""Steps after one that was not raised in which a raised one is looked for."""
MOST_RERUN = 500
"""Steps that are trained again at most. Our judgement: the next checkpoint is nearer, or it takes too long."""
SAME_LOSS = 1e-3
"""Relative difference up to which a loss taken anew is the recorded one: another version of torch may round so."""
SAME_LOSS_OF_SEVERAL = 0.05
"""The same where several processes drew other dropout than one does."""
SAME_NORM = 1e-4
"""Relative difference up to which a gradient norm is the recorded one: the monitor adds up in another order."""
DECISIVE = ("task.", "model.", "loss.", "adapter.", "adversarial.", "precision.", "batch_size", "grad_accum_steps",
            "curriculum.")  # fmt: skip
"""Beginnings of configuration fields that decide what the loss is taken of."""
CHANGEABLE = ("task.data", "device", "threads")
"""Fields that may be given anew: where the data lie, and what computes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One example of the replayed batch, in evaluation mode."""

    index: int
    """Its number among the training examples."""
    loss: float
    """Per token."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """The steps from the last checkpoint to the replayed one, trained again."""

    first: int
    last: int
    differs_at: int | None
    """The first step with another loss or gradient norm than recorded; None when there is none."""
    recorded: float
    """Loss of ``differs_at``, else of ``last``, as recorded."""
    again: float
    """The same step's loss now."""

    @property
    def text(self) -> str:
        which = f"steps {self.first} to {self.last}, trained again"
        if self.differs_at is None:
            return f"{which}, have the recorded losses bit for bit: it is the mathematics, not the hardware"
        return (
            f"{which}, are others from step {self.differs_at} on (loss {self.recorded:.6g} recorded, {self.again:.6g} "
            "now): hardware, a nondeterministic operation, or something done to the training that the run does not tell"
        )


@dataclass(frozen=True, slots=True)
class Replay:
    """What was found out about one step."""

    run: str
    step: int
    attempt: int
    verdict: Verdict
    text: str
    recorded: Height
    weights: tuple[Weighed, ...]
    """The older first; one only when there is no other checkpoint before the step."""
    others: int
    """Batches that the step's own was held against."""
    random: str
    """What training mode drew from: ``recorded`` random states of the step, or ``fixed`` ones."""
    samples: tuple[Sample, ...]
    """The highest ones, with the older weights."""
    share_of_few: float
    """Of the batch's excess, held by the highest tenth of its samples; NaN when there is no excess."""
    rerun: Rerun | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and for the event."""
        found = asdict(self)
        found["weights"] = [
            {"step": one.step, "steps_before": one.steps_before, **asdict(one.height),
             "in_evaluation": asdict(one.in_evaluation)}
            for one in self.weights
        ]  # fmt: skip
        if self.rerun is not None:
            found["rerun"]["text"] = self.rerun.text
        return found

    def record(self, run_dir: Path) -> None:
        """Add the verdict to the run, for the doctor.

        Raises:
            RunError: it cannot be written.
        """
        fields = {name: value for name, value in self.to_dict().items() if name not in ("run", "step", "attempt")}
        add_afterwards(run_dir, "replay", step=self.step, attempt=self.attempt, **fields)

    def to_text(self) -> str:
        """A page for people."""
        rows: list[tuple[str, ...]] = [("", "this batch", "others", "z", "evaluated", "others")]
        rows += [
            (f"weights of step {one.step}, {one.steps_before} earlier", *map(_number, (
                one.height.loss, one.height.usual, one.height.z, one.in_evaluation.loss, one.in_evaluation.usual)))
            for one in self.weights
        ]  # fmt: skip
        recorded = self.recorded
        rows.insert(1, ("as recorded", *map(_number, (recorded.loss, recorded.usual, recorded.z)), "", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines = [f"{self.run}, step {self.step}: {self.verdict}", f"  {self.text}.", "", *table, ""]
        if self.samples:
            known = not math.isnan(self.share_of_few)
            few = f"; the highest tenth holds {100 * self.share_of_few:.0f} % of the excess" if known else ""
            told = ", ".join(f"{one.index} ({_number(one.loss)})" for one in self.samples)
            lines.append(f"highest samples with the weights of step {self.weights[0].step}: {told}{few}")
        lines += [self.rerun.text] if self.rerun else []
        return "\n".join(lines).rstrip()


def replay(
    run_dir: Path,
    step: int,
    *,
    overrides: Sequence[str] = (),
    others: int = OTHERS,
    rerun: bool = False,
) -> Replay:
    """Replay ``step`` of the run at ``run_dir`` in this process, on the whole step's batch. Writes nothing.

    Args:
        overrides: ``task.kind=...`` of a task of one's own, and other values of ``CHANGEABLE``.
        others: other batches to hold it against.
        rerun: whether to train the steps from the last checkpoint on again.

    Raises:
        RunError: the run is not of this trainer, has no such step or no checkpoint before it, or its data are others.
        ConfigError: an override is refused, or the data cannot be read.
    """
    run = open_run(run_dir)
    attempt = _attempt_of(run, step)
    attempt = replace(attempt, overrides=attempt.overrides_at(step - 1))  # as it was when the step was made
    config = config_then(run, attempt, overrides, "a replay")
    older, later = _checkpoints(run, attempt, step)
    if rerun:
        _require_rerun(attempt, later, step)
    parallel = start_parallel(config.parallel, config.device)
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        bench = _Bench(run, attempt, build_session(config, parallel, resumed=True))
        found = bench.replayed(step, (older,) if older == later else (older, later), others)
        return replace(found, rerun=bench.rerun(later, step)) if rerun else found
    finally:
        stop_parallel(parallel)


class _Bench:
    """One session of the run's training, whose weights are exchanged."""

    def __init__(self, run: Run, attempt: Attempt, session: Session) -> None:
        self._run, self._attempt, self._session = run, attempt, session
        world = Parallel(rank=0, world_size=attempt.world_size, device=session.parallel.device)
        shares = session.config.grad_accum_steps * world.laid_out(session.config.parallel).data_size
        self._micro = max(1, session.config.batch_size // shares)

    def replayed(self, step: int, checkpoints: Sequence[Checkpoint], others: int) -> Replay:
        weights: list[Weighed] = []
        samples: list[Sample] = []
        drawn_from, drawn, near = "fixed", 0, list[int]()
        for place in checkpoints:
            self._restore(place)
            drawn = self._drawn(step)
            if not weights:
                self._require_same_data(place, step)
            own, drawn_from = self._both_losses(step, drawn)
            near = self._neighbours(step, drawn, others)
            trained, evaluated = zip(
                *(self._both_losses(other, drawn + (other - step) * self._batch_size)[0] for other in near), strict=True
            )
            heights = height_among(own[0], trained), height_among(own[1], evaluated)
            weights.append(Weighed(place.step, step - place.step, *heights))
            samples = samples or self._samples(step, drawn)
        recorded = height_after(*_recorded(self._run, step))
        verdict, text = judge(step, recorded, weights)
        if recorded.raised and self._is_other_batch(step, drawn):
            verdict, text = "not told apart", self._other_batch(step, drawn, near)
        return Replay(
            self._run.id,
            step,
            self._attempt.number,
            verdict,
            text if recorded.raised else text + _raised_soon(self._run, step),
            recorded,
            tuple(weights),
            others=len(near),
            random=drawn_from,
            samples=tuple(sorted(samples, key=lambda one: -np.nan_to_num(one.loss, nan=np.inf))[:SAMPLES_TOLD]),
            share_of_few=share_of_few([one.loss for one in samples], weights[0].in_evaluation.usual),
        )

    def rerun(self, place: Checkpoint, step: int) -> Rerun:
        """Train from ``place`` to ``step`` and hold each step against the recorded one."""
        self._restore(place)
        tape, plain = _Tape(), Unmonitored(self._session.state.model)
        while self._session.state.step < step:
            training_step(self._session, plain, tape)
        losses, norms = (_by_step(self._run, name) for name in ("train_loss", "grad_norm_preclip"))
        others = [
            one
            for one, (loss, norm) in tape.steps.items()
            if not (_same(loss, losses.get(one), 0.0) and _same(norm, norms.get(one), SAME_NORM))
        ]
        told = others[0] if others else step
        return Rerun(
            place.step + 1, step, others[0] if others else None, losses.get(told, math.nan), tape.steps[told][0]
        )

    @property
    def _batch_size(self) -> int:
        return self._session.config.batch_size

    def _restore(self, place: Checkpoint) -> None:
        state, device = self._session.state, self._session.parallel.device
        try:
            checkpoint.restore(place.path, state, self._session.parallel)
        except OSError as error:  # a training that goes on deletes its older ones
            raise RunError(f"checkpoint {place.path} cannot be read: {error.strerror}.") from None
        self._next = state.sampler.drawn, random_states(device)

    def _drawn(self, step: int) -> int:
        """How many examples were drawn before ``step``: as recorded, else counted from the restored checkpoint."""
        recorded = _by_step(self._run, "batch_id").get(step, math.nan)
        if math.isfinite(recorded) and 0 <= recorded < MAX_STEP:
            return int(recorded)
        return self._next[0] + (step - 1 - self._session.state.step) * self._batch_size

    def _neighbours(self, step: int, drawn: int, count: int) -> list[int]:
        """The steps before ``step`` whose batches are drawn again, and after it where there are too few."""
        before = range(step - 1, step - 1 - min(count, drawn // self._batch_size), -1)
        return [*before, *range(step + 1, step + 1 + count - len(before))]

    def _both_losses(self, step: int, drawn: int) -> tuple[tuple[float, float], str]:
        """Loss per token of the batch in training and in evaluation mode, and what the first drew from."""
        batches = self._batches(step, self._indices(drawn))
        drawn_from = self._draw_as(step)
        return (self._loss(batches, training=True), self._loss(batches, training=False)), drawn_from

    def _other_batch(self, step: int, drawn: int, near: Sequence[int]) -> str:
        """What it means that ``step`` had another batch than is drawn now; refuses data that changed."""
        others = [other for other in near if self._is_other_batch(other, drawn + (other - step) * self._batch_size)]
        if others:
            raise RunError(
                f"step {step} cannot be replayed: the data have changed since. The fingerprints of its batch and of "
                f"step {others[0]}'s are not those recorded. Give the data as they were: --set task.data=PATH"
            )
        return (
            f"step {step} was trained on another batch than the data have in its place, by its fingerprint; those of "
            "the steps around it are as recorded. It was changed on its way to the model"
        )

    def _is_other_batch(self, step: int, drawn: int) -> bool:
        """Whether the monitor took another fingerprint at ``step`` than of the batch that is drawn now."""
        config, model = self._session.config, self._session.state.model
        recorded = _by_step(self._run, "input_hash").get(step)
        if recorded is None or config.adversarial.epsilon is not None or config.parallel.mode == "pipeline":
            return False  # what goes in there depends on the weights, or is cut otherwise
        probe = Inputs(count_samples=False)
        seen = model.register_forward_pre_hook(
            lambda _, args, kwargs: probe.forward_begins(args, kwargs), with_kwargs=True
        )
        try:
            self._loss(self._batches(step, self._indices(drawn))[:1], training=False)
        finally:
            seen.remove()
        reading = probe.end_step()
        if reading is None:
            return False
        return reading.decode([tensor.cpu().numpy() for tensor in reading.tensors]).scalars["input_hash"] != recorded

    def _samples(self, step: int, drawn: int) -> list[Sample]:
        indices = self._indices(drawn)[:MOST_SAMPLES]
        return [Sample(int(index), self._loss(self._batches(step, index.view(1)), training=False)) for index in indices]

    def _indices(self, drawn: int) -> Tensor:
        """The training examples int64[B] that are drawn after ``drawn`` others."""
        sampler = self._session.state.sampler
        epoch, position = divmod(drawn, sampler.size)
        sampler.load_state_dict({**sampler.state_dict(), "epoch": epoch, "position": position})
        return sampler.take(self._batch_size)

    def _batches(self, step: int, indices: Tensor) -> list[Batch]:
        """As the micro-batches of all processes were cut."""
        session = self._session
        length = sequence_length(session.config, step)
        batches = [session.task.train_batch(part) for part in indices.split(self._micro)]
        return batches if length is None else [batch.cut(length) for batch in batches]

    def _draw_as(self, step: int) -> str:
        """Set the random states to those that ``step`` began with, or to fixed ones of its own."""
        session = self._session
        if step == session.state.step + 1:
            set_random_states(self._next[1], session.parallel.device)
            return "recorded"
        try:
            restore_random_states(self._run, step)
        except RunError:
            seed_everything(step)
            return "fixed"
        return "recorded"

    def _loss(self, batches: Sequence[Batch], *, training: bool) -> float:
        """Loss per token in the task's unit; NaN without a token."""
        session, model = self._session, self._session.state.model
        tokens, total = sum(batch.tokens for batch in batches), 0.0
        with _mode(model, training=training), session.precision.autocast():
            for batch in batches:
                moved = batch.to(session.parallel.device)
                if training and session.config.adversarial.epsilon is not None:
                    moved = attacked(session.task, model, moved, session.config.adversarial, session.state.scaler)
                with torch.no_grad():
                    total += float(session.task.loss(model, moved))
        return total / tokens if tokens else math.nan

    def _require_same_data(self, place: Checkpoint, step: int) -> None:
        """The step after a checkpoint can be repeated exactly: when its loss is another, so is what it was taken on."""
        first = place.step + 1
        recorded = _by_step(self._run, "train_loss").get(first)
        if first == step or recorded is None:
            return
        (loss, _), _ = self._both_losses(first, self._next[0])
        several = max(place.world_size, self._attempt.world_size) > 1
        if not _same(loss, recorded, SAME_LOSS_OF_SEVERAL if several else SAME_LOSS):
            raise RunError(
                f"step {step} cannot be replayed: the loss of step {first}, taken anew with the weights of checkpoint "
                f"{place.step}, is {loss:.6g}, and {recorded:.6g} was recorded. The data or the code have changed "
                "since, or something was done to that step that the run does not tell. Give the data as they were: "
                "--set task.data=PATH"
            )


class _Tape(Silent):
    """Takes down what each step of a rerun came to."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[float, float]] = {}
        """By step: loss, and gradient norm before clipping."""

    def step(self, step: int, tokens: int, lr: float, loss: SupportsFloat, grad_norm: SupportsFloat | None) -> None:
        self.steps[step] = float(loss), math.nan if grad_norm is None else float(grad_norm)


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode for a while; running statistics are afterwards what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train(training)
    try:
        yield
    finally:
        model.train()
        for buffer, value in buffers:
            buffer.copy_(value)


# --- what can be replayed ---------------------------------------------------------------------------------------------


def _attempt_of(run: Run, step: int) -> Attempt:
    """The attempt that made ``step`` as the run stands now."""
    if run.config is None or (run.code or {}).get("import"):
        raise RunError(f"run {run.id} was not made by this trainer, so its steps cannot be replayed by it.")
    losses = _by_step(run, "train_loss")
    number = run.attempt_of(step)
    if step not in losses or number is None:
        there = f"it has the losses of steps {min(losses)} to {max(losses)}" if losses else "no step has a loss"
        raise RunError(f"step {step} cannot be replayed: run {run.id} has no loss of it; {there}.")
    return next(attempt for attempt in run.attempts if attempt.number == number)


def config_then(run: Run, attempt: Attempt, overrides: Sequence[str], what: str) -> TrainConfig:
    """The configuration that ``attempt`` trained with, for ``what``; ``overrides`` may change ``CHANGEABLE`` alone.

    Raises:
        RunError: the configuration is of another version.
        ConfigError: an override is refused.
    """
    try:
        then = _config_of(run, attempt)
    except ConfigError as error:
        raise RunError(f"run {run.id} was not made by this version of this trainer: {error}") from None
    config = from_record(run.config or {}, overrides, source=str(run.path / "run.json"), changed=attempt.overrides)
    require_named(config, overrides, run.id)
    changed = [name for name in differences(then, config) if name not in CHANGEABLE]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)}: {what} is of the training as it was. Only {', '.join(CHANGEABLE)} may be others."
        )
    return config


def _config_of(run: Run, attempt: Attempt) -> TrainConfig:
    return from_record(run.config or {}, source=str(run.path / "run.json"), changed=attempt.overrides)


def _checkpoints(run: Run, attempt: Attempt, step: int) -> tuple[Checkpoint, Checkpoint]:
    """The newest complete checkpoint that is ``FAR`` steps older (else the oldest), and the newest before ``step``."""
    notes: list[str] = []
    usable: list[Checkpoint] = []
    for one in run.checkpoints():
        if one.complete and one.step < step:
            found = newest_complete(run.path / CHECKPOINTS_DIR, notes.append, at_step=one.step)
            other = None if found is None else _other_training(run, found, attempt)
            if other is not None:
                notes.append(other)
            elif found is not None:
                usable.append(found)
    if not usable:
        there = ", ".join(str(one.step) for one in run.checkpoints() if one.complete) or "none"
        why = f" {'; '.join(dict.fromkeys(notes))}." if notes else ""
        raise RunError(
            f"step {step} cannot be replayed: run {run.id} has no checkpoint from before it that can be used (complete "
            f"ones of steps: {there}).{why} To keep more of them: --set checkpoint.every_steps=100 --set "
            "checkpoint.keep_last=20"
        )
    usable.sort(key=lambda one: one.step)
    far = [one for one in usable if one.step <= step - FAR]
    return (far[-1] if far else usable[0]), usable[-1]


def _other_training(run: Run, place: Checkpoint, attempt: Attempt) -> str | None:
    """Why ``place`` does not lead to the steps of ``attempt``; None when it does."""
    if place.attempt != run.attempt_of(place.step):
        return f"checkpoint {place.step} is of attempt {place.attempt}, which was rewound"
    author = next(one for one in run.attempts if one.number == place.attempt)
    changed = differences(_config_of(run, author), _config_of(run, attempt))
    decisive = [name for name in changed if name.startswith(DECISIVE)]
    if decisive:
        return f"checkpoint {place.step} is from before a resume that changed {', '.join(decisive)}"
    return None


def _require_rerun(attempt: Attempt, place: Checkpoint, step: int) -> None:
    why = None
    if attempt.world_size > 1:
        why = f"{attempt.world_size} processes made them, and one adds up in another order"
    elif place.step < attempt.resume_step:
        why = f"the last checkpoint, {place.step}, is from before the resume after step {attempt.resume_step}"
    elif changed := [after for after, _ in attempt.changes if place.step < after < step]:
        why = f"the configuration was changed after step {changed[0]}, while it was training"
    elif step - place.step > MOST_RERUN:
        why = f"the last checkpoint, {place.step}, is more than {MOST_RERUN} steps earlier"
    if why:
        raise RunError(f"the steps to {step} cannot be trained again for comparison: {why}. Leave out --rerun.")


# --- recorded numbers -------------------------------------------------------------------------------------------------


def _by_step(run: Run, name: str) -> dict[int, float]:
    series = run.series(name)
    return dict(zip(series.step.tolist(), series.value.tolist(), strict=True))


def _recorded(run: Run, step: int) -> tuple[float, list[float]]:
    """The loss of ``step``, and those of the steps before it."""
    loss = run.series("train_loss").between(None, step)
    return float(loss.value[-1]), loss.value[-1 - STEPS_BEFORE : -1].tolist()


def _raised_soon(run: Run, step: int) -> str:
    """Where a step shortly after was raised: an incident may begin before the loss shows it."""
    after = run.series("train_loss").between(step + 1, step + SOON)
    raised = [one for one in after.step.tolist() if height_after(*_recorded(run, one)).raised]
    return f"; step {raised[0]} was: replay that" if raised else ""


def _same(one: float, other: float | None, tolerance: float) -> bool:
    """Whether they are equal, or as good as; NaN equals NaN and a missing number everything."""
    if other is None or one == other or (math.isnan(one) and math.isnan(other)):
        return True
    return math.isfinite(one) and math.isfinite(other) and abs(one - other) <= tolerance * abs(other)


def _number(value: float) -> str:
    return f"{value:.4g}"


# --- command line -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; gives back the exit code."""
    options = _parser().parse_args(arguments)
    task = [] if options.task is None else [f"task.kind={options.task}"]
    try:
        found = replay(
            options.run, options.step, overrides=[*task, *options.set], others=options.others, rerun=options.rerun
        )
    except GradiometerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(dump_json(found.to_dict()) if options.json else found.to_text(), flush=True)
    try:
        found.record(options.run)
    except RunError as error:
        print(f"the verdict is not recorded: {error}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer.replay", description=__doc__.partition("\n\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="the step whose loss is in question")
    parser.add_argument(
        "--others", type=int, choices=range(4, 257), default=OTHERS, metavar="K",
        help="batches to hold it against (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--rerun", action="store_true", help="train the steps from the last checkpoint on again")
    parser.add_argument("--task", metavar="KIND", help="a task of your own, as the run names it: package.module:build")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help=f"one of {', '.join(CHANGEABLE)}"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
