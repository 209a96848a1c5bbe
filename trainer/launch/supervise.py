"""The process between a launcher and its trainer: ``python -m trainer.launch.supervise RUN_DIR ATTEMPT -- COMMAND...``.

It outlives the page that started it, hands SIGTERM on, kills a trainer that does not react, sweeps up what a dead one
left running, and writes down how it ended when the trainer could not do so itself.

It starts in 0.1 s, needs 20 MB, and imports everything before the training begins: code that changes on disk during a
training of days (another branch, an upgrade) must not break the record of how it ended. Therefore the standard library
and psutil only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from trainer.launch.epitaph import is_torchrun_stop, reason_of, tail, traceback_head
from trainer.launch.processes import Identity, kill_tree, send
from trainer.launch.records import create_json, exit_record, last_step, replace_json

SWEEP_S = 2.0
"""How long what a trainer left running gets to end by itself, and again after SIGTERM (our judgement)."""
PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """One trainer process, or torchrun with its workers, from its start to its exit record."""

    def __init__(self, run_dir: Path, attempt: int, grace_s: float, stop_signal: signal.Signals) -> None:
        self._attempts = run_dir / "attempts"
        self._first = f"{attempt:04d}"
        self.grace_s = grace_s
        self.command: list[str] = []
        self.child: subprocess.Popen[bytes] | None = None
        self.target: Identity | None = None
        self.stop_signal = stop_signal
        self.leads_group = stop_signal == signal.SIGTERM
        """Else it is a command with helpers of its own in the group, which the signal would end (srun and SIGUSR1)."""
        self.started = time.time()
        self.asked_at: float | None = None
        self.killed = False

    @property
    def log(self) -> Path:
        return self._attempts / self._first / "rank-00000" / "log.txt"

    @property
    def folder(self) -> Path:
        """Of the attempt that runs now: when torchrun starts its workers again they begin another, and copy our record
        of ourselves into it."""
        later = sorted(path.parent for path in self._attempts.glob("[0-9]*/supervisor.json"))
        ours = [path for path in later if path.name > self._first and self._is_ours(path)]
        return ours[-1] if ours else self._attempts / self._first

    def _is_ours(self, folder: Path) -> bool:
        try:
            record = json.loads((folder / "supervisor.json").read_bytes()[: 1 << 16])
        except (OSError, ValueError):
            return False
        return isinstance(record, dict) and Identity.read(record) == Identity.own()

    # Signals

    def listen(self) -> None:
        """Take over the signals and let those in that waited (the launcher held them back for us)."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGALRM, self._on_grace_over)
        for number in (signal.SIGINT, signal.SIGHUP):
            # A function instead of SIG_IGN: ignored signals stay ignored in the trainer, handled ones do not.
            signal.signal(number, _ignore)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM})

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked_at is not None:  # a second request neither signals twice nor prolongs the grace time
            return
        self.asked_at = time.time()
        if self.target is not None:
            self._forward_stop()

    def _forward_stop(self) -> None:
        assert self.target is not None
        signal.setitimer(signal.ITIMER_REAL, max(self.grace_s, 0.001))
        send(self.target, self.stop_signal, group=self.leads_group)
        self._record_processes()

    def _on_grace_over(self, _number: int, _frame: FrameType | None) -> None:
        if self.target is not None:
            self.killed = True
            kill_tree(self.target)

    # The trainer's life

    def run(self, command: list[str]) -> int:
        """Start ``command``, wait for its end, record it; the child's return code, 1 when it could not be started."""
        self.command = command
        _adopt_orphans()
        if self.asked_at is not None:
            self._record_exit("stopped", "stopped before the first step", returncode=None)
            return 0
        try:
            self.child = self._spawn(command)
        except OSError as error:
            self._record_exit("crashed", f"the trainer could not be started: {error}", returncode=None)
            return 1
        self.target = Identity.of(self.child.pid)
        self._record_processes()
        if self.asked_at is not None:  # it came while the child was being made, when there was nobody to hand it to
            self._forward_stop()
        returncode = self._wait()
        self._record_end(returncode)  # before the sweep: a rank that is swept up would call itself stopped
        sweep()
        return returncode if returncode >= 0 else 1

    def adopt(self, target: Identity, *, leads_group: bool) -> int:
        """End a trainer whose supervisor is gone: SIGTERM, SIGKILL after the grace time, exit record."""
        self.target, self.leads_group = target, leads_group
        self.started = target.create_time
        self.command = ["(adopted)"]
        self._on_stop(signal.SIGTERM, None)
        while target.alive:  # not our child, so nothing wakes us
            time.sleep(0.1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._record_end(None)
        return 0

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)

    def _wait(self) -> int:
        assert self.child is not None
        # Seen first, collected afterwards: until it is collected its pid cannot go to a stranger, so a SIGTERM that
        # arrives in between is sent to nobody else.
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.target = None
        return self.child.wait()

    # Records

    def _record_processes(self) -> None:
        assert self.target is not None
        own = Identity.own()
        record = {
            "pid": own.pid,
            "pid_create_time": own.create_time,
            "child_pid": self.target.pid,
            "child_create_time": self.target.create_time,
            "command": self.command,
            "started": self.started,
        }
        with _said_when_refused():
            replace_json(
                self.folder / "supervisor.json", record | ({"stop_asked": self.asked_at} if self.asked_at else {})
            )

    def _record_end(self, returncode: int | None) -> None:
        lines = tail(self.log)
        traceback = traceback_head(lines, fatal=returncode is not None and returncode < 0)
        failed = returncode is not None and returncode > 0 and bool(traceback) and not is_torchrun_stop(traceback)
        if self.asked_at is None:
            assert returncode is not None
            self._record_exit(
                "crashed", reason_of(returncode, traceback, lines), returncode=returncode, traceback=traceback
            )
        elif self.killed:
            reason = f"killed {self.grace_s:g} s after it was asked to stop; steps since the last checkpoint are lost"
            self._record_exit("stopped", reason, returncode=returncode)
        elif failed:
            reason = f"asked to stop, then failed: {traceback[-1]}"
            self._record_exit("crashed", reason, returncode=returncode, traceback=traceback)
        elif not last_step(self.folder):
            self._record_exit("stopped", "stopped before the first step", returncode=returncode)
        else:
            reason = "stopped without a last checkpoint; steps since the one before are lost"
            self._record_exit("stopped", reason, returncode=returncode)

    def _record_exit(
        self, outcome: str, reason: str, *, returncode: int | None, traceback: list[str] | None = None
    ) -> None:
        """The trainer's own word comes first: ``exit.json`` is written only when it left none."""
        number = -returncode if returncode is not None and returncode < 0 else None
        now = time.time()
        said = True
        with _said_when_refused():
            record = exit_record(
                outcome,
                reason,
                time=now,
                step=last_step(self.folder),
                signal=int(signal.SIGKILL) if self.killed and number is None else number,
                returncode=returncode,
                traceback=traceback or (),
            )
            said = not create_json(self.folder / "exit.json", record)
        with _said_when_refused():
            record = {
                "returncode": returncode,
                "signal": number,
                "asked": self.asked_at is not None,
                "killed": self.killed,
                "trainer_said": said,
                "time": now,
            }
            replace_json(self.folder / "supervisor_exit.json", record)


@contextmanager
def _said_when_refused() -> Iterator[None]:
    """A full disk or a run directory that is gone must not end the supervisor: it still has a trainer to stop."""
    try:
        yield
    except OSError as error:
        print(f"supervisor: cannot record: {error}", file=sys.stderr, flush=True)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    return None


def _adopt_orphans() -> None:
    """On Linux, become the parent of whatever the trainer leaves behind, so that ``sweep`` finds it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def sweep() -> None:
    """End and collect every descendant that is left: data workers, ranks whose torchrun was killed."""
    for ask in (_leave, psutil.Process.terminate, psutil.Process.kill):
        left = psutil.Process().children(recursive=True)
        for process in left:
            try:
                ask(process)
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(left, timeout=SWEEP_S)
        if not alive:
            return


def _leave(_process: psutil.Process) -> None:
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.launch.supervise", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("attempt", type=int)
    parser.add_argument("--grace", type=float, default=30.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument(
        "--signal", choices=("SIGTERM", "SIGUSR1"), default="SIGTERM", help="what asks the command to save and end"
    )
    parser.add_argument(
        "--adopt", nargs=2, metavar=("PID", "CREATE_TIME"), help="stop this trainer instead of starting one"
    )
    parser.add_argument(
        "--group", action="store_true", help="with --adopt: the trainer leads a process group of its own"
    )
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = (
        words.index("--") if "--" in words else len(words)
    )  # by hand: argparse reads options in the command as its own
    options, command = parser.parse_args(words[:cut]), words[cut + 1 :]
    supervisor = Supervisor(options.run_dir.absolute(), options.attempt, options.grace, signal.Signals[options.signal])
    supervisor.listen()
    if options.adopt:
        target = Identity(int(options.adopt[0]), float(options.adopt[1]))
        return supervisor.adopt(target, leads_group=options.group)
    if not command:
        parser.error("give the trainer's command after --")
    return supervisor.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
