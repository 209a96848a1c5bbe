"""One attempt as far as it has been read: its small files, and what its ranks wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.compacted import compact_file, covered_segments, load_compact
from monitor.runfile.control import CHANGES_FILE, changes_in
from monitor.runfile.landscapes import samples_of
from monitor.runfile.records import Attempt, Event, LandscapeSample
from monitor.runfile.rows import Rows
from monitor.runfile.segments import Tail, poll_lines, poll_rows, poll_tables, tails
from monitor.runfile.store import AttemptRecords, numbered
from monitor.runfile.tables import Growing, LayerTable, ScalarTable

MAX_RANKS = 65_536
MAX_EVENTS = 1_000_000
"""Of one rank of one attempt: events are objects in memory, ten times as large as their lines."""
MAX_SAMPLES = 100_000
"""Landscape samples of one rank of one attempt."""

Complain = Callable[[str], None]
"""Called with one message per thing that is refused."""


class JsonFile:
    """A small file that is read again only when it has changed."""

    def __init__(self, path: Path):
        self.path = path
        self.value: dict[str, Any] | None = None
        """The last content that could be used."""
        self.problem: str | None = None
        """Why the present content cannot be used."""
        self._stamp: tuple[int, int, int] | None = None

    def refresh(self) -> bool:
        """Read the file if it is not what it was; True when the value changed."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            value = fmt.load_json(self.path)
        except RunError as error:
            self.problem = str(error)
            return False
        self.problem = None
        changed, self.value = value != self.value, value
        return changed


class RankData:
    """What has been read of one rank of one attempt."""

    def __init__(self, run_dir: Path, attempt: int, rank: int, complain: Complain):
        self.attempt, self.rank = attempt, rank
        folder = fmt.rank_dir(run_dir, attempt, rank)
        self.heartbeat = JsonFile(folder / fmt.HEARTBEAT_FILE)
        self.scalars = ScalarTable()
        self.system = ScalarTable(has_step=False)
        self.layers = LayerTable()
        self.modules = LayerTable()
        self.dense = LayerTable()
        self.dense_modules = LayerTable()
        self.landscape: list[LandscapeSample] = []
        self.events: list[Event] = []
        self.late: dict[str, tuple[Growing, Growing]] = {}
        """Values that came as events: name -> (steps, values) in the order written."""
        self._tails = tails(folder)
        tables: dict[str, ScalarTable | LayerTable] = {
            "scalars": self.scalars, "layers": self.layers, "modules": self.modules, "system": self.system,
            "dense": self.dense, "dense_modules": self.dense_modules,
        }  # fmt: skip
        for stream, table in tables.items():
            self._load_compact(run_dir, stream, table, complain)

    @property
    def closed(self) -> bool:
        """The writer has said that it is done: its last heartbeat is ``closing``."""
        return (self.heartbeat.value or {}).get("state") == "closing"

    def _load_compact(self, run_dir: Path, stream: str, table: ScalarTable | LayerTable, complain: Complain) -> None:
        """Begin with the compact file, if there is one, and go on behind the segments that are in it."""
        segments = covered_segments(run_dir, stream, self.attempt, self.rank)
        if segments:
            self._tails[stream].index = segments
            path = compact_file(run_dir, stream, self.attempt, self.rank)

            def report(offset: int, what: str) -> None:
                complain(f"{path}, byte {offset}: {what}")

            for offset, what in load_compact(path, stream, table, report=report):
                report(offset, what)

    def poll(self, final: bool, complain: Complain) -> bool:
        """Read what was appended; True if there was anything.

        Args:
            final: the writer is gone; what is torn now stays torn.
        """

        def report(path: Path, offset: int, what: str) -> None:
            complain(f"{path}, byte {offset}: {what}")

        changed = False
        takers = {
            "scalars": self._scalars, "layers": self._layers, "modules": self._modules, "system": self._system,
            "dense": self._dense, "dense_modules": self._dense_modules,
        }  # fmt: skip
        for stream, take in takers.items():
            tail = self._tails[stream]
            for rows in poll_rows(tail, final, report):
                changed = True
                refused = take(rows, tail)
                if refused:
                    report(
                        tail.path,
                        tail.offset,
                        f"{refused} rows before here repeat or fall back in step, or are beyond 2**53; left out",
                    )
        for table in poll_tables(self._tails["landscape"], final, report):
            changed = True
            room = MAX_SAMPLES - len(self.landscape)
            if table.num_rows > room:
                tail = self._tails["landscape"]
                report(tail.path, tail.offset, f"more than {MAX_SAMPLES} landscape samples; left out")
            self.landscape.extend(samples_of(table.slice(0, room), self.attempt))
        tail = self._tails["events"]
        for offset, line in poll_lines(tail, final, report):
            changed = True
            if len(self.events) >= MAX_EVENTS:
                report(tail.path, offset, f"more than {MAX_EVENTS} events; left out")
                continue
            try:
                self._event(line)
            except RunError as error:
                report(tail.path, offset, str(error))
        return changed

    def _scalars(self, rows: Rows, tail: Tail) -> int:
        return self.scalars.append(rows, defer=rows.mapped)

    def _layers(self, rows: Rows, tail: Tail) -> int:
        return self.layers.append(rows, tail.layers, defer=rows.mapped)

    def _modules(self, rows: Rows, tail: Tail) -> int:
        return self.modules.append(rows, tail.layers, defer=rows.mapped)

    def _dense(self, rows: Rows, tail: Tail) -> int:
        return self.dense.append(rows, tail.layers)

    def _dense_modules(self, rows: Rows, tail: Tail) -> int:
        return self.dense_modules.append(rows, tail.layers)

    def _system(self, rows: Rows, tail: Tail) -> int:
        return self.system.append(rows, defer=rows.mapped)

    def _event(self, line: bytes) -> None:
        if not line.strip():
            return
        record = fmt.parse_json(fmt.check_line(line), "an event")
        moment = fmt.as_number(record.get("time")) if isinstance(record, dict) else None
        if moment is None or not isinstance(record.get("kind"), str):
            raise RunError("an event without time or kind; left out")
        step = _int_or_none(record.get("step"))
        fields = {key: value for key, value in record.items() if key not in ("step", "time", "kind")}
        values = fields.get("values")
        if isinstance(values, dict) and record["kind"] in ("log", "eval"):
            numbers = {name: fmt.as_number(value) for name, value in values.items()}
            fields["values"] = {name: number for name, number in numbers.items() if number is not None}
            self._late(step, fields["values"])
        self.events.append(Event(step, moment, record["kind"], fields, self.attempt, self.rank))

    def _late(self, step: int | None, values: dict[str, float]) -> None:
        if step is None or not 0 <= step < fmt.MAX_STEP:
            return
        new = sum(name not in self.late for name in values)
        if len(self.late) + new > fmt.MAX_COLUMNS:
            raise RunError(f"an event with {new} new names; {fmt.MAX_COLUMNS} names come as events at most; left out")
        for name, number in values.items():
            steps, late = self.late.setdefault(name, (Growing(np.int64), Growing(np.float64)))
            steps.append(np.array([step]))
            late.append(np.array([number]))


class AttemptData:
    """One attempt: its records and what its ranks wrote."""

    def __init__(self, run_dir: Path, number: int):
        self.number = number
        self.ranks: dict[int, RankData] = {}
        self.settled = False
        """The attempt has ended, a later one has followed it, and everything it wrote has been read."""
        self.beat = False
        """Whether the last :meth:`refresh` found another heartbeat."""
        self._run_dir = run_dir
        self._folder = fmt.attempt_dir(run_dir, number)
        self._record = JsonFile(self._folder / fmt.ATTEMPT_FILE)
        self._exit = JsonFile(self._folder / fmt.EXIT_FILE)
        self._supervisor = JsonFile(self._folder / fmt.SUPERVISOR_FILE)
        self._supervisor_exit = JsonFile(self._folder / fmt.SUPERVISOR_EXIT_FILE)
        self._changes = JsonFile(self._folder / CHANGES_FILE)

    def refresh(self, superseded: bool, complain: Complain) -> bool:
        """Read what was added; True if there was anything but heartbeats.

        Args:
            superseded: a later attempt has begun.
        """
        changed = self.beat = False
        # Asked before the segments are read: what was written before the end must not be missed.
        for file in self._files():
            changed |= file.refresh()
        ended = self._exit.value is not None or self._supervisor_exit.value is not None
        changed |= self._find_ranks(complain)
        for rank in self.ranks.values():
            self.beat |= rank.heartbeat.refresh()
            # An exit record may be written while the writer is still at it.
            changed |= rank.poll(ended and (rank.closed or superseded), complain)
        self.settled = ended and superseded and not changed
        return changed

    def _find_ranks(self, complain: Complain) -> bool:
        new = [n for n in numbered(self._folder, "rank-") if n not in self.ranks and n < MAX_RANKS]
        for number in new:
            self.ranks[number] = RankData(self._run_dir, self.number, number, complain)
        return bool(new)

    def _files(self) -> tuple[JsonFile, ...]:
        return self._record, self._exit, self._supervisor, self._supervisor_exit, self._changes

    def problems(self) -> list[str]:
        """Why small files cannot be used as they are now."""
        files = [*self._files(), *(rank.heartbeat for rank in self.ranks.values())]
        return [file.problem for file in files if file.problem is not None]

    def records(self, run_created: float | None) -> AttemptRecords:
        """The small files as last read."""
        rank = self.ranks.get(0)
        return AttemptRecords(
            attempt=self._record.value,
            heartbeat=rank.heartbeat.value if rank else None,
            exit=self._exit.value,
            supervisor=self._supervisor.value,
            supervisor_exit=self._supervisor_exit.value,
            created=run_created,
        )

    def last_step(self) -> int | None:
        """Last step recorded in the scalars of any rank."""
        steps = [rank.scalars.step.view()[-1] for rank in self.ranks.values() if len(rank.scalars.step)]
        return int(max(steps)) if steps else None

    def has_steps(self) -> bool:
        """Whether any row of any stream that has steps was recorded."""
        return any(len(rank.scalars.step) or rank.layers.blocks or rank.landscape for rank in self.ranks.values())

    def planned_steps(self) -> int | None:
        """As the heartbeat says, else as the attempt began."""
        records = self.records(None)
        for record in (records.heartbeat, records.attempt):
            planned = _int_or_none((record or {}).get("planned_steps"))
            if planned is not None:
                return planned
        return None

    def describe(self) -> Attempt:
        """What is told of the attempt outside."""
        record = self._record.value or {}
        parent, resume = _int_or_none(record.get("parent")), _int_or_none(record.get("resume_step"))
        return Attempt(
            number=self.number,
            parent=parent if parent is not None and 0 <= parent < self.number else None,
            resume_step=max(0, resume or 0),
            last_step=self.last_step(),
            planned_steps=_int_or_none(record.get("planned_steps")),
            world_size=_int_or_none(record.get("world_size")) or 1,
            overrides=_dict_or_empty(record.get("overrides")),
            exit=self._exit.value,
            created=fmt.as_number(record.get("created")),
            host=record.get("host") if isinstance(record.get("host"), str) else None,
            environment=_dict_or_empty(record.get("environment")),
            git=record.get("git") if isinstance(record.get("git"), dict) else None,
            changes=tuple((step, values) for step, values, _ in changes_in(self._changes.value)),
        )


def _int_or_none(value: Any) -> int | None:
    plain = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62
    return value if plain else None


def _dict_or_empty(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
