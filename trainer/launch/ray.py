"""Trainings on a Ray cluster, through the Job API of its head: plain HTTP, so that Ray's 400 MB stay out of here.

The job's command is our supervisor with the trainer under it, so a job keeps the records that a training on this
machine keeps. Ray's stop is SIGTERM to the supervisor and all below it, and SIGKILL after a time that the job itself
may set; the supervisor's grace time is within it. All processes of a job run on one host of the cluster. The runs
folder and this Python must be there at the same paths.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile.format import attempt_dir, exclusive_write_json
from monitor.runfile.store import run_state
from monitor.runfile.writer import write_exit
from trainer.launch.engine import Handle, JobSpec, JobState, JobStatus, StopResult
from trainer.launch.job import JOB_FILE, SAVING, JobRecords, as_recorded
from trainer.launch.local import child_environment, log_file, trainer_command

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Ray's own variable. Never from the run directory: whoever made it must not choose where we send requests."""
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_S = 5.0
"""An answer of the head takes milliseconds; one that submits may start a process first, see ``submit``."""
SUBMIT_S = 60.0
QUIET_S = 5.0
"""How long a head that did not answer is not asked again: a page asks for many runs every second (our judgement)."""
MAX_ANSWER_BYTES = 4 << 20
NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
STOPPED_S = 10
"""Seconds that the supervisor gets beyond its grace time before Ray kills it (our judgement)."""

OURS = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER")
"""What of ``child_environment`` a trainer needs on another host; devices and paths are that host's own."""

ENDS = {
    "STOPPED": ("stopped", "the job was stopped"),
    "FAILED": ("crashed", "the job failed, and the trainer did not say why; the log may"),
    "SUCCEEDED": ("crashed", "the job ended, and the trainer did not say how"),
}
"""How an attempt ended that left no word of its own, by the job's status."""


class RayEngine:
    """Runs each attempt as a job of the Ray cluster whose head is at ``RAY_API_SERVER_ADDRESS``."""

    name = "ray"

    def __init__(self) -> None:
        self._quiet: tuple[float, str, str] = (float("-inf"), "", "")
        """When which head did not answer, and how."""

    def unavailable(self) -> str | None:
        try:
            self._ask("GET", "/api/version")
        except RayError as error:
            return f"no Ray head answers: {error}. {ADDRESS_VARIABLE} names one, such as {DEFAULT_ADDRESS}."
        return None

    def submit(self, spec: JobSpec) -> tuple[str, ...]:
        command = spec.command or trainer_command(spec)
        log = log_file(spec.run_dir, spec.attempt)
        log.parent.mkdir(exist_ok=True)
        name = f"{spec.run_dir.name[:150]}-{spec.attempt}-{os.urandom(3).hex()}"
        asked = {
            "submission_id": name,
            "entrypoint": entrypoint(spec, command),
            "entrypoint_num_cpus": spec.world_size,
            "metadata": {"run_dir": str(spec.run_dir), "attempt": str(spec.attempt)},
            "runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(round(spec.grace_s) + STOPPED_S)}},
        }
        try:
            exclusive_write_json(
                attempt_dir(spec.run_dir, spec.attempt) / JOB_FILE,
                {"engine": self.name, "job": name, "time": time.time()},
            )
            self._ask("POST", "/api/jobs/", asked, timeout=SUBMIT_S)
        except (RayError, OSError) as error:
            reason = f"the job could not be submitted: {error}"
            write_exit(spec.run_dir, spec.attempt, outcome="crashed", step=None, reason=reason)
            raise RunError(f"run {spec.run_dir.name}, attempt {spec.attempt}: {reason}.") from error
        return tuple(command)

    def poll(self, handles: Sequence[Handle]) -> list[JobStatus]:
        return [self._status(handle) for handle in handles]

    def _status(self, handle: Handle) -> JobStatus:
        records = JobRecords(handle, NAME)
        if records.exit:
            state, reason = as_recorded(records)
        elif records.job is None:
            state, reason = JobState.LOST, "no job was recorded: whoever launched it died before Ray was asked"
            if records.being_made:
                state, reason = JobState.PENDING, "being submitted"
        else:
            state, reason = self._asked(handle, records, records.job)
        return JobStatus(state, reason, handle.attempt, supervised=state is JobState.RUNNING, log=log_file(*handle))

    def _asked(self, handle: Handle, records: JobRecords, name: str) -> tuple[JobState, str]:
        try:
            job = self._job(handle, name)
        except RayError as error:
            state = JobState.RUNNING if records.begun else JobState.PENDING
            return state, f"Ray does not answer: {error}. The run itself: {run_state(handle.run_dir).reason}"
        if job is None:
            if time.time() - records.submitted < SUBMIT_S:
                return JobState.PENDING, "being submitted"
            return JobState.LOST, f"Ray knows no job {name} of this run (a head forgets all when it is started anew)"
        status = str(job.get("status"))
        if status == "PENDING":
            return JobState.PENDING, f"job {name} waits for its processors"
        if status == "RUNNING":
            if records.stop_asked is not None:
                return JobState.STOPPING, f"job {name} was asked to stop; the trainer is saving its checkpoint"
            return JobState.RUNNING, f"job {name} runs on {job.get('driver_node_id') or 'the cluster'}"
        outcome, reason = ENDS.get(status, ("crashed", f"the job ended as {status}"))
        reason += "" if records.begun else ", before it began"
        write_exit(*handle, outcome=outcome, step=records.step, reason=f"{reason} (Ray job {name})")
        return as_recorded(JobRecords(handle, NAME))

    def _job(self, handle: Handle, name: str) -> dict[str, Any] | None:
        """What the head knows about the job; None when it knows none of this name and this run."""
        try:
            job = self._ask("GET", f"/api/jobs/{name}")
        except UnknownJobError:
            return None
        about = job.get("metadata")
        return job if isinstance(about, dict) and _same(about.get("run_dir"), handle.run_dir) else None

    def stop(self, handle: Handle, grace_s: float | None) -> StopResult:
        records = JobRecords(handle, NAME)
        if records.exit or records.job is None:
            return StopResult(False, "Nothing to stop: no job of this run is known, or it has ended.")
        try:
            job = self._job(handle, records.job)
            if job is None or job.get("status") not in ("PENDING", "RUNNING"):
                return StopResult(False, f"Nothing to stop: job {records.job} of this run neither waits nor runs.")
            self._ask("POST", f"/api/jobs/{records.job}/stop", {})
        except RayError as error:
            raise RunError(f"job {records.job} cannot be stopped: Ray does not answer: {error}.") from None
        return StopResult(True, SAVING)

    def logs(self, handle: Handle, rank: int = 0) -> Path:
        return log_file(*handle, rank)

    def _ask(self, method: str, path: str, body: Any = None, timeout: float = ANSWER_S) -> dict[str, Any]:
        """One request to the head.

        Raises:
            UnknownJobError: it knows no such job.
            RayError: there is no answer, or it is a refusal.
        """
        head = address()
        since, silent, how = self._quiet
        if method == "GET" and silent == head and time.monotonic() - since < QUIET_S:
            raise RayError(how)
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(head + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with _OPENER.open(request, timeout=timeout) as answer:
                found = json.loads(answer.read(MAX_ANSWER_BYTES) or b"{}")
        except urllib.error.HTTPError as error:
            said = error.read(MAX_ANSWER_BYTES).decode("utf-8", "replace").strip().splitlines()
            if error.code == 404:
                raise UnknownJobError(said[-1] if said else "no such job") from None
            raise RayError(f"{head} answers {error.code}: {said[-1][:300] if said else error.reason}") from None
        except (OSError, ValueError) as error:  # URLError is an OSError; no JSON is a ValueError
            how = f"{head}: {getattr(error, 'reason', None) or error}"
            self._quiet = (time.monotonic(), head, how)
            raise RayError(how) from None
        return found if isinstance(found, dict) else {}


class RayError(Exception):
    """The head refused, or did not answer."""


class UnknownJobError(RayError):
    """The head knows no such job."""


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Without a proxy: a cluster's head is near, and loopback is not exempt from a proxy by itself."""


def address() -> str:
    """Where the head listens: http or https."""
    given = os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    return given.rstrip("/") if given.startswith(("http://", "https://")) else f"http://{given.rstrip('/')}"


def entrypoint(spec: JobSpec, command: Sequence[str]) -> str:
    """The job as one line for the shell that Ray starts; every word is quoted."""
    environment = child_environment(spec.environment)
    wanted = {name: value for name, value in environment.items() if name in OURS or name in spec.environment}
    supervise = [sys.executable, "-P", "-m", "trainer.launch.supervise", str(spec.run_dir), str(spec.attempt),
                 "--grace", f"{spec.grace_s:g}", "--", *command]  # fmt: skip
    words = ["env", "-C", str(spec.run_dir), *(f"{name}={value}" for name, value in wanted.items()), *supervise]
    return "exec " + shlex.join(words)


def _same(there: Any, run_dir: Path) -> bool:
    try:
        return isinstance(there, str) and (there == str(run_dir) or Path(there).samefile(run_dir))
    except OSError:
        return False
