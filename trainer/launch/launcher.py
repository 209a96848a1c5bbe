"""Start, resume and stop runs, whichever engine holds their processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile.format import COMMIT_FILE, as_number, attempt_dir
from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import create_run
from trainer.commit import Checkpoint, adopt, newest_before, usable_at
from trainer.config import (
    FaultConfig,
    TrainConfig,
    differences,
    from_record,
    require_left,
    require_named,
    to_overrides,
    with_values,
)
from trainer.launch.claim import claim_attempt, newest_attempt, read_record
from trainer.launch.engine import Engine, Handle, JobSpec, JobState, JobStatus, Launched, StopResult
from trainer.launch.local import CONFIG_VARIABLE, LocalEngine
from trainer.launch.ray import RayEngine
from trainer.launch.slurm import SlurmEngine

GRACE_S = 30.0
"""Seconds a trainer gets to save its checkpoint after SIGTERM. A model that fits here is saved in one."""

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (LocalEngine(), SlurmEngine(), RayEngine())}


def start(
    config: TrainConfig,
    runs_dir: str | os.PathLike[str],
    *,
    name: str | None = None,
    run_id: str | None = None,
    grace_s: float = GRACE_S,
    _command: Sequence[str] | None = None,
) -> Launched:
    """Make a new run and set its training going where ``config.launch.engine`` says; returns at once.

    A caller that may be asked twice for the same training (two tabs, a double click) gives the same ``run_id`` both
    times: the second call is refused.

    Raises:
        RunError: ``run_id`` exists already, the folder cannot be written, or no process could be started.
    """
    config = _with_absolute_paths(config)
    engine = _available(config.launch.engine)
    run_dir = create_run(
        runs_dir,
        name=name or config.name or config.task.kind,
        run_id=run_id,
        task=config.task.kind,
        config=config.record(),
    ).absolute()
    return _submit_first(run_dir, config, engine, grace_s, _command)


def resume(
    run_dir: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    at_step: int | None = None,
    grace_s: float = GRACE_S,
    _command: Sequence[str] | None = None,
) -> Launched:
    """Go on from the last complete checkpoint as a new attempt, with ``a.b=c`` changes if wanted; returns at once.

    With ``at_step`` from the checkpoint of that step: the run is rewound, and what it recorded after it is superseded.

    Raises:
        RunError: the run is active, has no complete checkpoint, has reached its last step, or is being resumed by
            somebody else at this moment.
        ConfigError: an override is refused.
    """
    run = open_run(Path(run_dir).absolute())
    config = _config_of(run, overrides, at_step=at_step)
    newest = newest_attempt(run.path)
    _refuse_active(run, newest)
    checkpoint = _newest_checkpoint(run) if at_step is None else _checkpoint_at(run, at_step).step
    if checkpoint is None:
        raise RunError(f"run {run.id} has no complete checkpoint, so there is nothing to resume from. Start it anew.")
    require_left(config, checkpoint, run.id)
    engine = _available(config.launch.engine)
    attempt = claim_attempt(run.path, newest, engine=engine.name, world_size=config.parallel.processes, grace_s=grace_s)
    arguments = ["--resume", str(run.path), "--attempt", str(attempt)]
    arguments += [] if at_step is None else ["--at-step", str(at_step)]
    for override in overrides:
        arguments += ["--set", override]
    command = tuple(_command) if _command else None
    parallel = config.parallel
    spec = JobSpec(
        run.path, attempt, tuple(arguments), parallel.processes, grace_s, parallel.max_restarts, config.launch,
        command=command,
    )  # fmt: skip
    return Launched(run.id, run.path, attempt, engine.submit(spec))


def fork(
    run_dir: str | os.PathLike[str],
    step: int,
    overrides: Sequence[str] = (),
    *,
    attempt: int | None = None,
    runs_dir: str | os.PathLike[str] | None = None,
    name: str | None = None,
    fix: Mapping[str, Any] | None = None,
    grace_s: float = GRACE_S,
    _faults: Sequence[FaultConfig] = (),
) -> Launched:
    """Start a run of its own from the checkpoint of ``step``, with ``a.b=c`` changes if wanted; returns at once.

    The run that it is forked from is only read, and may go on meanwhile. The checkpoint's files become the child's by
    hard links, so that it can be resumed, and the parent thrown away, as with any other run.

    Args:
        step: 0 starts anew, from the same seed.
        attempt: whose configuration the changes are made to; None takes the newest one's, as a resume does.
        runs_dir: where the child is made; None takes the folder that the parent is in.
        fix: what the child is to show, kept in its record: see FORMAT.md.

    Raises:
        RunError: there is no complete checkpoint of that step, it has no step left, or no process could be started.
        ConfigError: an override is refused.
    """
    run = open_run(Path(run_dir).absolute())
    before = _config_of(run, overrides, attempt, changed=False, at_step=step)
    config = with_values(
        _config_of(run, overrides, attempt, at_step=step), {"fault": [one.model_dump() for one in _faults]}
    )
    found = _checkpoint_at(run, step) if step else None
    require_left(config, step, run.id)
    engine = _available(config.launch.engine)
    parent = {"run": run.id, "attempt": found.attempt if found else 0, "step": step}
    parent |= {"changes": differences(before, config)} | ({"fix": dict(fix)} if fix else {})
    child = create_run(
        runs_dir or run.path.parent,
        name=(name or f"{run.name}-fork")[:80],
        task=config.task.kind,
        config=config.record(),
        parent=parent,
    ).absolute()
    if found is not None:
        try:
            adopt(found, child / "checkpoints", run=run.id)
        except RunError:
            shutil.rmtree(child)  # nothing was started in it
            raise
    return _submit_first(child, config, engine, grace_s)


def skipping(step: int, batches: int) -> list[str]:
    """The overrides that leave out ``batches`` batches after ``step``; none for 0."""
    return [f"skip.after_step={step}", f"skip.batches={batches}"] if batches else []


def healthy_before(run_dir: str | os.PathLike[str], step: int) -> tuple[int, int]:
    """Step of the newest complete checkpoint on the current line before ``step``, 0 for none; and whose ``step`` is.

    Raises:
        RunError: not a run directory.
    """
    run = open_run(Path(run_dir).absolute())
    number = run.attempt_of(step)
    of = next((one for one in run.attempts if one.number == number), None)
    if of is None:
        return 0, 0
    found = newest_before(run.path / "checkpoints", step, attempt=of.number, start_step=of.resume_step)
    return (found.step, of.number) if found else (0, of.number)


def stop(run_dir: str | os.PathLike[str], *, grace_s: float | None = None) -> StopResult:
    """Ask the trainer for a checkpoint and a clean end; returns at once, ``status`` tells when it has ended.

    Also for a training that was started in a terminal, and for one whose supervisor is gone: then ``grace_s`` is the
    time until SIGKILL; otherwise the one given at the start is in force.

    Raises:
        RunError: not a run directory, or it runs on another host.
    """
    run_dir, attempt = _newest(run_dir)
    if attempt is None:
        return StopResult(False, "Nothing to stop: this run has never been started.")
    return _engine_of(run_dir, attempt).stop(Handle(run_dir, attempt), grace_s)


def status(run_dir: str | os.PathLike[str]) -> JobStatus:
    """The processes of the newest attempt.

    Raises:
        RunError: not a run directory.
    """
    return statuses([run_dir])[0]


def statuses(run_dirs: Sequence[str | os.PathLike[str]]) -> list[JobStatus]:
    """The same for several runs, in their order; each engine is asked once.

    Raises:
        RunError: one of them is not a run directory.
    """
    found: dict[int, JobStatus] = {}
    asked: dict[str, list[tuple[int, Handle]]] = {}
    for index, one in enumerate(run_dirs):
        path, attempt = _newest(one)
        if attempt is None:
            found[index] = JobStatus(JobState.LOST, "never started", None)
        else:
            asked.setdefault(_engine_of(path, attempt).name, []).append((index, Handle(path, attempt)))
    for name, numbered in asked.items():
        answers = ENGINES[name].poll([handle for _, handle in numbered])
        found |= {index: answer for (index, _), answer in zip(numbered, answers, strict=True)}
    return [found[index] for index in range(len(run_dirs))]


def engines() -> dict[str, str | None]:
    """Every engine by name, with why it cannot be used from here; None when it can."""
    return {name: engine.unavailable() for name, engine in ENGINES.items()}


def is_running(run_dir: str | os.PathLike[str]) -> bool:
    """Whether a process of this run is alive or about to be."""
    return status(run_dir).running


def log_path(run_dir: str | os.PathLike[str], attempt: int | None = None, rank: int = 0) -> Path | None:
    """stdout and stderr of a rank in the newest attempt, or in ``attempt``; the file may not exist.

    None before the first attempt. Ranks of one machine share the file of rank 0.
    """
    run_dir, newest = _newest(run_dir)
    wanted = newest if attempt is None else attempt
    return None if wanted is None else _engine_of(run_dir, wanted).logs(Handle(run_dir, wanted), rank)


def command(config: TrainConfig, runs_dir: str | os.PathLike[str], name: str | None = None) -> list[str]:
    """The command that trains the same from a terminal, to show and to copy; deliberate faults are not in it."""
    processes = config.parallel.processes
    if config.launch.engine != "local":
        head = ["gradiometer", "train"]
    elif processes == 1:
        head = ["python", "-m", "trainer"]
    else:
        head = ["torchrun", "--standalone", "--nproc-per-node", str(processes), "-m", "trainer"]
    words = [*head, "--runs", os.fspath(runs_dir)]
    if name:
        words += ["--name", name]
    for override in to_overrides(config):
        words += ["--set", override]
    return words


def resume_command(run_dir: str | os.PathLike[str], overrides: Sequence[str] = ()) -> list[str]:
    """The command that resumes the run in a terminal, to show and to copy."""
    words = ["python", "-m", "trainer", "--resume", os.fspath(run_dir)]
    for override in overrides:
        words += ["--set", override]
    return words


def _submit_first(
    run_dir: Path, config: TrainConfig, engine: Engine, grace_s: float, command: Sequence[str] | None = None
) -> Launched:
    """The first attempt of a run that has just been made."""
    attempt = claim_attempt(run_dir, None, engine=engine.name, world_size=config.parallel.processes, grace_s=grace_s)
    spec = JobSpec(
        run_dir,
        attempt,
        ("--run-dir", str(run_dir), "--attempt", str(attempt)),
        config.parallel.processes,
        grace_s,
        config.parallel.max_restarts,
        config.launch,
        {CONFIG_VARIABLE: config.model_dump_json()},
        tuple(command) if command else None,
    )
    return Launched(run_dir.name, run_dir, attempt, engine.submit(spec))


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The trainer works in another folder, and a resume may come from a third one."""
    paths = {"task.data": config.task.data, "model.weights": config.model.weights}
    absolute = {name: str(Path(path).expanduser().absolute()) for name, path in paths.items() if path is not None}
    return with_values(config, absolute)


def _newest(run_dir: str | os.PathLike[str]) -> tuple[Path, int | None]:
    path = Path(run_dir).absolute()
    if not (path / "run.json").is_file():
        raise RunError(f"{path} is not a run directory: it has no run.json. Give the folder of one run.")
    return path, newest_attempt(path)


def _engine_of(run_dir: Path, attempt: int) -> Engine:
    """The engine that holds the attempt; this machine's when it was not launched by us."""
    name: Any = read_record(attempt_dir(run_dir, attempt) / "launch.json").get("engine", "local")
    if name not in ENGINES:
        raise RunError(f"run {run_dir.name} was started by engine {name!r}, unknown here. Known: {', '.join(ENGINES)}.")
    return ENGINES[name]


def _available(name: str) -> Engine:
    """The engine, if something can be launched there: refused before there is a run or an attempt."""
    if reason := ENGINES[name].unavailable():
        able = [other for other, engine in ENGINES.items() if other != name and engine.unavailable() is None]
        raise RunError(f"launch.engine = {name}: {reason} Usable here: {', '.join(able)}.")
    return ENGINES[name]


def _config_of(
    run: Run,
    overrides: Sequence[str],
    attempt: int | None = None,
    *,
    changed: bool = True,
    at_step: int | None = None,
) -> TrainConfig:
    """What the trainer will come to for the same overrides: a mistake is refused here, before there is an attempt.

    Of the newest attempt, or of ``attempt``, with what was changed while it ran, up to ``at_step``; not ``changed``: as
    it was before the overrides.
    """
    if run.config is None:
        raise RunError(f"run {run.id} has no configuration of this trainer. Resume it with the program that made it.")
    earlier = next(
        (one.overrides_at(at_step) for one in reversed(run.attempts) if attempt in (None, one.number)),
        {},
    )
    config = from_record(run.config, overrides if changed else (), source=f"{run.id}/run.json", changed=earlier)
    require_named(config, overrides, run.id)
    return config


def _checkpoint_at(run: Run, step: int) -> Checkpoint:
    """The complete checkpoint of ``step``.

    Raises:
        RunError: there is none, with the steps that have one.
    """
    found = usable_at(run.path / "checkpoints", step)
    if isinstance(found, Checkpoint):
        return found
    steps = ", ".join(str(point.step) for point in run.checkpoints() if point.complete) or "none"
    raise RunError(
        f"run {run.id} has no complete checkpoint of step {step}: {found}. Steps with one: {steps}; a child of "
        "step 0 starts anew, from the same seed."
    )


def _newest_checkpoint(run: Run) -> int | None:
    """The step of the complete checkpoint that the trainer will go on from: of the latest attempt, the highest step."""
    complete = [point for point in run.checkpoints() if point.complete]
    order = [(as_number(read_record(point.path / COMMIT_FILE).get("attempt")) or 0, point.step) for point in complete]
    return max(order)[1] if order else None


def _refuse_active(run: Run, attempt: int | None) -> None:
    if attempt is None:
        return
    (now,) = _engine_of(run.path, attempt).poll([Handle(run.path, attempt)])
    if now.running:
        pids = f", process {', '.join(map(str, now.pids))}" if now.pids else ""
        raise RunError(f"run {run.id} is already {now.state} (attempt {attempt}{pids}): {now.reason}. Stop it first.")
