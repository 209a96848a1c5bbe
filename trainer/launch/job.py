"""What the attempt folder says about a job that another system runs: Slurm, Ray."""

from __future__ import annotations

import re
import time

from monitor.runfile.format import as_number, attempt_dir
from trainer.launch.claim import is_being_made, read_record
from trainer.launch.engine import Handle, JobState
from trainer.launch.local import OUTCOME_STATE, log_file

JOB_FILE = "job.json"
"""Which job it is. Further attempts of the same job get a copy (``trainer.place``)."""
SAVING = "Asked to stop. The trainer saves a checkpoint and ends; this takes a few seconds."


class JobRecords:
    """The small files of one attempt. They are data from disk: whose job it is, the engine has to ask."""

    def __init__(self, handle: Handle, name: re.Pattern[str]) -> None:
        folder = attempt_dir(*handle)
        self.being_made = is_being_made(folder)
        launch, job, supervisor = (read_record(folder / one) for one in ("launch.json", JOB_FILE, "supervisor.json"))
        given = job.get("job")
        self.job = given if isinstance(given, str) and name.fullmatch(given) else None
        self.submitted = as_number(job.get("time")) or 0.0
        self.launched = as_number(launch.get("time")) or 0.0
        self.begun = (folder / "attempt.json").exists()
        self.grace_s = as_number(launch.get("grace_s")) or 30.0
        self.stop_asked = as_number(supervisor.get("stop_asked"))
        self.exit = read_record(folder / "exit.json")
        step = read_record(log_file(*handle).with_name("heartbeat.json")).get("step")
        self.step = step if isinstance(step, int) else None

    @property
    def overdue(self) -> bool:
        """Whether the supervisor should have ended everything long ago."""
        return self.stop_asked is not None and time.time() > self.stop_asked + self.grace_s + 15


def as_recorded(records: JobRecords) -> tuple[JobState, str]:
    """The state that the exit record says."""
    outcome = str(records.exit.get("outcome"))
    return OUTCOME_STATE.get(outcome, JobState.LOST), str(records.exit.get("reason") or "ended")
