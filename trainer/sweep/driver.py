"""The process that looks after one sweep: ``python -m trainer.sweep.driver FOLDER``.

It starts the trials, reads their runs as the page does, tells the sampler, ends those that are not worth going on with,
and writes each of these things down before or after it happens so that another process of the kind can take over: a
trial is written down before its run is made, and its end after the training has ended. The trainings have supervisors
of their own and survive it.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from monitor.diagnosis.live import LiveDiagnosis
from monitor.diagnosis.rule import Finding, Severity
from monitor.errors import ConfigError, GradiometerError, RunError
from monitor.runfile.format import META_FILE, atomic_write_json, dump_json, exclusive_write_json
from monitor.runfile.identity import process_identity
from monitor.runfile.reader import open_run
from monitor.runfile.store import run_state
from monitor.signals import Signal
from trainer import launch
from trainer.config import with_values
from trainer.launch.claim import read_record
from trainer.sweep.plan import Plan, read_plan
from trainer.sweep.record import (
    COMPLETE,
    DEAD,
    DRIVER_FILE,
    FAILED,
    LOCK_FILE,
    PLAN_FILE,
    PRUNED,
    STOP_FILE,
    STOPPED,
    TRIALS_FILE,
    Trial,
    open_sweep,
    read_trials,
)
from trainer.sweep.samplers import Sampler, make_sampler

POLL_S = 1.0
REPORTS = 50
"""Times at most that a trial tells the sampler its metric on the way (our judgement)."""
DIVERGED = ("non-finite", "gradient-explosion", "loss-spike", "slow-divergence")
"""Rules whose critical findings are of a training that has diverged."""
PATIENCE_STEPS = 20
"""A critical finding must last so long before its trial is ended: a spike may recover. Our judgement."""


class Follower:
    """One trial whose training goes on, or has just ended."""

    def __init__(self, trial: Trial, run_dir: Path, plan: Plan) -> None:
        self.trial = trial
        self.run_dir = run_dir
        self._plan = plan
        self._live = LiveDiagnosis(open_run(run_dir))
        self.ending: tuple[str, str] | None = None
        """State and reason, once it is to end."""
        self.asked = False
        """Whether it has been told."""

    def look(self) -> None:
        """Read on, and ask the rules when it is time."""
        if self._plan.stop_diverged:
            self._live.poll()
        else:
            self._live.run.refresh()

    @property
    def metric(self) -> Signal:
        return self._live.run.series(self._plan.metric)

    @property
    def value(self) -> float | None:
        """The median of the metric's last twentieth; None when it was never recorded, NaN when half of it is."""
        return final_value(self.metric, self._live.run.last_step or 0)

    def news(self) -> Iterator[tuple[int, float]]:
        """What is new to report: ``(step, metric)``."""
        told = self.trial.reports[-1][0] if self.trial.reports else 0
        for step, value in reports(self.metric, self._plan.base.steps):
            if step > told:
                yield step, value

    def diverged(self) -> Finding | None:
        """The finding that says so; None as long as there is none that lasts."""
        report, step = self._live.report, self._live.step
        return next((finding for finding in report.findings if has_diverged(finding, step)), None) if report else None


def final_value(metric: Signal, last_step: int) -> float | None:
    """The median of a metric's values in the last twentieth of the steps, or its last value; None without any."""
    if not len(metric):
        return None
    end = metric.between(math.ceil(0.95 * last_step), None)
    values = end.value if len(end) else metric.value[-1:]
    return float(np.median(values))


def reports(metric: Signal, planned: int) -> list[tuple[int, float]]:
    """The metric at up to ``REPORTS`` steps, each the median since the one before; only intervals that are over."""
    width = max(1, math.ceil(planned / REPORTS))
    if not len(metric):
        return []
    last = int(metric.step[-1])
    found = []
    for number in np.unique(-(-metric.step // width)):
        end = int(number) * width
        inside = metric.between(end - width + 1, end)
        if last >= end or int(inside.step[-1]) == planned:
            found.append((int(inside.step[-1]), float(np.median(inside.value))))
    return found


def has_diverged(finding: Finding, step: int) -> bool:
    """Whether a finding at ``step`` is of a divergence that has lasted."""
    return (
        finding.id in DIVERGED
        and finding.severity is Severity.CRITICAL
        and step - finding.first_step >= PATIENCE_STEPS
        and finding.last_step >= step - PATIENCE_STEPS
    )


class Driver:
    """Carries out one plan."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.runs_dir = folder.parent.parent
        self._leave = False
        self._following: dict[int, Follower] = {}
        self._next = 0
        self._sampler: Sampler = make_sampler(
            plan.sampler,
            plan.pruner,
            plan.space,
            minimise=plan.goal == "minimise",
            planned_steps=plan.base.steps,
            seed=plan.seed,
        )

    def listen(self) -> None:
        """SIGTERM and SIGINT end this process and leave the trainings alone: another one can take over."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._leave = True

    def run(self) -> None:
        """Until everything is done, somebody asks to stop, or this process is asked to leave."""
        self._take_over()
        while not self._leave:
            self._sign()
            for follower in list(self._following.values()):
                try:
                    self._follow(follower)
                except GradiometerError as error:  # its run directory is gone, or no longer one
                    self._ended(follower.trial, FAILED, None, str(error))
            asked = (self.folder / STOP_FILE).exists()
            if asked:
                for follower in self._following.values():
                    self._end(follower, STOPPED, "the sweep was stopped")
            else:
                self._start_more()
            if not self._following and (asked or self._next >= self.plan.trials):
                break
            time.sleep(POLL_S)

    # What came before

    def _take_over(self) -> None:
        trials, problem = read_trials(self.folder)
        if problem:
            say(problem)
        for trial in trials:
            self._sampler.adopt(trial)
            if not trial.ended:
                self._begin(trial)
        self._next = trials[-1].number + 1 if trials else 0

    # Trials

    def _start_more(self) -> None:
        while len(self._following) < self.plan.parallel and self._next < self.plan.trials:
            number, self._next = self._next, self._next + 1
            trial = Trial(number, f"{self.folder.name}-{number:04d}", self._sampler.ask(number), began=time.time())
            self._write(
                {"kind": "begin", "trial": number, "run": trial.run_id, "params": trial.params, "time": trial.began}
            )
            self._begin(trial)

    def _begin(self, trial: Trial) -> None:
        """Start the trial's run unless it is there already, and follow it."""
        run_dir = self.runs_dir / trial.run_id
        try:
            if not (run_dir / "run.json").exists():
                config = with_values(self.plan.base, dict(trial.params))
                launch.start(config, self.runs_dir, name=f"{self.plan.name} {trial.number}", run_id=trial.run_id)
            with suppress(FileExistsError):
                exclusive_write_json(run_dir / META_FILE, {"tags": [f"sweep:{self.folder.name}"]})
            self._following[trial.number] = Follower(trial, run_dir, self.plan)
        except (GradiometerError, OSError) as error:
            self._ended(trial, FAILED, None, f"not started: {error}")

    def _follow(self, follower: Follower) -> None:
        """Read on; tell the sampler; end the trial, or write down that it has ended."""
        ended = not launch.is_running(follower.run_dir)  # before reading, so that all its rows are there
        follower.look()
        for step, measured in follower.news():
            self._write({"kind": "report", "trial": follower.trial.number, "step": step, "value": measured})
            follower.trial = replace(follower.trial, reports=(*follower.trial.reports, (step, measured)))
            if self._sampler.report(follower.trial.number, step, measured) and not ended:
                self._end(follower, PRUNED, f"{self.plan.metric} at step {step} was worse than that of others by then")
        if ended:
            state, reason = follower.ending or _how_it_ended(follower.run_dir)
            value = follower.value
            if state == COMPLETE and (value is None or not math.isfinite(value)):
                state = FAILED if value is None else DEAD
                reason = f"{self.plan.metric} " + ("was never recorded" if value is None else f"ended as {value:g}")
            self._ended(follower.trial, state, value, reason)
            return
        if self.plan.stop_diverged and (finding := follower.diverged()):
            self._end(follower, DEAD, f"{finding.id} from step {finding.onset_step}: {finding.summary}")
        elif follower.ending:
            self._end(follower, *follower.ending)

    def _end(self, follower: Follower, state: str, reason: str) -> None:
        """Ask a training to stop; it is written down when it has."""
        if follower.asked:
            return
        follower.ending = follower.ending or (state, reason)
        try:
            # Not at once while it is being launched: then it is asked again at the next look.
            follower.asked = launch.stop(follower.run_dir).signalled
        except GradiometerError as error:
            say(f"trial {follower.trial.number}: {error}")

    def _ended(self, trial: Trial, state: str, value: float | None, reason: str) -> None:
        done = replace(trial, state=state, value=value, reason=reason, finished=time.time())
        self._write(
            {
                "kind": "end",
                "trial": trial.number,
                "state": state,
                "value": value,
                "reason": reason[:600],
                "time": done.finished,
            }
        )
        self._sampler.tell(done)
        self._following.pop(trial.number, None)

    # Records

    def _write(self, line: dict[str, Any]) -> None:
        """Append one line whole; what a kill left torn before it is closed first."""
        path = self.folder / TRIALS_FILE
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        handle = os.open(path, flags, 0o644)
        try:
            end = os.lseek(handle, 0, os.SEEK_END)
            torn = end > 0 and os.pread(handle, 1, end - 1) != b"\n"
            os.write(handle, (b"\n" if torn else b"") + dump_json(line).encode() + b"\n")
        finally:
            os.close(handle)

    def _sign(self) -> None:
        """Say who looks after the sweep, unless that is said already: whoever started us notes our pid too."""
        record = process_identity()
        if read_record(self.folder / DRIVER_FILE) != record:
            atomic_write_json(self.folder / DRIVER_FILE, record)


def _how_it_ended(run_dir: Path) -> tuple[str, str]:
    state = run_state(run_dir)
    outcome = {"finished": COMPLETE, "stopped": STOPPED}.get(state.word, FAILED)
    return outcome, state.reason


def say(words: str) -> None:
    """A line for the log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.sweep.driver", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", help="the task of the plan when it is one of your own")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    try:
        sweep = open_sweep(folder.parent.parent, folder.name)
        plan = read_plan(sweep.record, str(folder / PLAN_FILE))
        if plan.base.task.is_own and options.task != plan.base.task.kind:
            raise ConfigError(f"the plan trains {plan.base.task.kind}, and --task does not name it")
        with only_one(folder):
            driver = Driver(folder, plan)
            driver.listen()
            driver.run()
    except GradiometerError as error:
        say(str(error))
        return 1
    return 0


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the sweep; the kernel lets go of it when the process dies, however it dies.

    Raises:
        RunError: another process of this host looks after it.
    """
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunError(f"sweep {folder.name} is looked after by another process already.") from None
    finally:
        os.close(handle)


if __name__ == "__main__":
    raise SystemExit(main())
