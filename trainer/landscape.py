"""``python -m trainer.landscape RUN --checkpoint N``: the loss around a checkpoint's weights, and its curvature.

The model and its data are rebuilt from the run, the weights are those of the checkpoint, and the loss is that of one
fixed batch in evaluation mode. What is found goes to the run's folder ``landscape``, coarse first: it can be watched
meanwhile, stopped with Ctrl-C or by a budget, and the same command goes on with the rest.

Exit codes: 0 done, or stopped by the budget; 2 a mistake that one message explains; 130 stopped by Ctrl-C; 1 a crash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from monitor.errors import GradiometerError, RunError
from monitor.landscape.curvature import Curvature, curvature
from monitor.landscape.directions import Direction, between, last_update, norm, random_direction, scaled
from monitor.landscape.hessian import descent
from monitor.landscape.measures import barrier, curvature_at_zero
from monitor.landscape.sample import REACH_OF_UPDATE
from monitor.landscape.surface import LossFn, Surface, axis, fill
from monitor.landscape.trajectory import principal_plane
from monitor.landscape.undisturbed import float_buffers, moving, undisturbed
from monitor.runfile.format import CHECKPOINTS_DIR, as_number, dump_json
from monitor.runfile.landscapes import read_landscape, write_landscape
from monitor.runfile.reader import Attempt, Run, open_run
from monitor.runfile.records import LandscapeSample
from trainer import checkpoint
from trainer.commit import COMMIT, MODEL, Checkpoint, newest_complete
from trainer.config import ParallelConfig
from trainer.loop import Session, build_session
from trainer.optim import set_lr
from trainer.parallel import start_parallel, stop_parallel
from trainer.replay import CHANGEABLE, config_then

KINDS = ("line", "plane", "connect", "curvature")
DIRECTIONS = ("random", "update", "gradient", "pca")
DATA = ("held-out", "training")
MOST_POINTS = 501
"""Along one axis."""
TOKENS = 2048
"""Of the batch, unless told otherwise: as many examples as have so many. Our judgement."""
FEWEST_EXAMPLES, MOST_EXAMPLES = 8, 256
REACH = {"random": 1.0, "update": REACH_OF_UPDATE}
"""To both sides: in norms of each filter, and in last updates."""
BESIDE = 0.2
"""Share of the trajectory's extent that a plane shows on each side of it."""
MOST_CHECKPOINTS = 32
"""Of a trajectory; of more, so many evenly spread. Each is held in memory."""
SAVE_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. Equal questions about equal weights have one answer, which is continued."""

    kind: str = "line"
    direction: str = "random"
    points: int = 51
    radius: float | None = None
    """To both sides; None: by direction."""
    seed: int = 0
    """Of the batch and of random directions."""
    examples: int | None = None
    """In the batch; None: about ``TOKENS`` tokens."""
    data: str | None = None
    """Which examples; None: held-out ones, and for curvature those of the training, whose limit it is held against."""
    other: int | None = None
    """connect: step of the other checkpoint; None: the nearest before."""
    eigenvalues: int = 3
    trace_samples: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.direction not in DIRECTIONS or self.data not in (None, *DATA):
            raise RunError(
                f"kind {self.kind!r}, direction {self.direction!r}, data {self.data!r}: accepted are kinds "
                f"{', '.join(KINDS)}, directions {', '.join(DIRECTIONS)}, data {', '.join(DATA)}."
            )
        if self.kind != "curvature" and (not 3 <= self.points <= MOST_POINTS or self.points % 2 == 0):
            raise RunError(f"{self.points} points; accepted is an odd number from 3 to {MOST_POINTS} along each axis.")
        if self.radius is not None and not 0 < self.radius < math.inf:
            raise RunError(f"radius {self.radius}; accepted is a number above 0.")
        if self.direction == "pca" and self.kind == "line":
            raise RunError(
                "a line has no direction pca; use --kind plane --direction pca, or random, update, gradient."
            )

    @property
    def examples_of(self) -> str:
        return self.data or ("training" if self.kind == "curvature" else "held-out")


@dataclass(frozen=True, slots=True)
class Found:
    """An answer, or as much of it as there was time for."""

    sample: LandscapeSample
    complete: bool
    file: Path

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        own = self.sample
        return {
            "file": str(self.file), "complete": self.complete, "kind": own.kind, "direction": own.direction,
            "step": own.step, "attempt": own.attempt, "radius": own.radius, "baseline": own.baseline,
            "coords": own.coords.tolist(), "coords_y": own.coords_y.tolist(), "loss": own.loss.tolist(),
            "detail": own.detail,
        }  # fmt: skip

    def to_text(self) -> str:
        """A few lines for people."""
        own, detail = self.sample, self.sample.detail
        unit = detail.get("loss_unit", "")
        lines = [
            f"step {own.step}, {own.kind}" + (f" along {own.direction}" if own.direction else "")
            + f": loss {own.baseline:.6g} {unit} on {detail.get('examples')} {detail.get('data')} examples"
        ]  # fmt: skip
        if own.kind == "curvature":
            lines += _told_curvature(detail)
        elif len(own.loss):
            lowest = int(np.argmin(np.where(np.isnan(own.loss), np.inf, own.loss)))
            place = ", ".join(f"{own_axis[lowest]:.4g}" for own_axis in (own.coords, own.coords_y) if len(own_axis))
            lines.append(
                f"  {len(own.loss)} of {detail.get('points')} points; lowest {own.loss[lowest]:.6g} at {place}"
            )
        if (shares := detail.get("variance_explained")) is not None:
            lines.append(
                f"  the plane holds {100 * shares[0]:.0f} % + {100 * shares[1]:.0f} % of the checkpoints' variance"
            )
        if "barrier" in detail:
            lines.append(
                f"  barrier to step {detail['other_step']}: {_number(detail['barrier'])} at {detail['barrier_at']}"
            )
        if "curvature" in detail:
            lines.append(f"  second derivative at the weights: {_number(detail['curvature'])}")
        lines.append(f"  kept in {self.file}")
        if not self.complete:
            lines.append("  not finished: the same command goes on with the rest")
        return "\n".join(lines)


def _told_curvature(detail: dict[str, Any]) -> list[str]:
    gradient, update = (_number(detail.get(f"along_{name}")) for name in ("gradient", "update"))
    lines = [f"  along the gradient {gradient}, along the last update {update}"]
    if detail.get("eigenvalues"):
        lines.append("  largest eigenvalues " + ", ".join(f"{value:.5g}" for value in detail["eigenvalues"]))
    if "trace" in detail:
        lines.append(f"  trace {detail['trace']:.5g} ± {detail.get('trace_error', math.nan):.2g}")
    if "sharpness" in detail and "limit" in detail:
        share = detail["sharpness"] / detail["limit"]
        kind = "preconditioned sharpness" if detail["preconditioned"] else "sharpness"
        lines.append(f"  {kind} {detail['sharpness']:.5g} is {share:.2f} of the limit {detail['limit']:.5g}")
        lines.append(f"    limit: {detail['rule']}, lr = {detail['lr']:.4g}")
    if "critical_batch" in detail:
        lines.append(
            f"  gradient noise scale {detail['noise_scale']:.3g} batches: critical batch about "
            f"{detail['critical_batch']:.3g}, in use {detail['batch_size']}"
        )
    lines.append(f"  by {detail['products']} Hessian-vector products ({detail['method']})")
    return lines


def _number(value: Any) -> str:
    number = as_number(value)
    return "not known" if number is None else f"{number:.4g}"


Tell = Callable[[int, int], None]


def look(
    run_dir: Path,
    question: Question,
    *,
    step: int | None = None,
    overrides: Sequence[str] = (),
    budget_s: float = math.inf,
    tell: Tell = lambda known, of: None,
) -> Found:
    """Answer ``question`` about the checkpoint of ``step`` (None: the newest) in this process, and keep the answer.

    A part of it that is there already is continued. On KeyboardInterrupt what was found is kept.

    Args:
        overrides: ``task.kind=...`` of a task of one's own, ``task.data``, ``device``, ``threads``.
        tell: called with how many points are known, and of how many.

    Raises:
        RunError: the run is not of this trainer, has no such checkpoint, or the question cannot be answered there.
        ConfigError: an override is refused, or the data cannot be read.
    """
    run = open_run(run_dir)
    place = _checkpoint(run, step)
    attempt = next(one for one in run.attempts if one.number == place.attempt)
    config = config_then(run, attempt, overrides, "a look at its landscape")
    config = config.model_copy(update={"parallel": ParallelConfig()})
    parallel = start_parallel(config.parallel, config.device)
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        session = build_session(config, parallel, resumed=True)
        checkpoint.restore(place.path, session.state, parallel)
        return _Desk(run, attempt, place, session, question).answer(time.monotonic() + budget_s, tell)
    except ValueError as error:
        raise RunError(f"step {place.step} of run {run.id}: {error}.") from None
    finally:
        stop_parallel(parallel)


class _Desk:
    """One question about one checkpoint whose weights are in the model."""

    def __init__(self, run: Run, attempt: Attempt, place: Checkpoint, session: Session, question: Question) -> None:
        self._run, self._attempt, self._place, self._session = run, attempt, place, session
        self._question = question
        self._model, self._optimizer = session.state.model, session.state.optimizer
        lr = run.series("lr").between(place.step, place.step).value
        if len(lr):
            set_lr(self._optimizer, float(lr[0]))  # the step's; the optimizer was built with the configured one
        self._examples, self._loss = self._fixed_loss()
        self._saved_at = -math.inf
        self._began = time.monotonic()
        if question.kind == "connect" and question.other is None:
            earlier = [one for one in _line(run) if one.step < place.step]
            if not earlier:
                raise RunError(f"run {run.id} has no checkpoint before step {place.step} to connect it with: --other M")
            self._question = replace(question, other=earlier[-1].step)
        told = {**asdict(self._question), "examples": self._examples, "device": session.parallel.device.type}
        weights = _fingerprint(place)
        key = hashlib.sha256(dump_json([told, weights]).encode()).hexdigest()[:8]
        self._name = f"{place.step:08d}-{question.kind}-{key}"
        self._detail: dict[str, Any] = {
            "seed": question.seed, "examples": self._examples, "data": question.examples_of,
            "device": session.parallel.device.type, "loss_unit": session.task.loss_unit, "weights": weights[:16],
        }  # fmt: skip

    def answer(self, ends: float, tell: Tell) -> Found:
        if self._question.kind == "curvature":
            return self._curvature(ends, tell)
        axes, directions, radius = self._prepare()
        surface = Surface.blank(*axes)
        self._detail["points"] = surface.loss.size
        self._continue(surface)
        with undisturbed(self._model, with_buffers=self._question.kind == "connect") as borrowed:
            here = Surface.blank(np.zeros(1))
            fill(here, borrowed, self._loss, directions[:1])
            baseline = float(here.loss[0])

            def progress(known: int, of: int) -> None:
                tell(known, of)
                if time.monotonic() - self._saved_at > SAVE_EVERY_S:
                    self._keep(surface, radius, baseline)

            tell(int(surface.known.sum()), surface.loss.size)
            try:
                fill(surface, borrowed, self._loss, directions, budget_s=ends - time.monotonic(), progress=progress)
            finally:
                found = self._keep(surface, radius, baseline)
        tell(int(surface.known.sum()), surface.loss.size)
        return found

    # The loss --------------------------------------------------------------------------------------------------------

    def _fixed_loss(self) -> tuple[int, LossFn]:
        session, task, question = self._session, self._session.task, self._question
        held_out = question.examples_of == "held-out"
        size = task.val_size if held_out else task.train_size
        usual = max(FEWEST_EXAMPLES, min(MOST_EXAMPLES, TOKENS // task.tokens_per_example))
        count = min(size, question.examples or usual)
        indices = torch.randperm(size, generator=torch.Generator().manual_seed(question.seed))[:count]
        batch = (task.val_batch if held_out else task.train_batch)(indices)
        tokens, moved = batch.tokens, batch.to(session.parallel.device)
        if not tokens:
            raise RunError(f"{count} {question.examples_of} examples carry no loss; try another --seed or --examples.")

        def loss() -> Tensor:
            with session.precision.autocast():
                return task.loss(self._model, moved) / tokens

        return count, loss

    # Where to look ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> tuple[tuple[np.ndarray, ...], list[Direction], float]:
        """Axes, directions and reach."""
        question, points = self._question, self._question.points
        if question.kind == "connect":
            return (np.linspace(0.0, 1.0, points),), [self._to_other()], 1.0
        if question.direction == "pca":
            return self._principal()
        direction, unit, reach = self._direction()
        radius = question.radius or reach
        directions = [direction]
        if question.kind == "plane":
            weights = [parameter.data for parameter in moving(self._model)]
            second = random_direction(weights, question.seed, 1)
            if unit != "filter":
                second = scaled(second, norm(direction) / max(norm(second), 1e-30))
            directions.append(second)
            self._detail["directions"] = [question.direction, "random"]
        self._detail["unit"] = unit
        return tuple(axis(radius, points) for _ in directions), directions, radius

    def _direction(self) -> tuple[Direction, str, float]:
        """The first direction, what 1 along it is, and how far to go."""
        parameters = moving(self._model)
        weights = [parameter.data for parameter in parameters]
        match self._question.direction:
            case "random":
                return random_direction(weights, self._question.seed), "filter", REACH["random"]
            case "update":
                update = last_update(self._optimizer, parameters)
                if update is None:
                    raise RunError(
                        f"the state of {type(self._optimizer).__name__} does not tell its last update (that of "
                        "Adam, AdamW and SGD with momentum does); use --direction gradient."
                    )
                self._detail["update_norm"] = norm(update)
                return update, "update", REACH["update"]
        direction, reach = descent(self._model, self._loss)
        self._detail["gradient_norm"] = norm(direction)
        return direction, "gradient", reach

    def _to_other(self) -> Direction:
        other = _checkpoint(self._run, self._question.other)
        if other.step == self._place.step:
            raise RunError(f"step {other.step} is connected with itself; name another checkpoint: --other M")
        self._detail["other_step"] = other.step
        here = self._weights(with_buffers=True)
        (there,) = self._weights_of([other], with_buffers=True)
        return between(here, there)

    def _principal(self) -> tuple[tuple[np.ndarray, ...], list[Direction], float]:
        line = [one for one in _line(self._run) if one.step < self._place.step]
        if len(line) < 2:
            raise RunError(
                f"a plane of principal components needs two checkpoints before step {self._place.step}, and run "
                f"{self._run.id} has {len(line)}. To keep more: --set checkpoint.every_steps=100 --set "
                "checkpoint.keep_last=20; or use --direction random."
            )
        spread = np.linspace(0, len(line) - 1, min(len(line), MOST_CHECKPOINTS - 1)).round().astype(int)
        used = [_checkpoint(self._run, line[place].step) for place in sorted({*spread.tolist()})]
        plane = principal_plane([*self._weights_of(used), self._weights()])
        self._detail |= {
            "unit": "l2", "directions": ["first principal component", "second principal component"],
            "variance_explained": list(plane.variance_explained),
            "trajectory": {
                "step": [*(one.step for one in used), self._place.step], "x": plane.x.tolist(), "y": plane.y.tolist(),
                "off": plane.off.tolist(),
            },
        }  # fmt: skip
        half = self._question.radius or (0.5 + BESIDE) * float(max(np.ptp(plane.x), np.ptp(plane.y)))
        middles = [(own.min() + own.max()) / 2 for own in (plane.x, plane.y)]
        # Equal scales, so that the picture is as the weights lie.
        axes = tuple(np.linspace(middle - half, middle + half, self._question.points) for middle in middles)
        return axes, list(plane.directions), half

    def _weights(self, *, with_buffers: bool = False) -> list[Tensor]:
        tensors = [parameter.data for parameter in moving(self._model)]
        return [one.clone() for one in [*tensors, *(float_buffers(self._model) if with_buffers else [])]]

    def _weights_of(self, places: Sequence[Checkpoint], *, with_buffers: bool = False) -> list[list[Tensor]]:
        """Those of other checkpoints; the model has its own again afterwards."""
        device, found = self._session.parallel.device, []
        for place in [*places, self._place]:
            _require_whole(place)
            try:
                checkpoint.load_weights(place.path, self._model, device)
            except (RuntimeError, OSError) as error:
                raise RunError(f"checkpoint {place.path} cannot be read as this model: {error}") from None
            found.append(self._weights(with_buffers=with_buffers))
        return found[:-1]

    # Answers ---------------------------------------------------------------------------------------------------------

    def _continue(self, surface: Surface) -> None:
        """Take over what an earlier call found."""
        try:
            known = read_landscape(self._run.path, self._name)
        except RunError:
            return  # damaged: begun anew
        for sample in known:
            columns = (sample.coords, sample.coords_y)[: len(surface.axes)]
            if all(len(column) == len(sample.loss) for column in columns):
                surface.take(*columns, sample.loss)

    def _keep(self, surface: Surface, radius: float, baseline: float) -> Found:
        *coordinates, losses = surface.points()
        detail = {**self._detail, "seconds": time.monotonic() - self._began}
        if self._question.kind == "connect":
            detail["barrier"], detail["barrier_at"] = barrier(coordinates[0], losses)
        elif self._question.kind == "line":
            detail["curvature"] = curvature_at_zero(coordinates[0], losses)
        detail = {key: value for key, value in detail.items() if not (isinstance(value, float) and math.isnan(value))}
        found = self._write(coordinates, losses, radius, baseline, detail)
        self._saved_at = time.monotonic()
        return replace(found, complete=surface.complete)

    def _curvature(self, ends: float, tell: Tell) -> Found:
        question = self._question
        found: Curvature = curvature(
            self._model, self._loss, self._optimizer,
            count=question.eigenvalues, trace_samples=question.trace_samples, seed=question.seed,
            budget_s=ends - time.monotonic(), progress=lambda made: tell(made, 0), interrupted=self._keep_part,
        )  # fmt: skip
        answer = self._keep_curvature(found)
        done = not question.eigenvalues or len(found.eigenvalues) == question.eigenvalues
        return replace(answer, complete=done and found.trace.samples == question.trace_samples)

    def _keep_curvature(self, found: Curvature) -> Found:
        detail = {**self._detail, **found.detail(), **self._noise(), "seconds": time.monotonic() - self._began}
        return self._write([np.empty(0)], np.empty(0), math.nan, found.loss, detail)

    def _keep_part(self, found: Curvature) -> None:
        """What was found before an interruption, where an earlier call has not found more."""
        try:
            known = read_landscape(self._run.path, self._name)
        except RunError:
            known = []
        if all((as_number(one.detail.get("products")) or 0) < found.products for one in known):
            self._keep_curvature(found)

    def _noise(self) -> dict[str, float]:
        """The gradient noise scale that the training measured last, and the batch at which it would be as large."""
        scale = self._run.series("gradient_noise_scale").between(None, self._place.step).value
        if not len(scale) or not math.isfinite(scale[-1]):
            return {}
        size = self._session.config.batch_size
        return {"noise_scale": float(scale[-1]), "critical_batch": float(scale[-1]) * size, "batch_size": size}

    def _write(
        self, coordinates: list[np.ndarray], losses: np.ndarray, radius: float, baseline: float, detail: dict[str, Any]
    ) -> Found:
        along = self._question.direction if self._question.kind in ("line", "plane") else ""
        second = coordinates[1] if len(coordinates) > 1 else np.empty(0)
        sample = LandscapeSample(
            self._place.step, time.time(), self._question.kind, along, radius, coordinates[0], losses, baseline,
            self._attempt.number, second, dump_json(detail), self._name,
        )  # fmt: skip
        return Found(sample, False, write_landscape(self._run.path, self._name, [sample]))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _line(run: Run) -> list[Any]:
    """The complete checkpoints, by step."""
    return [one for one in run.checkpoints() if one.complete]


def _checkpoint(run: Run, step: int | None) -> Checkpoint:
    """The checkpoint of ``step``, whole and as the run stands now; the newest for None."""
    if run.config is None or (run.code or {}).get("import"):
        raise RunError(
            f"run {run.id} was not made by this trainer, which therefore cannot rebuild its model. In a loop of your "
            "own call mon.landscape(loss_fn, batch)."
        )
    notes: list[str] = []
    found = newest_complete(run.path / CHECKPOINTS_DIR, notes.append, at_step=step)
    if found is None:
        there = ", ".join(str(one.step) for one in _line(run)) or "none"
        why = f" {'; '.join(dict.fromkeys(notes))}." if notes else ""
        which = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
        raise RunError(f"run {run.id} has {which} (complete ones: {there}).{why}")
    if found.attempt != run.attempt_of(found.step):
        raise RunError(f"checkpoint {found.step} of run {run.id} is of attempt {found.attempt}, which was rewound.")
    _require_whole(found)
    return found


def _require_whole(place: Checkpoint) -> None:
    if not (place.path / MODEL).exists():
        raise RunError(
            f"checkpoint {place.step} holds its weights in pieces, one for each of {place.world_size} processes, and a "
            "landscape moves whole ones. Resume the run in one process (--set parallel.mode=none), let it save a "
            "checkpoint and look at that."
        )


def _fingerprint(place: Checkpoint) -> str:
    """Tells the weights from those of another checkpoint of the same step."""
    files = json.loads((place.path / COMMIT).read_bytes())["files"]
    return str(files[MODEL]["sha256"])


# --- command line -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; gives back the exit code."""
    options = _parser().parse_args(arguments)
    named = {"task.kind": options.task, "device": options.device}
    overrides = [*(f"{name}={value}" for name, value in named.items() if value is not None), *options.set]
    try:
        question = Question(
            options.kind, options.direction, options.points, options.radius, options.seed, options.examples,
            options.data, options.other, options.eigenvalues, options.trace,
        )  # fmt: skip
        with _Bar(question.kind) as bar:
            found = look(
                options.run, question, step=options.checkpoint, overrides=overrides, budget_s=options.budget,
                tell=bar.tell,
            )  # fmt: skip
    except GradiometerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "begins anew" if options.kind == "curvature" else "goes on with it"
        print(f"stopped; what was found is kept, the same command {goes_on}", file=sys.stderr)
        return 130
    print(dump_json(found.to_dict()) if options.json else found.to_text(), flush=True)
    return 0


class _Bar:
    """A progress bar on standard error while that is a terminal."""

    def __init__(self, kind: str) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(kind), BarColumn(bar_width=32), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def tell(self, known: int, of: int) -> None:
        self._progress.update(self._task, completed=known, total=of or None)


def seconds(text: str) -> float:
    """``60``, ``60s``, ``5m`` or ``1h`` as seconds."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        found = float(number) * unit
    except ValueError:
        found = math.nan
    if not found > 0:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted are times such as 60s, 5m or 1h")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer.landscape", description=__doc__.partition("\n\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="step of the checkpoint (default: the newest)")
    parser.add_argument("--kind", choices=KINDS, default="line")
    parser.add_argument("--direction", choices=DIRECTIONS, default="random", help="of a line or plane")
    parser.add_argument(
        "--points", type=int, default=51, metavar="P", help="along each axis, odd (default: %(default)s)"
    )
    parser.add_argument("--radius", type=float, metavar="R", help="reach to both sides (default: by direction)")
    parser.add_argument(
        "--other", type=int, metavar="M", help="connect: the other checkpoint (default: the one before)"
    )
    parser.add_argument("--data", choices=DATA, help="default: held-out; for curvature training")
    parser.add_argument("--examples", type=int, metavar="B", help=f"in the batch (default: about {TOKENS} tokens)")
    parser.add_argument("--seed", type=int, default=0, help="of the batch and of random directions")
    parser.add_argument("--eigenvalues", type=int, choices=range(21), default=3, metavar="K")
    parser.add_argument("--trace", type=int, choices=range(1001), default=0, metavar="S", help="samples of the trace")
    parser.add_argument("--budget", type=seconds, default=math.inf, metavar="TIME", help="60s, 5m or 1h")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--task", metavar="KIND", help="a task of your own, as the run names it: package.module:build")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help=f"one of {', '.join(CHANGEABLE)}"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
