"""Where a training writes: the run directory and the attempt, made or found before torch is imported."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile.format import attempt_dir, exclusive_write_json, load_json
from monitor.runfile.reader import Run, open_run
from monitor.runfile.store import run_state
from monitor.runfile.writer import begin_attempt, create_run, is_anonymous, write_exit
from trainer.commit import Checkpoint, newest_complete, remove_leftovers
from trainer.config import TrainConfig, differences, from_record, require_left, require_named

RUNS_VARIABLE = "GRADIOMETER_RUNS"
JOB_VARIABLE = "GRADIOMETER_JOB"
"""See ``trainer.launch.local``."""
NO_MATTER = (
    "name", "stop_after", "log_every_s", "monitor.", "alerts.", "evaluation.", "checkpoint.", "parallel.timeout_s",
    "launch.",
)  # fmt: skip
"""Beginnings of configuration fields that change nothing about the steps of a training."""
LIBRARIES = ("torch", "numpy", "pyarrow", "safetensors", "pydantic")

MOST_LOOKED_AT = 200
"""Newest runs among which one that torchrun has begun before is looked for (our judgement)."""


@dataclass(frozen=True, slots=True)
class Place:
    """One attempt of one run, begun."""

    run_dir: Path
    attempt: int
    checkpoint: Path | None = None
    """What training goes on from; None for a fresh start."""
    start_step: int = 0
    """Optimizer steps that the checkpoint has behind it."""
    changed: tuple[str, ...] = ()
    """Configuration fields that change the training and are not as they were when the checkpoint was written."""

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"


def default_runs_dir() -> Path:
    """The folder of runs: ``GRADIOMETER_RUNS``, else ``runs`` here."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs")


def new_run(config: TrainConfig, runs_dir: Path) -> Place:
    """A fresh run in ``runs_dir`` with its first attempt.

    Raises:
        ConfigError: the data do not exist; a mistyped path leaves no run behind.
        RunError: the folder cannot be written.
    """
    config.task.data_path()
    run_dir = create_run(
        runs_dir, name=config.name or config.task.kind, task=config.task.kind, config=config.record(), code=code_state()
    )
    return Place(run_dir, attempt=_begin(run_dir, config))


def first_attempt(config: TrainConfig, run_dir: Path, attempt: int, say: Callable[[str], None]) -> Place:
    """The first attempt of a run that a launcher has made: from the seed, or from the checkpoint it was forked with.

    Raises:
        RunError: it was forked from a step whose checkpoint is not there, or is damaged.
    """
    run = open_run(run_dir)
    step = run.forked_after
    if not step:
        return Place(run_dir, attempt=_begin(run_dir, config, number=attempt))
    found = newest_complete(run_dir / "checkpoints", say, at_step=step)
    if found is None:
        raise RunError(
            f"run {run.id} was forked after step {step}, and there is no complete checkpoint of that step in "
            f"{run_dir / 'checkpoints'}. Fork it again from its parent."
        )
    number = _begin(run_dir, config, number=attempt, resume_step=found.step)
    return Place(run_dir, number, found.path, found.step, _changed_in_fork(run))


def _changed_in_fork(run: Run) -> tuple[str, ...]:
    """The fields that matter to a step and differ from those of the run that ``run`` was forked from."""
    changes = (run.parent or {}).get("changes")
    names = [str(name) for name in changes] if isinstance(changes, dict) else []
    return tuple(name for name in names if not name.startswith(NO_MATTER))


def resumed_run(
    run_dir: Path,
    overrides: Sequence[str],
    say: Callable[[str], None],
    *,
    attempt: int | None = None,
    at_step: int | None = None,
) -> tuple[TrainConfig, Place]:
    """Go on with a run from its newest complete checkpoint, or from the one of ``at_step``, as a new attempt.

    Raises:
        RunError: no such run, it is still running, or no complete checkpoint is below its last step.
        ConfigError: an override is refused.
    """
    run = open_run(run_dir)
    config, changes = config_of_run(run, overrides, at_step)
    state = run_state(run.path)
    if attempt is None and state.word in ("running", "paused", "starting"):
        raise RunError(f"run {run.id} is {state.word} ({state.reason}). Stop it first, or wait until it has ended.")
    checkpoints = run.path / "checkpoints"
    remove_leftovers(checkpoints)
    found = newest_complete(checkpoints, say, at_step=at_step)
    if found is None:
        at = "" if at_step is None else f" at step {at_step}"
        raise RunError(
            f"run {run.id} has no complete checkpoint{at} in {checkpoints}, so there is nothing to resume from. "
            "Start it anew."
        )
    require_left(config, found.step, run.id)
    number = _begin(run.path, config, number=attempt, parent=found.attempt, resume_step=found.step, overrides=changes)
    return config, Place(run.path, number, found.path, found.step, _changed(run, found, config))


def restarted_run(runs_dir: Path | None, run_dir: Path | None) -> Path | None:
    """The run that an earlier start of these processes by the same torchrun or job has begun; None at the first start.

    Args:
        runs_dir: where the run was made, when it was made by the trainer itself.
        run_dir: the run, when it is known.
    """
    job = this_job()
    if job is None:
        return None
    known = [run_dir] if run_dir else sorted(runs_dir.glob("*"), reverse=True)[:MOST_LOOKED_AT] if runs_dir else []
    return next((path for path in known if _newest_job(path) == job), None)


def continued_run(run_dir: Path, say: Callable[[str], None], task: str | None = None) -> tuple[TrainConfig, Place]:
    """Go on with a run whose processes have been started again: a new attempt from the newest complete checkpoint.

    From the beginning when there is none. The attempt that failed gets an exit record if it has none.

    Args:
        task: the task's kind as whoever started the processes named it.
    """
    run = open_run(run_dir)
    # torchrun may have found more or fewer hosts than before
    now = {"parallel.processes": os.environ.get("WORLD_SIZE"), "task.kind": task}
    config, changes = config_of_run(run, [f"{name}={value}" for name, value in now.items() if value is not None])
    failed = run.attempts[-1]
    if failed.exit is None:
        reason = "its processes ended without a word: killed (out of memory?), or their host is gone"
        write_exit(run.path, failed.number, outcome="crashed", step=None, reason=reason)
    checkpoints = run.path / "checkpoints"
    remove_leftovers(checkpoints)
    found = newest_complete(checkpoints, say)
    resume = {} if found is None else {"parent": found.attempt, "resume_step": found.step}
    number = _begin(run.path, config, overrides=changes, **resume)
    _hand_over(run.path, failed.number, number)
    if found is None:
        say("no complete checkpoint yet: starting from the beginning")
        return config, Place(run.path, number)
    return config, Place(run.path, number, found.path, found.step)


def rewound_run(place: Place, found: Checkpoint, config: TrainConfig, changed: Iterable[str]) -> Place:
    """Go back to checkpoint ``found`` of the run that is trained at ``place``, as a new attempt with ``config``."""
    run = open_run(place.run_dir)
    overrides = differences(from_record(run.config or {}, source=str(run.path / "run.json")), config)
    number = _begin(run.path, config, parent=found.attempt, resume_step=found.step, overrides=overrides)
    _hand_over(run.path, place.attempt, number)
    return Place(run.path, number, found.path, found.step, tuple(changed))


def _hand_over(run_dir: Path, before: int, number: int) -> None:
    """Who launched the processes and watches them has not changed with the attempt."""
    for name in ("launch.json", "job.json", "supervisor.json"):
        record = attempt_dir(run_dir, before) / name
        if record.is_file():
            exclusive_write_json(attempt_dir(run_dir, number) / name, load_json(record))


def this_job() -> str | None:
    """The same for all processes, and all restarts of them, of one job of a cluster or one torchrun; None outside one.

    A job keeps its name when it is queued again. Not TORCHELASTIC_RESTART_COUNT: it is counted per host, and differs
    between them after one has joined again.
    """
    if job := os.environ.get(JOB_VARIABLE):
        return job
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id == "none":  # torchrun was given no id: then its process on this host
        return f"{platform.node()}:{os.getppid()}"
    return run_id


def _newest_job(run_dir: Path) -> str | None:
    numbers = sorted((path.name for path in (run_dir / "attempts").glob("[0-9]*")), key=int)
    for number in reversed(numbers):
        try:
            return load_json(attempt_dir(run_dir, int(number)) / "attempt.json")["environment"].get("torchrun_job")
        except (OSError, RunError, LookupError, TypeError, AttributeError):
            continue  # claimed and not begun, or no record of ours
    return None


def _changed(run: Run, found: Checkpoint, config: TrainConfig) -> tuple[str, ...]:
    """The fields that matter to a step and differ between ``config`` and what was in force at checkpoint ``found``."""
    overrides = next((one.overrides_at(found.step) for one in run.attempts if one.number == found.attempt), None)
    then = from_record(run.config or {}, source=str(run.path / "run.json"), changed=overrides)
    return tuple(name for name in differences(then, config) if not name.startswith(NO_MATTER))


def config_of_run(run: Run, overrides: Sequence[str], at_step: int | None = None) -> tuple[TrainConfig, dict[str, Any]]:
    """The configuration of the newest attempt, changed by ``overrides``; and all that then differs from run.json.

    What was changed while that attempt ran counts; who goes back to ``at_step`` goes back before what came later.

    Raises:
        RunError: the run has no configuration of this trainer.
        ConfigError: a value is refused.
    """
    if run.config is None:
        raise RunError(
            f"run {run.id} was not made by this trainer (run.json has no config), so it cannot be resumed by it."
        )
    earlier = run.attempts[-1].overrides_at(at_step) if run.attempts else {}
    source = str(run.path / "run.json")
    config = from_record(run.config, overrides, source=source, changed=earlier)
    require_named(config, overrides, run.id)
    return config, differences(from_record(run.config, source=source), config)


def _begin(run_dir: Path, config: TrainConfig, **attempt: Any) -> int:
    return begin_attempt(
        run_dir,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        planned_steps=config.steps,
        environment=environment(config.device) | ({} if (job := this_job()) is None else {"torchrun_job": job}),
        git=code_state(),
        **attempt,
    )


def environment(device: str) -> dict[str, Any]:
    """Versions and machine, without importing any of the libraries."""
    return {
        "device": _likely_device() if device == "auto" else device,
        "python": platform.python_version(),
        "platform": platform.system() if is_anonymous() else platform.platform(),
        "cpu_count": os.cpu_count(),
        **{name: _version(name) for name in LIBRARIES},
    }


def _likely_device() -> str:
    """What ``auto`` will come to: CUDA needs a driver and a torch that was built for it."""
    has_cuda = Path("/dev/nvidiactl").exists() and "+cpu" not in (_version("torch") or "")
    return "cuda" if has_cuda else "cpu"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def code_state() -> dict[str, Any] | None:
    """The commit of the trainer's own source and whether it was changed since; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    run: Callable[..., str] = lambda *words: subprocess.run(  # noqa: E731
        ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=5, check=True
    ).stdout.strip()
    try:
        return {"commit": run("rev-parse", "HEAD"), "dirty": bool(run("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
