"""From a source's rows to run directories, read on when the source has grown."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.importers.find import ACCEPTED, find_sources
from monitor.importers.lanes import Lane, Lanes
from monitor.importers.names import Naming, step_name
from monitor.importers.rows import Account, Row, Source, step_of
from monitor.runfile import format as fmt
from monitor.runfile.store import attempt_numbers, optional_json
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit

FIRST_ROWS, FIRST_VALUES = 2000, 200_000
"""What names and steps are decided by; our judgement."""
WAITING_VALUES = 200_000
"""Values that wait for others of their step, in case the source wrote one curve after another; bounds the memory."""
ROWS_AT_ONCE = 4096
"""Rows handed to the writer before it is waited for: well below what it may queue."""
FLUSH_SECONDS = 600.0
NAMES_TOLD = 1000
"""Names in the event that tells of the import: an event has room for a MiB."""
MOST_SAME_NAME = 1000
MEASURED = frozenset(("train_loss", "val_loss", "grad_norm_preclip"))
MANY_VALUES = 5
"""Of one row, from which on a single one is no accident."""


@dataclass(slots=True)
class Taken:
    """What became of one source."""

    source: Source
    runs: list[Path] = field(default_factory=list)
    """The run directories, those that were there before included."""
    rows: int = 0
    """Rows that were written; 0 when there was nothing new."""
    names: list[str] = field(default_factory=list)
    """``foreign -> ours``."""
    own: list[str] = field(default_factory=list)
    """Names that were kept."""
    interval: int | None = None
    """Steps between two rows, as a rule."""
    messages: list[str] = field(default_factory=list)
    """What was guessed, or could not be read."""


def import_path(path: str | os.PathLike[str], runs_dir: str | os.PathLike[str]) -> list[Taken]:
    """Import every training log in a file or folder. What was imported before is read on, not repeated.

    Raises:
        RunError: nothing there is a log with metrics, or ``runs_dir`` cannot be written.
    """
    sources = find_sources(path)
    taken = [_take(source, Path(runs_dir)) for source in sources]
    found = [one for one in taken if one.runs]
    if not found:
        said = "; ".join(message for one in taken for message in one.messages[:1])
        raise RunError(f"{path}: no training metrics found. {said + ' ' if said else ''}Accepted: {ACCEPTED}.")
    return found


def _take(source: Source, runs_dir: Path) -> Taken:
    account, taken = Account(), Taken(source)
    rows = source.read(account)
    first = _first(rows)
    if _is_by_chance(source, first):
        first = []
    steps = _Steps(first, account)
    naming = Naming(Counter(name for row in first for name in row.values if name != steps.name))
    if _is_settings(first, steps, naming):
        account = Account()
        account.say("settings", "One row of numbers without a step or a loss: settings, not the course of a training.")
        first = []
    output = _Output(source, runs_dir, naming, account)
    lanes = Lanes(output.write, account, resumes=source.resumes)
    for row in itertools.chain(first, rows if first else ()):
        if steps.settle(row):
            lanes.add(row)
    lanes.end()
    output.end()
    taken.runs, taken.rows, taken.interval = output.paths, output.rows, output.interval
    taken.names, taken.own, taken.messages = naming.lines(), naming.own(), account.messages
    return taken


def _first(rows: Iterator[Row]) -> list[Row]:
    found: list[Row] = []
    values = 0
    for row in rows:
        found.append(row)
        values += len(row.values)
        if len(found) >= FIRST_ROWS or values >= FIRST_VALUES:
            break
    return found


def _is_by_chance(source: Source, first: list[Row]) -> bool:
    """Whether lines of a text only look like metrics: nothing comes twice, and there is neither a training loss nor a
    row that counts its step among many values, such as a box of reinforcement learning."""
    if source.format != "text log" or any(row.step is not None and len(row.values) >= MANY_VALUES for row in first):
        return False
    names = Counter(name for row in first for name in row.values)
    return max(names.values(), default=0) < 2 and "train_loss" not in {m.name for m in Naming(names).meanings.values()}


def _is_settings(first: list[Row], steps: _Steps, naming: Naming) -> bool:
    """Whether all there is is one row that neither counts nor measures."""
    measured = {meaning.name for meaning in naming.meanings.values()} & MEASURED
    return len(first) == 1 and first[0].step is None and steps.name is None and not measured


def _moves(name: str, first: list[Row]) -> bool:
    """Whether a column is not the same number in each row, as the planned steps are."""
    return len({row.values[name] for row in first if name in row.values}) > 1


def _are_batches(first: list[Row]) -> bool:
    """Whether the step of each row is its epoch, of which another row tells something else, epoch for epoch."""
    if not all(row.step is not None and row.step == row.values.get("epoch") for row in first):
        return False
    pairs = [(a.values, b.values) for a, b in itertools.pairwise(first) if a.step == b.step]
    other = sum(any(a[name] != b[name] for name in a.keys() & b.keys()) for a, b in pairs)
    return other >= max(2, len({row.step for row in first}))


class _Steps:
    """Sees to it that every row has a step: its own, the value of a column, or its number."""

    def __init__(self, first: list[Row], account: Account) -> None:
        self._account = account
        self.name: str | None = None
        """The column that counts."""
        self._count = 0
        self._epochs = False
        """Each row has an epoch for its step."""
        self._batches = _are_batches(first)
        """The source counts nothing but epochs, of which each row is a part."""
        if self._batches:
            account.say("batches", "several rows of each epoch and no count of them; the rows are counted, from 1.")
        self._given = not self._batches and any(row.step is not None for row in first)
        self._epoch, self._raw, self._offset, self._top = -1.0, -1, 0, 0
        self._told: set[str] = set()
        """What was told of the present step."""
        if first and all(row.step is None for row in first):
            names = list(dict.fromkeys(name for row in first for name in row.values))
            self.name = step_name(name for name in names if _moves(name, first)) or step_name(names)
            if self.name is not None and not self._counts(first):
                self.name = None
            if self.name is None:
                account.say("counted", "the source has no steps; its rows are counted, from 1.")
            elif "epoch" in self.name.lower():
                self._epochs = True
                account.say("epochs", "the source has no steps; a step here is an epoch.")

    def _counts(self, first: list[Row]) -> bool:
        assert self.name is not None
        rows = [row.values for row in first if self.name in row.values]
        if not rows or any(step_of(values[self.name]) is None for values in rows):
            return False
        if "epoch" not in self.name.lower():
            return True
        # Several rows of one epoch that tell of the same are batches of it; the epoch does not tell them apart.
        return not any(
            before[self.name] == values[self.name] and len(before.keys() & values.keys()) > 1
            for before, values in itertools.pairwise(rows)
        )

    def settle(self, row: Row) -> bool:
        """Give the row its step; False when it has none that a run can hold, or nothing else."""
        if self._batches:
            row.step = None
        if self.name is not None and row.step is None:
            row.step = step_of(row.values.pop(self.name, None))
        elif row.step is None and self._given:
            row.step = 0  # an evaluation before the first step
        elif row.step is None:
            epoch = row.values.get("epoch", self._epoch)
            self._count = 1 if epoch < self._epoch else self._count + 1
            row.step = self._count
        if row.step is None or not 0 <= row.step < fmt.MAX_STEP or not row.values:
            if row.values:
                self._account.say("no step", "rows without a step, or with one below 0 or above 2**53, are left out.")
            return False
        self._within_epoch(row)
        if self._epochs:
            row.values.setdefault("epoch", float(row.step))
        return True

    def _within_epoch(self, row: Row) -> None:
        """A counter that starts again with each epoch goes on instead."""
        assert row.step is not None
        epoch = row.values.get("epoch", self._epoch)
        raw, names = row.step, row.values.keys() - {"epoch"}
        again = raw < self._raw or (raw == self._raw and names <= self._told)
        if again and epoch > self._epoch >= 0 and epoch == int(epoch):
            self._offset = self._top
            self._account.say("restarts", "the step counter starts again with each epoch; epochs are put end to end.")
        elif raw < self._raw:
            self._offset = 0
        row.step = raw + self._offset
        self._told = {*names} if (raw, epoch) != (self._raw, self._epoch) else self._told | names
        self._epoch, self._raw, self._top = epoch, raw, row.step


class _Output:
    """The run directories of one source."""

    def __init__(self, source: Source, runs_dir: Path, naming: Naming, account: Account) -> None:
        self._source, self._runs_dir, self._naming, self._account = source, runs_dir, naming, account
        self._attempts: dict[tuple[int, int], _Attempt] = {}
        self._folders: dict[int, Path] = {}
        self._gaps: Counter[int] = Counter()
        self.rows = 0

    def write(self, lane: Lane, row: Row) -> None:
        key = (lane.run, lane.attempt)
        attempt = self._attempts.get(key)
        if attempt is None:
            run_dir = self._folder(lane.run, row.time)
            attempt = self._attempts[key] = _Attempt(run_dir, lane, self._record())
        if lane.interval:
            self._gaps[lane.interval] += 1
        values: dict[str, float] = {}
        for name, value in row.values.items():
            meaning = self._naming.of(name)
            values[meaning.name] = value * meaning.factor
        assert row.step is not None
        attempt.add(row.step, row.time, values)

    def end(self) -> None:
        """Write what waits, what the source is, and how it ended."""
        for key, attempt in self._attempts.items():
            account = self._account
            if key != max(self._attempts):  # how the source ends says nothing of what it told before
                resumed = any(run == key[0] and number > key[1] for run, number in self._attempts)
                account = Account(reason="It was resumed." if resumed else "Another training follows in the source.")
            attempt.end(self._facts(), account)
            self.rows += attempt.rows

    @property
    def paths(self) -> list[Path]:
        return list(self._folders.values())

    @property
    def interval(self) -> int | None:
        """The usual distance of two rows."""
        return self._gaps.most_common(1)[0][0] if self._gaps else None

    def _facts(self) -> dict[str, Any]:
        meanings = self._naming.meanings
        return {
            "source": str(self._source.path.absolute()),
            "format": self._source.format,
            "names": {name: meaning.name for name, meaning in itertools.islice(meanings.items(), NAMES_TOLD)},
            "factors": {n: meaning.factor for n, meaning in meanings.items() if meaning.factor != 1},
            "origins": self._account.origins,
            "interval": self.interval,
            "messages": self._account.messages,
        }

    def _record(self) -> dict[str, Any]:
        size, digest = self._source.fingerprint(None)
        return {
            "source": str(self._source.path.resolve()),
            "inner": self._source.inner,
            "format": self._source.format,
            "begins": {"bytes": size, "sha256": digest},
        }

    def _folder(self, run: int, time: float | None) -> Path:
        """The run directory: the one that this source was imported to before, or a new one."""
        if run in self._folders:
            return self._folders[run]
        record = {**self._record(), "run": run}
        name = self._source.name + (f"-{run + 1}" if run else "")
        key = hashlib.sha256("\0".join((record["source"], record["inner"], str(run))).encode()).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-80:].lstrip("-.") or "run"
        for number in range(1, MOST_SAME_NAME):
            run_id = f"imported-{words}-{key}" + (f"-{number}" if number > 1 else "")
            run_dir = self._runs_dir / run_id
            known = optional_json(run_dir / fmt.RUN_FILE)
            if known is None:
                created = time if time is not None and 0 < time < 2**40 else self._modified()
                create_run(
                    self._runs_dir,
                    name=self._account.name or name,
                    run_id=run_id,
                    task=f"imported: {self._source.format}",
                    config=self._account.config,
                    code={"import": record},
                    now=partial(float, created),
                )
                break
            if self._is_same(known):
                break
        else:
            raise RunError(f"{self._runs_dir}: {MOST_SAME_NAME} runs of {self._source.path}. Throw old ones away.")
        self._folders[run] = run_dir
        return run_dir

    def _is_same(self, known: Mapping[str, Any]) -> bool:
        """Whether the run was imported from what this source began with then."""
        code = known.get("code")
        record = code.get("import") if isinstance(code, dict) else None
        begins = record.get("begins") if isinstance(record, dict) else None
        if not isinstance(begins, dict) or not isinstance(begins.get("bytes"), int):
            return False
        return self._source.fingerprint(begins["bytes"]) == (begins["bytes"], begins.get("sha256"))

    def _modified(self) -> float:
        return self._source.path.stat().st_mtime


class _Attempt:
    """One attempt: rows are put together by step, and written in the order of steps."""

    def __init__(self, run_dir: Path, lane: Lane, record: Mapping[str, Any]) -> None:
        self._run_dir, self._lane, self._record = run_dir, lane, record
        self._waiting: dict[int, tuple[float, dict[str, float]]] = {}
        self._values = 0
        self._written = -1
        self._writer: RankWriter | None = None
        self._late = 0
        self._before, self._known = _imported(run_dir, lane.attempt)
        """Number of the attempt that this lane was read to before, and its last step; -1: never."""
        self._time = fmt.as_number((optional_json(run_dir / fmt.RUN_FILE) or {}).get("created")) or 0.0
        """Of the last row; without times, when the file was last written."""
        self.rows = 0

    def add(self, step: int, time: float | None, values: dict[str, float]) -> None:
        if step < self._known:
            return
        if step <= self._written:
            self._begin(step).event("log", step, values=values)
            self._late += 1
            return
        self._time = time if time is not None else self._time
        row = self._waiting.setdefault(step, (self._time, {}))
        for name, value in values.items():
            row[1].setdefault(name, value)
        self._values += len(values)
        if self._values > WAITING_VALUES:
            self._write(len(self._waiting) // 2)

    def end(self, facts: Mapping[str, Any], account: Account) -> None:
        if max(self._waiting, default=-1) <= self._known and self._writer is None:
            return  # nothing new
        self._write(len(self._waiting))
        assert self._writer is not None
        self._writer.event("import", self._written, **facts)
        warnings = list(facts["messages"])
        if self._late:
            warnings.append(f"{self._late:,} rows came long after their step; they are kept as events.")
        self._writer.heartbeat(warnings=warnings, planned_steps=account.planned_steps)
        self._flush()
        self._writer.close()
        outcome = account.outcome or "stopped"
        reason = account.reason or "Imported; the source does not say how the training ended."
        write_exit(
            self._run_dir, self._number, outcome=outcome, step=self._written, reason=reason, now=lambda: self._time
        )

    def _write(self, count: int) -> None:
        for number, step in enumerate(sorted(self._waiting)[:count], start=1):
            time, values = self._waiting.pop(step)
            self._begin(step).scalars(step, time, values)
            self._values -= len(values)
            self._written = step
            self.rows += 1
            if number % ROWS_AT_ONCE == 0:
                self._flush()
        self._values = max(0, self._values)
        self._flush()

    def _begin(self, step: int) -> RankWriter:
        """The writer; the attempt begins with its first row."""
        if self._writer is None:
            parent, resume = self._before, step - 1
            if parent < 0 and self._lane.resume_step is not None:
                parent, _ = _imported(self._run_dir, self._lane.attempt - 1)
                resume = self._lane.resume_step
            self._number = begin_attempt(
                self._run_dir,
                parent=parent if parent >= 0 else None,
                resume_step=max(0, resume) if parent >= 0 else 0,
                environment={"import": {**self._record, "attempt": self._lane.attempt}},
                now=lambda: self._time,
            )
            self._writer = RankWriter(self._run_dir, self._number, rows_per_batch=1024)
        return self._writer

    def _flush(self) -> None:
        if self._writer is not None and not self._writer.flush(FLUSH_SECONDS):
            problem = self._writer.error or "is the disk full?"
            raise RunError(f"{self._run_dir} cannot be written: {problem}")


def _imported(run_dir: Path, lane: int) -> tuple[int, int]:
    """The last attempt that lane number ``lane`` was imported to, and its last step; (-1, -1) when it never was."""
    found = (-1, -1)
    for number in attempt_numbers(run_dir):
        folder = fmt.attempt_dir(run_dir, number)
        environment = (optional_json(folder / fmt.ATTEMPT_FILE) or {}).get("environment")
        record = environment.get("import") if isinstance(environment, dict) else None
        if isinstance(record, dict) and record.get("attempt") == lane:
            step = (optional_json(folder / fmt.EXIT_FILE) or {}).get("step")
            found = (number, step if isinstance(step, int) else -1)
    return found
