"""Trainings on this machine: a detached supervisor for each, which survives whoever started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from monitor.errors import RunError
from monitor.runfile.format import LOG_FILE, as_number, attempt_dir, exclusive_write_json, rank_dir
from monitor.runfile.store import run_state
from monitor.runfile.writer import write_exit
from trainer.launch.claim import BEING_MADE_S, is_being_made, is_elsewhere, read_record
from trainer.launch.engine import Handle, JobSpec, JobState, JobStatus, StopResult
from trainer.launch.processes import Identity, send

REPOSITORY = Path(__file__).resolve().parents[2]

TORCHRUN_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK",
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE",
    "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""Set by torchrun for its workers. A launcher that is one itself must not hand them on."""

CONFIG_VARIABLE = "GRADIOMETER_TRAIN_CONFIG"
"""Carries the configuration to the first attempt, faults included: a fault must not lie in the run directory."""
JOB_VARIABLE = "GRADIOMETER_JOB"
"""The job of another engine than this one, the same however often it is queued again (``trainer.place.job``)."""
LOGS_VARIABLE = "GRADIOMETER_RANK_LOGS"
"""An attempt folder: each rank prints into its own log there (``trainer.rank_log``)."""

OUTCOME_STATE = {"finished": JobState.SUCCEEDED, "stopped": JobState.CANCELLED, "crashed": JobState.FAILED}


class LocalEngine:
    """Runs each attempt under ``python -m trainer.launch.supervise`` in a session of its own."""

    name = "local"

    def unavailable(self) -> str | None:
        return None

    def submit(self, spec: JobSpec) -> tuple[str, ...]:
        command = spec.command or trainer_command(spec)
        log = log_file(spec.run_dir, spec.attempt)
        log.parent.mkdir(exist_ok=True)
        try:
            with log.open("ab") as stderr, _signals_held_back():
                supervisor = _detach(spec, [str(spec.attempt), "--grace", f"{spec.grace_s:g}", "--", *command], stderr)
        except OSError as error:
            reason = f"the supervisor could not be started: {error}"
            write_exit(spec.run_dir, spec.attempt, outcome="crashed", step=None, reason=reason)
            raise RunError(f"run {spec.run_dir.name}, attempt {spec.attempt}: {reason}.") from error
        _note_supervisor(spec, supervisor, command)
        return command

    def poll(self, handles: Sequence[Handle]) -> list[JobStatus]:
        return [self._status(*handle) for handle in handles]

    def _status(self, run_dir: Path, attempt: int) -> JobStatus:
        records = _Records(run_dir, attempt)
        supervised = records.supervisor is not None and records.supervisor in records.live
        if records.elsewhere and not records.exit:
            state, reason = _seen_from_afar(run_dir, records.host)
        else:
            state, reason = _state(records, supervised)
        pids = tuple(process.pid for process in records.live)
        return JobStatus(state, reason, attempt, pids, supervised, log_file(run_dir, attempt))

    def stop(self, handle: Handle, grace_s: float | None) -> StopResult:
        run_dir, attempt = handle
        records = _Records(run_dir, attempt)
        if records.elsewhere:
            raise RunError(
                f"run {run_dir.name} runs on host {records.host} (or in a container there), whose processes cannot be "
                f"reached from {socket.gethostname()}. Stop it from there."
            )
        live = records.live
        if records.being_launched and not records.exit:
            return StopResult(False, "The run is being launched at this moment. Ask again in a second.")
        if not live:
            return StopResult(False, "Nothing to stop: no process of this run is alive.")
        if records.supervisor is not None and records.supervisor in live:
            send(records.supervisor, signal.SIGTERM)
            return StopResult(True, _SAVING, (records.supervisor.pid,))
        target = live[0]
        grace = grace_s if grace_s is not None else records.grace_s
        self._adopt(run_dir, attempt, target, grace, leads_group=target == records.child)
        return StopResult(True, _SAVING, (target.pid,))

    def logs(self, handle: Handle, rank: int = 0) -> Path:
        return log_file(*handle, rank)

    def _adopt(self, run_dir: Path, attempt: int, target: Identity, grace_s: float, *, leads_group: bool) -> None:
        """A new supervisor for a trainer that has none: it sends SIGTERM, waits, and records how it ended."""
        spec = JobSpec(run_dir, attempt, ())
        arguments = [str(attempt), "--grace", f"{grace_s:g}", "--adopt", str(target.pid), f"{target.create_time!r}"]
        log = log_file(run_dir, attempt)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as stderr, _signals_held_back():
            _detach(spec, arguments + ["--group"] * leads_group, stderr)


_SAVING = "Asked to stop. The trainer saves a checkpoint and ends; this takes a few seconds."


def log_file(run_dir: Path, attempt: int, rank: int = 0) -> Path:
    """stdout and stderr of that rank, where ranks have files of their own, else of all the attempt's processes."""
    own = rank_dir(run_dir, attempt, rank) / LOG_FILE
    return own if rank == 0 or own.exists() else rank_dir(run_dir, attempt) / LOG_FILE


def trainer_command(spec: JobSpec) -> tuple[str, ...]:
    """The command line of the trainer, through torchrun when there are several processes."""
    # -P: the working directory is the run directory, and nothing in it may be imported.
    python = (sys.executable, "-P")
    if spec.world_size == 1:
        return (*python, "-m", "trainer", *spec.arguments)
    return (
        *python, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", str(spec.world_size), "--max-restarts", str(spec.max_restarts),
        "--shutdown-timeout", str(max(1, round(spec.grace_s))),
        "-m", "trainer", *spec.arguments,
    )  # fmt: skip


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours, so that the trainer sees the same devices and caches, made safe for another working directory."""
    environment = {name: value for name, value in os.environ.items() if not _belongs_to_another(name)}
    inherited = [str(Path(entry).absolute()) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(REPOSITORY), *inherited]))  # works uninstalled
    environment["PYTHONSAFEPATH"] = "1"  # as -P, for the workers that torchrun starts
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONFAULTHANDLER"] = "1"  # a segmentation fault leaves the Python stack in the log
    # 2.13's default keeps a host from joining again: the survivor caches its bootstrap address (seen with two hosts).
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return environment | dict(extra)


def _belongs_to_another(name: str) -> bool:
    """What torchrun or a launcher gave to the process that we are, and not to the one we start."""
    return (
        name in TORCHRUN_VARIABLES
        or name.startswith("TORCHELASTIC_")
        or name in (CONFIG_VARIABLE, JOB_VARIABLE, LOGS_VARIABLE)
    )


def _detach(spec: JobSpec, arguments: list[str], stderr: Any) -> subprocess.Popen[bytes]:
    supervisor = subprocess.Popen(
        [sys.executable, "-P", "-m", "trainer.launch.supervise", str(spec.run_dir), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,  # only its own failure to start; the trainer's output goes to the same file
        cwd=spec.run_dir,
        env=child_environment(spec.environment),
        start_new_session=True,
    )
    # Collects the exit status, so that no zombie stays under a page that runs for weeks.
    threading.Thread(target=_reap, args=(supervisor, spec), name=f"reap-{supervisor.pid}", daemon=True).start()
    return supervisor


def _reap(supervisor: subprocess.Popen[bytes], spec: JobSpec) -> None:
    """Wait for the supervisor; say so when it died before it had started anything (a broken installation)."""
    returncode = supervisor.wait()
    folder = attempt_dir(spec.run_dir, spec.attempt)
    if not folder.is_dir() or (folder / "exit.json").exists() or "child_pid" in read_record(folder / "supervisor.json"):
        return
    reason = f"the supervisor ended with return code {returncode} before it started the trainer; see the log"
    write_exit(spec.run_dir, spec.attempt, outcome="crashed", step=None, reason=reason, returncode=returncode)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block SIGTERM, SIGINT and SIGHUP in this thread, and by inheritance in the supervisor until its handlers are in
    place: a stop in the first 50 ms then waits instead of killing a supervisor that has recorded nothing yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _note_supervisor(spec: JobSpec, supervisor: subprocess.Popen[bytes], command: tuple[str, ...]) -> None:
    """Make the supervisor findable from now on; it replaces this record with the full one when the trainer has a pid.
    Create-exclusive, so that a supervisor that was faster is not overwritten."""
    try:
        identity = Identity.of(supervisor.pid)
    except psutil.NoSuchProcess:  # already over; its exit record says how
        return
    record = {"pid": identity.pid, "pid_create_time": identity.create_time, "command": list(command)}
    try:
        exclusive_write_json(attempt_dir(spec.run_dir, spec.attempt) / "supervisor.json", record)
    except (FileExistsError, RunError):
        return


class _Records:
    """What the attempt folder says about its processes, and which of them live.

    Read in the order in which it is written, so that what happens meanwhile is seen late rather than wrongly: the exit
    record after the processes, because whoever writes it lives until it is there.
    """

    def __init__(self, run_dir: Path, attempt: int) -> None:
        folder = attempt_dir(run_dir, attempt)
        being_made = is_being_made(folder)
        launch = read_record(folder / "launch.json")
        supervisor = read_record(folder / "supervisor.json")
        trainer = read_record(folder / "attempt.json")
        heartbeat = read_record(rank_dir(run_dir, attempt) / "heartbeat.json")
        place = launch or trainer
        self.host = place.get("host")
        self.elsewhere = is_elsewhere(place)
        grace_s = as_number(launch.get("grace_s"))
        self.grace_s = 30.0 if grace_s is None else grace_s
        self.stop_asked = "stop_asked" in supervisor
        self.supervisor = Identity.read(supervisor)
        self.child = Identity.read(supervisor, "child")
        """The trainer, or torchrun."""
        self.trainer = Identity.read(trainer) or Identity.read(heartbeat)
        known = () if self.elsewhere else (self.supervisor, self.child, self.trainer)
        self.live = tuple(dict.fromkeys(process for process in known if process is not None and process.alive))
        self.being_launched = not self.live and (being_made or _in_launch(launch, supervisor))
        self.exit = read_record(folder / "exit.json")


def _in_launch(launch: Mapping[str, Any], supervisor: Mapping[str, Any]) -> bool:
    """The launcher is between making the folder and having a supervisor; or was when it died, and then there may be a
    supervisor that has not said so yet: who took the attempt for lost and began another would have two trainers."""
    if supervisor or Identity.read(launch) is None or is_elsewhere(launch):
        return False
    return time.time() - (as_number(launch.get("time")) or 0.0) < BEING_MADE_S


def _state(records: _Records, supervised: bool) -> tuple[JobState, str]:
    if records.live and records.stop_asked:
        return JobState.STOPPING, "asked to stop; the trainer is saving its checkpoint"
    if records.live and records.trainer is None and records.child is None:
        return JobState.PENDING, "the supervisor is starting the trainer"
    if records.live:
        return JobState.RUNNING, "the trainer runs" + (
            "" if supervised else "; its supervisor is gone, stopping still works"
        )
    if records.exit:
        return OUTCOME_STATE.get(str(records.exit.get("outcome")), JobState.LOST), str(
            records.exit.get("reason") or "ended"
        )
    if records.being_launched:
        return JobState.PENDING, "being launched"
    return JobState.LOST, "no process is left and no exit was recorded"


def _seen_from_afar(run_dir: Path, host: Any) -> tuple[JobState, str]:
    """Of a run on another host we see the run directory only: its heartbeat."""
    seen = run_state(run_dir)
    active = seen.word in ("starting", "running", "paused")
    return (
        JobState.RUNNING if active else JobState.LOST,
        f"on host {host}, whose processes cannot be seen from here: {seen.reason}",
    )
