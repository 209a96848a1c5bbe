"""Trainings on a Slurm cluster: sbatch hands them over, and Slurm's own commands say how they stand.

The batch script runs our supervisor, and that runs ``srun``: with one process the trainer, with several
``trainer.host`` once per node. So a job keeps the records that a training on this machine keeps.

    scancel --signal=TERM --batch   -> script -> supervisor -> SIGUSR1 to srun -> every rank saves and ends
    SIGUSR1 before the time limit   -> the same, and the script queues the job again
    a node fails, Slurm requeues    -> the job begins again and goes on from its newest complete checkpoint

srun hands SIGUSR1 on to the ranks, and answers SIGTERM by killing them (seen with 22.05). A job that is queued again
keeps its number; the trainer knows by it that it has run before, and begins a new attempt (``trainer.place``).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile.format import attempt_dir, exclusive_write_json
from monitor.runfile.store import run_state
from monitor.runfile.writer import write_exit
from trainer.config import LaunchConfig
from trainer.launch.engine import Handle, JobSpec, JobState, JobStatus, StopResult
from trainer.launch.job import JOB_FILE, SAVING, JobRecords, as_recorded
from trainer.launch.local import JOB_VARIABLE, LOGS_VARIABLE, child_environment, log_file

POLL_S = 5.0
"""squeue is asked at most so often, for all runs together: it locks the controller's tables (Slurm's own advice)."""
PATIENCE_S = 2.0
"""How long a poll waits for squeue before it answers with what was seen last. Without a controller squeue takes 9 s."""
COMMAND_S = 60.0
"""A command of Slurm's that takes longer has hung (our judgement)."""
SCRIPT_FILE = "job.sbatch"
NUMBER = re.compile(r"[0-9]{1,18}")

WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
AT_WORK = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
ENDS = {
    "COMPLETED": ("crashed", "the job ended, and the trainer did not say how"),
    "CANCELLED": ("stopped", "the job was cancelled"),
    "PREEMPTED": ("stopped", "the job had to make room for another one"),
    "TIMEOUT": ("crashed", "the job was over its time limit and had not saved before it"),
    "DEADLINE": ("crashed", "the job was over its deadline"),
    "NODE_FAIL": ("crashed", "a node of the job failed"),
    "BOOT_FAIL": ("crashed", "a node of the job could not be started"),
    "OUT_OF_MEMORY": ("crashed", "the job needed more memory than it had asked for"),
    "FAILED": ("crashed", "the job failed, and the trainer did not say why; the log may"),
    "REVOKED": ("crashed", "the job was moved to another cluster"),
}  # fmt: skip
"""How an attempt ended that left no word of its own, by the job's state."""


@dataclass(frozen=True, slots=True)
class Job:
    """What Slurm says about a job."""

    state: str
    """``RUNNING``, ``CANCELLED`` ..."""
    reason: str
    nodes: str
    work_dir: str

    def belongs_to(self, run_dir: Path) -> bool:
        """Whether it is this run's. Its number comes from the run directory, which may be a stranger's."""
        try:
            return self.work_dir == str(run_dir) or Path(self.work_dir).samefile(run_dir)
        except OSError:
            return False


class SlurmEngine:
    """Runs each attempt as a Slurm job. Needs sbatch here, and the runs folder at the same path on all nodes."""

    name = "slurm"

    def __init__(self, poll_s: float = POLL_S) -> None:
        self._queue = _Queue(poll_s)
        self._answers: dict[str, tuple[float, Job | None]] = {}
        """What was asked about single jobs, and when."""

    def unavailable(self) -> str | None:
        if shutil.which("sbatch") is None:
            return "sbatch is not on the PATH of this machine. Launch from a login node of the cluster."
        seen = self._queue.look()
        return f"Slurm does not answer: {seen.problem}." if seen.problem else None

    def submit(self, spec: JobSpec) -> tuple[str, ...]:
        launch = spec.launch or LaunchConfig()
        folder = attempt_dir(spec.run_dir, spec.attempt)
        command = spec.command or _trainer_command(spec, launch.nodes)
        log = log_file(spec.run_dir, spec.attempt)
        log.parent.mkdir(exist_ok=True)
        script = folder / SCRIPT_FILE
        words = sbatch_words(spec, launch, script)
        try:
            script.write_text(batch_script(spec, command))
            answer = _slurm(words, environment=_environment(spec.environment), cwd=spec.run_dir)
            number = answer.strip().split(";")[0]  # a cluster's name may follow
            if not NUMBER.fullmatch(number):
                raise SlurmError(f"sbatch gave no job number but {answer.strip()[:200]!r}")
            record = {"engine": self.name, "job": number, "time": time.time(), "command": words}
            exclusive_write_json(folder / JOB_FILE, record)
        except (SlurmError, OSError) as error:
            reason = f"the job could not be submitted: {error}"
            write_exit(spec.run_dir, spec.attempt, outcome="crashed", step=None, reason=reason)
            raise RunError(f"run {spec.run_dir.name}, attempt {spec.attempt}: {reason}.") from error
        return tuple(command)

    def poll(self, handles: Sequence[Handle]) -> list[JobStatus]:
        seen = self._queue.look()
        return [self._status(handle, seen) for handle in handles]

    def _status(self, handle: Handle, seen: _Seen) -> JobStatus:
        records = JobRecords(handle, NUMBER)
        job = seen.jobs.get(records.job or "")
        if job is not None and not job.belongs_to(handle.run_dir):
            state, reason = JobState.LOST, f"job {records.job} is not of this run: it works in {job.work_dir}"
        elif job is not None and (job.state in WAITING or job.state in AT_WORK):
            state, reason = _in_queue(records, job)
        elif records.exit and not self._may_go_on(records, seen):
            state, reason = as_recorded(records)
        elif records.job is None:
            state, reason = _without_job(records)
        elif seen.problem:
            state, reason = self._unseen(handle, records, seen)
        elif seen.time <= records.submitted:
            state, reason = JobState.PENDING, f"job {records.job} was submitted a moment ago"
        else:
            state, reason = self._ended(handle, records)
        return JobStatus(state, reason, handle.attempt, supervised=state is JobState.RUNNING, log=log_file(*handle))

    def _may_go_on(self, records: JobRecords, seen: _Seen) -> bool:
        """Whether the attempt has ended and its job perhaps not: it saved before the time limit and is queued again."""
        number = records.job or ""
        if records.exit.get("outcome") == "finished" or not number:
            return False
        if seen.problem:
            before = seen.before.get(number)
            return before is not None and before.state in WAITING
        job = self._remembered(number)
        return job is not None and job.state in WAITING | AT_WORK

    def _unseen(self, handle: Handle, records: JobRecords, seen: _Seen) -> tuple[JobState, str]:
        """Without Slurm's word: what was seen last, or what the run itself shows. That is no reason to call it lost."""
        before = seen.before.get(records.job or "")
        if before is not None and before.belongs_to(handle.run_dir) and before.state in WAITING | AT_WORK:
            state, told = _in_queue(records, before)
            told += " when Slurm was last heard"
        else:
            state = JobState.RUNNING if records.begun else JobState.PENDING
            told = f"job {records.job} {'had begun' if records.begun else 'has not begun yet as far as can be seen'}"
        return (
            state,
            f"{told}. Slurm does not answer: {seen.problem}. The run itself: {run_state(handle.run_dir).reason}",
        )

    def _ended(self, handle: Handle, records: JobRecords) -> tuple[JobState, str]:
        """The job is in the queue no more and its trainer left no word: what Slurm remembers of it is kept for good."""
        assert records.job is not None
        job = self._remembered(records.job)
        if job is None:
            return JobState.LOST, (
                f"Slurm knows nothing of job {records.job} any more (without accounting it forgets a job some minutes "
                "after its end), and no end was recorded"
            )
        if not job.belongs_to(handle.run_dir):
            return JobState.LOST, f"job {records.job} is not of this run: it works in {job.work_dir}"
        if job.state in WAITING or job.state in AT_WORK:  # it came between the two questions
            return _in_queue(records, job)
        outcome, reason = ENDS.get(job.state, ("crashed", f"the job ended as {job.state}"))
        if not records.begun:
            reason += ", before it began"
        write_exit(*handle, outcome=outcome, step=records.step, reason=f"{reason} (Slurm job {records.job})")
        return as_recorded(JobRecords(handle, NUMBER))

    def _remembered(self, number: str) -> Job | None:
        """A job that squeue does not list: from the controller, else from the accounting if there is one."""
        asked, job = self._answers.get(number, (float("-inf"), None))
        over = job is not None and job.state in ENDS
        if not over and time.monotonic() - asked > self._queue.every_s:
            job = _from_controller(number) or _from_accounting(number)
            self._answers[number] = (time.monotonic(), job)
        return job

    def stop(self, handle: Handle, grace_s: float | None) -> StopResult:
        records = JobRecords(handle, NUMBER)
        if records.job is None:
            return StopResult(False, "Nothing to stop: no job of this run is known.")
        try:
            jobs = _squeue(["--jobs", records.job])
        except SlurmError as error:
            if "Invalid job id" not in str(error):
                raise RunError(f"job {records.job} cannot be stopped: Slurm does not answer: {error}.") from None
            jobs = {}
        job = jobs.get(records.job)
        if job is None:
            return StopResult(False, f"Nothing to stop: job {records.job} is not in Slurm's queue any more.")
        if not job.belongs_to(handle.run_dir):
            raise RunError(f"job {records.job} is not of this run: it works in {job.work_dir}. Nothing was stopped.")
        if job.state in WAITING:
            words, said = (
                ["scancel", records.job],
                f"Job {records.job} was waiting and has been taken out of the queue.",
            )
        elif records.overdue:
            words, said = ["scancel", records.job], f"Asked again: job {records.job} is being ended by Slurm."
        else:
            words, said = ["scancel", "--signal=TERM", "--batch", records.job], SAVING
        try:
            _slurm(words)
        except SlurmError as error:
            raise RunError(f"job {records.job} could not be stopped: {error}.") from None
        self._queue.forget()
        return StopResult(True, said)

    def logs(self, handle: Handle, rank: int = 0) -> Path:
        return log_file(*handle, rank)


# The job ----------------------------------------------------------------------------------------------------------


def sbatch_words(spec: JobSpec, launch: LaunchConfig, script: Path) -> list[str]:
    """The command that submits the script. All options are words of it: no line of the script and no variable of the
    user's environment can change one."""
    log = str(log_file(spec.run_dir, spec.attempt)).replace("%", "%%")
    words = [
        "sbatch", "--parsable", "--export=ALL", "--requeue", "--open-mode=append",
        f"--signal=B:USR1@{launch.save_before_s}", f"--job-name={spec.run_dir.name}", f"--chdir={spec.run_dir}",
        f"--output={log}", f"--nodes={launch.nodes}", f"--ntasks={launch.nodes}", "--ntasks-per-node=1",
    ]  # fmt: skip
    if launch.partition:
        words.append(f"--partition={launch.partition}")
    if launch.account:
        words.append(f"--account={launch.account}")
    if launch.time_limit_min:
        words.append(f"--time={launch.time_limit_min}")
    return [*words, *launch.sbatch_options, str(script)]


def batch_script(spec: JobSpec, command: Sequence[str]) -> str:
    """What runs on the first node. Everything that is not ours to choose stands quoted in the first lines."""
    quoted = {
        "run_dir": shlex.quote(str(spec.run_dir)),
        "python": shlex.quote(sys.executable),
        "grace": f"{spec.grace_s:g}",
        "command": shlex.join(command),
        "job_variable": JOB_VARIABLE,
        "logs_variable": LOGS_VARIABLE,
    }
    return _SCRIPT.format(**quoted)


_SCRIPT = """\
#!/bin/bash
# Made by Gradiometer: one training, under a supervisor that records how it ends.
run_dir={run_dir}
python={python}

export {job_variable}="slurm-$SLURM_JOB_ID"  # stays the same when the job is queued again
newest=$(cd "$run_dir/attempts" && printf '%s\\n' [0-9]* | tail -n 1)
export {logs_variable}="$run_dir/attempts/$newest"
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

again= asked= child=
ask() {{ [ -z "$child" ] || kill -TERM "$child" 2>/dev/null; }}
trap 'again=yes; ask' USR1  # the time limit is near
trap 'asked=yes; ask' TERM

"$python" -P -m trainer.launch.supervise "$run_dir" "$((10#$newest))" --grace {grace} --signal SIGUSR1 -- \\
    {command} &
child=$!
[ -z "$again$asked" ] || ask
while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break  # a trap interrupts wait
done

newest=$(cd "$run_dir/attempts" && printf '%s\\n' [0-9]* | tail -n 1)
if [ -n "$again" ] && [ -z "$asked" ] && grep -q '"outcome": "stopped"' "$run_dir/attempts/$newest/exit.json"; then
    # Slurm ends this script for it. Ending by itself, it could be taken for the end of the job that waits already.
    scontrol requeue "$SLURM_JOB_ID" && sleep 600
fi
exit "$code"
"""


def _trainer_command(spec: JobSpec, nodes: int) -> list[str]:
    """srun, once per node. What only Slurm knows the node's own shell puts in."""
    srun = ["srun", "--nodes", str(nodes), "--ntasks", str(nodes), "--ntasks-per-node=1", "--kill-on-bad-exit=1",
            "--unbuffered", "--input=none"]  # fmt: skip
    if spec.world_size == 1:
        return [*srun, sys.executable, "-P", "-m", "trainer", *spec.arguments]
    host = [
        sys.executable, "-P", "-m", "trainer.host", "--slurm", "--hosts", str(nodes),
        "--processes", str(spec.world_size // nodes), "--max-restarts", str(spec.max_restarts),
        "--grace-s", str(max(1, round(spec.grace_s))), "--", *spec.arguments,
    ]  # fmt: skip
    return [*srun, *host]


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without what Slurm said about the job that we may run in ourselves."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
    environment = child_environment(extra)
    return {name: value for name, value in environment.items() if not name.startswith("SLURM_") or name in kept}


# What both say together ------------------------------------------------------------------------------------------


def _in_queue(records: JobRecords, job: Job) -> tuple[JobState, str]:
    number = records.job
    if job.state in WAITING:
        why = "" if job.reason in ("", "None") else f" ({job.reason})"
        if records.begun:
            return JobState.REQUEUED, f"job {number} is queued again and will go on from its newest checkpoint{why}"
        return JobState.PENDING, f"job {number} waits in the queue{why}"
    if records.stop_asked is not None:
        return JobState.STOPPING, f"job {number} was asked to stop; the trainer is saving its checkpoint"
    extra = "" if job.state == "RUNNING" else f", {job.state.lower()}"
    return JobState.RUNNING, f"job {number} runs on {job.nodes}{extra}"


def _without_job(records: JobRecords) -> tuple[JobState, str]:
    if records.being_made or time.time() - records.launched < COMMAND_S:
        return JobState.PENDING, "being submitted"
    return JobState.LOST, "no job number was recorded: whoever launched it died before Slurm had answered"


# What Slurm says ----------------------------------------------------------------------------------------------------


class SlurmError(Exception):
    """A command of Slurm's failed; the message is its own."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The answer of one squeue."""

    time: float = 0.0
    """Unix seconds at which it was asked."""
    jobs: Mapping[str, Job] = field(default_factory=dict)
    problem: str | None = None
    """Why there was no answer; then ``jobs`` is empty."""
    before: Mapping[str, Job] = field(default_factory=dict)
    """The jobs of the last answer that there was."""


class _Queue:
    """This user's jobs as squeue listed them last: asked anew by a thread, at most every ``every_s``."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._lock = threading.Lock()
        self._seen = _Seen()
        self._asked = float("-inf")
        self._asking: threading.Thread | None = None

    def look(self) -> _Seen:
        """What is known; waits for a while for what is being asked."""
        with self._lock:
            if self._asking is None and time.monotonic() - self._asked >= self.every_s:
                self._asked = time.monotonic()
                self._asking = threading.Thread(target=self._ask, name="squeue", daemon=True)
                self._asking.start()
            asking = self._asking
        if asking is not None:
            asking.join(PATIENCE_S)
        if not self._seen.time:
            return _Seen(problem="squeue has not answered yet")
        return self._seen

    def forget(self) -> None:
        """Ask anew at the next look: something was done."""
        with self._lock:
            self._asked = float("-inf")

    def _ask(self) -> None:
        began, before = time.time(), self._seen.jobs or self._seen.before
        try:
            self._seen = _Seen(began, jobs := _squeue(["--user", str(os.getuid())]), before=jobs)
        except SlurmError as error:
            self._seen = _Seen(began, problem=str(error), before=before)
        finally:
            with self._lock:
                self._asking = None


def _squeue(which: Iterable[str]) -> dict[str, Job]:
    """Jobs that wait or run, by number.

    Raises:
        SlurmError: there is no answer, or no such job.
    """
    jobs = {}
    for line in _slurm(["squeue", "--noheader", "--format=%i|%T|%r|%N|%Z", *which]).splitlines():
        number, *rest = line.strip().split("|", 4)
        if len(rest) == 4:
            jobs[number] = Job(*rest)
    return jobs


def _from_controller(number: str) -> Job | None:
    """Of a job that ended some minutes ago (MinJobAge) the controller still knows."""
    try:
        text = _slurm(["scontrol", "show", "job", "--oneliner", number])
    except SlurmError:
        return None
    found = dict(word.split("=", 1) for word in text.split() if "=" in word)
    # The folder may hold spaces, so it cannot be told from the words; it is followed by StdErr.
    work_dir = text.partition(" WorkDir=")[2].partition(" StdErr=")[0].strip()
    return Job(found.get("JobState", ""), found.get("Reason", ""), found.get("NodeList", ""), work_dir)


def _from_accounting(number: str) -> Job | None:
    """Of any job, where the cluster keeps accounts."""
    try:
        text = _slurm(["sacct", "--jobs", number, "--allocations", "--noheader", "--parsable2",
                       "--format=State,Reason,NodeList,WorkDir"])  # fmt: skip
    except SlurmError:
        return None
    rest = text.strip().splitlines()[-1].split("|", 3) if text.strip() else []
    return Job(rest[0].split(" ")[0], *rest[1:]) if len(rest) == 4 else None  # "CANCELLED by 1000"


def _slurm(words: Sequence[str], **how: Any) -> str:
    """What a command of Slurm's prints.

    Raises:
        SlurmError: it failed, hung, or is not there.
    """
    environment = how.pop("environment", None)
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=COMMAND_S,
            env=environment, **how,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} did not answer within {COMMAND_S:g} s") from None
    except OSError as error:
        raise SlurmError(f"{words[0]}: {error.strerror or error}") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise SlurmError(lines[-1] if lines else f"{words[0]} ended with return code {done.returncode}")
    return done.stdout
