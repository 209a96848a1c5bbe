"""A run on disk as numbers: opened once, then followed from where the reading stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.afterwards import Afterwards
from monitor.runfile.attempt import AttemptData, JsonFile, RankData
from monitor.runfile.landscapes import LandscapeFiles
from monitor.runfile.lineage import Piece, current_line, superseded_pieces
from monitor.runfile.records import Attempt as Attempt
from monitor.runfile.records import Checkpoint as Checkpoint
from monitor.runfile.records import Event as Event
from monitor.runfile.records import LandscapeSample as LandscapeSample
from monitor.runfile.stability import DERIVED, Made, derived
from monitor.runfile.store import (
    MAX_ATTEMPTS,
    AttemptRecords,
    RunState,
    attempt_numbers,
    check_version,
    latest_records,
    state_of,
)
from monitor.runfile.tables import Joined, LayerTable, frozen
from monitor.runfile.thinned import Extents, LayerPart, Peaks, Source, is_thinned, samples
from monitor.signals import LAYER_CATALOGUE, MODULE_CATALOGUE, LayerMatrix, Signal, unit_of

if TYPE_CHECKING:
    import pandas as pd

MAX_PROBLEMS = 100
"""Further ones are counted in the last message."""

LOG_TAIL_BYTES = 1 << 20
SETTLED_EVERY = 10
"""Attempts that a later one has followed are looked at only every so many polls."""


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open the run directory ``path`` and read what is there.

    Raises:
        RunError: there is none, it is not a run directory, or its format is newer than this code.
    """
    return Run(path)


class Run:
    """A run directory, read so far as it goes; :meth:`refresh` reads on.

    Arrays are read-only. They stay as they are when the run is refreshed; ask again for the longer ones. What cannot be
    read inside the directory is left out and named in :attr:`problems`. One thread at a time.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).resolve()
        if not self.path.is_dir():
            raise RunError(
                f"{path}: no such folder. Give the folder of one run, such as runs/20261122-103000-name-1a2b; "
                "`gradiometer runs` lists them."
            )
        if not (self.path / fmt.RUN_FILE).exists():
            hint = "It holds several runs; give one of them." if any(self.path.glob(f"*/{fmt.RUN_FILE}")) else ""
            raise RunError(f"{path} is not a run directory: it has no {fmt.RUN_FILE}. {hint}".rstrip())
        self._run = fmt.load_json(self.path / fmt.RUN_FILE)
        check_version(self._run, self.path)
        self._meta = JsonFile(self.path / fmt.META_FILE)
        self._afterwards = Afterwards(self.path)
        self._landscapes = LandscapeFiles(self.path)
        self._attempts: dict[int, AttemptData] = {}
        self._described: tuple[Attempt, ...] = ()
        self._line: tuple[Piece, ...] = ()
        self._problems: list[str] = []
        self._problem_count = 0
        self._cache: dict[Any, Any] = {}
        self._derived: dict[Any, Made] = {}
        """Answers that hold until something changes."""
        self._joined: dict[Any, Joined] = {}
        """Pieces of several attempts, put together once and then only added to."""
        self._peaks: dict[Any, Peaks] = {}
        self._polls = 0
        self.version = 0
        """Grows with every change that :meth:`refresh` sees but heartbeats, which come once a second."""
        self.refresh()

    # What the run is --------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The run's id: the name of its folder."""
        return self.path.name

    @property
    def name(self) -> str:
        """What people call it: the name given later, else at creation, else the id."""
        return str(self.meta.get("name") or self._run.get("name") or self.id)

    @property
    def created(self) -> float:
        """Unix time; 0 when the record lacks it."""
        return fmt.as_number(self._run.get("created")) or 0.0

    @property
    def task(self) -> str | None:
        """What is being trained, in a word."""
        task = self._run.get("task")
        return task if isinstance(task, str) else None

    @property
    def config(self) -> dict[str, Any] | None:
        """The configuration as resolved at the start."""
        config = self._run.get("config")
        return config if isinstance(config, dict) else None

    @property
    def code(self) -> dict[str, Any] | None:
        """Where the code came from."""
        code = self._run.get("code")
        return code if isinstance(code, dict) else None

    @property
    def parent(self) -> dict[str, Any] | None:
        """``{"run", "attempt", "step"}`` of the run this one was forked from, with its ``changes`` where known."""
        parent = self._run.get("parent")
        return parent if isinstance(parent, dict) else None

    @property
    def forked_after(self) -> int | None:
        """The parent's last step that this run has behind it, 0 for none; None when it was not forked."""
        step = (self.parent or {}).get("step")
        return step if type(step) is int and 0 <= step < fmt.MAX_STEP else None

    @property
    def meta(self) -> dict[str, Any]:
        """What a person may edit later: name, tags, notes."""
        return self._meta.value or {}

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts by number."""
        return self._described

    @property
    def line(self) -> tuple[Piece, ...]:
        """Which steps of which attempts make up the run as it stands, oldest first."""
        return self._line

    @property
    def state(self) -> RunState:
        """How the run stands now, by the records of the last refresh."""
        return state_of(self._latest_records(), time.time())

    @property
    def problems(self) -> tuple[str, ...]:
        """One message per thing that was refused: file, byte offset, what is wrong."""
        now = [] if self._meta.problem is None else [self._meta.problem]
        for data in self._attempts.values():
            now.extend(data.problems())
        more = self._problem_count - len(self._problems)
        return (*self._problems, *now, *([f"{more} further problems"] if more else []))

    @property
    def names(self) -> tuple[str, ...]:
        """Scalar names, in the order in which they first appeared."""
        found: dict[str, None] = {}
        for data in self._attempts.values():
            for rank in data.ranks.values():
                found.update(dict.fromkeys(rank.scalars.names))
                found.update(dict.fromkeys(rank.late))
        return tuple(found)

    @property
    def layer_stats(self) -> tuple[str, ...]:
        """Names of the per-layer statistics."""
        return self._stats("layers")

    @property
    def module_stats(self) -> tuple[str, ...]:
        """Names of the statistics of modules' outputs."""
        return self._stats("modules")

    def _stats(self, stream: str) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for data in self._attempts.values():
            for rank in data.ranks.values():
                for block in getattr(rank, stream).blocks:
                    found.update(dict.fromkeys(fmt.base_stat(stat) for stat in block.stats))
        return tuple(found)

    @property
    def bytes_per_step(self) -> float | None:
        """What the latest attempt has put on disk per step so far, all ranks together; None before it says."""
        for data in reversed(self._attempts.values()):
            beats = [rank.heartbeat.value or {} for rank in data.ranks.values()]
            sizes = [size for beat in beats if (size := fmt.as_number(beat.get("bytes_per_step"))) is not None]
            if sizes:
                return sum(sizes)
        return None

    @property
    def last_step(self) -> int | None:
        """Last recorded step of the current line."""
        return self._attempts[self._line[-1].attempt].last_step() if self._line else None

    @property
    def planned_steps(self) -> int | None:
        """Steps that the latest attempt means to make, counted from the start of the run."""
        planned = [data.planned_steps() for data in reversed(self._attempts.values())]
        return next((steps for steps in planned if steps is not None), None)

    # Reading on -------------------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read what was appended since last time; True if anything changed. Its cost does not grow with the run."""
        self._polls += 1
        changed = self._meta.refresh()
        changed |= self._afterwards.refresh(self._problem)
        changed |= self._landscapes.refresh(self._problem)
        changed |= self._find_attempts()
        latest, beat = max(self._attempts, default=-1), False
        for number, data in self._attempts.items():
            if data.settled or (number != latest and self._polls % SETTLED_EVERY and self._polls > 1):
                continue
            changed |= data.refresh(number != latest, self._problem)
            beat |= data.beat
        if changed:
            self.version += 1
            self._cache.clear()
            self._described = tuple(data.describe() for data in self._attempts.values())
            recorded = [number for number, data in self._attempts.items() if data.has_steps()]
            self._line = current_line(self._described, recorded)
        return changed or beat

    def _find_attempts(self) -> bool:
        folder = self.path / fmt.ATTEMPTS_DIR
        if folder.is_symlink():
            self.say_problem(f"{folder}: a symbolic link, which is not followed.")
            return False
        new = [number for number in attempt_numbers(self.path) if number not in self._attempts]
        for number in new:
            self._attempts[number] = AttemptData(self.path, number)
        if len(new) >= MAX_ATTEMPTS:
            self.say_problem(f"{folder}: of very many attempts the last {MAX_ATTEMPTS} are read.")
        if new:
            self._attempts = dict(sorted(self._attempts.items()))
        return bool(new)

    def _problem(self, text: str) -> None:
        self._problem_count += 1
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(text)

    def say_problem(self, text: str) -> None:
        """Add a message to :attr:`problems`, unless it is there already; for code of this package."""
        if text not in self._problems:
            self._problem(text)

    def _latest_records(self) -> AttemptRecords:
        created = fmt.as_number(self._run.get("created"))
        return latest_records([data.records(created) for data in self._attempts.values()], created)

    def follow(self, poll_seconds: float = 0.5) -> Iterator[Run]:
        """Yield this run now and after each change, until it has ended."""
        yield self
        while True:
            ended = self.state.ended
            if self.refresh():
                yield self
            elif ended:
                return
            else:
                time.sleep(poll_seconds)

    # Values -----------------------------------------------------------------------------------------------------------

    def series(self, name: str, *, attempt: int | None = None, rank: int = 0) -> Signal:
        """One scalar over the current line of attempts, or over one ``attempt`` alone; empty when there is none.

        A derived one (``monitor.runfile.stability.DERIVED``) is made here, unless the run has one of its name.
        """
        key = ("series", name, attempt, rank)
        if key not in self._cache and name in DERIVED and name not in self.names:
            source = self.series(DERIVED[name][0], attempt=attempt, rank=rank)
            self._derived[key] = derived(name, source, self._derived.get(key))
            self._cache[key] = self._derived[key].result
        if key not in self._cache:
            pieces = self._line if attempt is None else (Piece(attempt, -1, None),)
            parts = [self._piece(name, piece, rank) for piece in pieces]
            late = any(self._is_late(name, piece.attempt, rank) for piece in pieces)
            step, value = self._join(key, None if late else pieces, parts)
            self._cache[key] = Signal(name, step, value, unit_of(name))
        return self._cache[key]

    def _is_late(self, name: str, attempt: int, rank: int) -> bool:
        """Whether values of ``name`` came as events, so that new ones may belong anywhere."""
        data = self._attempts.get(attempt)
        return data is not None and rank in data.ranks and name in data.ranks[rank].late

    def _join(self, key: Any, identity: Any, parts: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """The parts end to end. With an ``identity`` only what is new since the last call is copied."""
        if len(parts) == 1:
            return tuple(frozen(array) for array in parts[0])
        joined = self._joined.setdefault(key, Joined())
        return joined.update(identity, parts) if parts else (np.empty(0, np.int64), np.empty(0, np.float64))

    def _piece(self, name: str, piece: Piece, rank: int) -> tuple[np.ndarray, np.ndarray]:
        step, value = self._attempt_series(name, piece.attempt, rank)
        low = int(np.searchsorted(step, piece.after, side="right"))
        high = len(step) if piece.upto is None else int(np.searchsorted(step, piece.upto, side="right"))
        return step[low:high], value[low:high]

    def _attempt_series(self, name: str, attempt: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one attempt: the rows, with what came later as events put in."""
        data = self._attempts.get(attempt)
        source = data.ranks.get(rank) if data else None
        if source is None:
            return np.empty(0, np.int64), np.empty(0, np.float64)
        step, value = source.scalars.column(name)
        late = source.late.get(name)
        return (step, value) if late is None else _merged(step, value, late[0].view(), late[1].view())

    def times(self, *, attempt: int | None = None) -> Signal:
        """Wall time (unix seconds) by step, of rank 0."""
        pieces = self._line if attempt is None else (Piece(attempt, -1, None),)
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for piece in pieces:
            data = self._attempts.get(piece.attempt)
            rank = data.ranks.get(0) if data else None
            if rank is not None:
                step, moment = rank.scalars.step.view(), rank.scalars.time.view()
                low = int(np.searchsorted(step, piece.after, side="right"))
                high = len(step) if piece.upto is None else int(np.searchsorted(step, piece.upto, side="right"))
                parts.append((step[low:high], moment[low:high]))
        step, moment = self._join(("times", attempt), pieces, parts)
        return Signal("time", step, moment, "s")

    def superseded(self, name: str) -> list[Signal]:
        """What attempts recorded of ``name`` that a later attempt has taken over, one signal per stretch."""
        return [signal for _, signal in self.superseded_by_attempt(name)]

    @property
    def superseded_line(self) -> tuple[Piece, ...]:
        """What a later attempt has taken over, by attempt."""
        last_steps = {attempt.number: attempt.last_step for attempt in self.attempts if attempt.last_step is not None}
        return superseded_pieces(self._line, last_steps)

    def superseded_by_attempt(self, name: str) -> list[tuple[int, Signal]]:
        """As :meth:`superseded`, each stretch with the number of the attempt that recorded it."""
        found: list[tuple[int, Signal]] = []
        for piece in self.superseded_line:
            step, value = self._piece(name, piece, 0)
            if len(step):
                found.append((piece.attempt, Signal(name, step, value, unit_of(name))))
        return found

    def layers(self, stat: str, *, attempt: int | None = None, rank: int = 0) -> LayerMatrix:
        """One statistic of every layer; steps at which it was not recorded at all are left out.

        When the set of layers changed, the matrix has all of them and ``present`` says which were measured. Of a long
        run not every step is kept: ``<stat>.min`` and ``<stat>.max`` (finite values), ``<stat>.nan``, ``<stat>.posinf``
        and ``<stat>.neginf`` (how many) are what a row tells of the steps left out before it, and of itself;
        :meth:`peaks` puts it together.
        """
        return self._matrix("layers", stat, attempt, rank)

    def modules(self, stat: str, *, attempt: int | None = None, rank: int = 0) -> LayerMatrix:
        """One statistic of every watched module's output, as :meth:`layers`; its names are those of modules."""
        return self._matrix("modules", stat, attempt, rank)

    def peaks(self, stat: str, *, stream: str = "layers", attempt: int | None = None, rank: int = 0) -> LayerMatrix:
        """As :meth:`layers` (or :meth:`modules`), with the worst of the steps that each row stands for.

        A row is the largest value from ``since`` to ``step``, NaN or infinite where any value was. Nothing that was
        measured is larger than what is shown for it. Where every step was kept this is :meth:`layers` itself.
        """
        key = ("peaks", stream, stat, attempt, rank)
        if key not in self._cache:
            plain = self._matrix(stream, stat, attempt, rank)
            pieces, sources = self._sources(stream, stat, attempt, rank)
            kept = self._peaks.setdefault(key, Peaks()) if sources else None
            found = kept.update(pieces, stat, plain.unit, sources) if kept else None
            self._cache[key] = plain if found is None else found
        return self._cache[key]

    def extents(
        self,
        stat: str,
        *,
        stream: str = "layers",
        attempt: int | None = None,
        rank: int = 0,
        windows: bool = True,
    ) -> list[Extents]:
        """The intervals that the rows of one statistic stand for, with their extremes; [] when every step was kept.

        One entry per attempt and set of layers, in the order of steps.

        Args:
            windows: with the rows of dense windows among them; an interval around a window then tells of its other
                steps. Without, the intervals follow one another and each has the extremes of all its steps.
        """
        _, sources = self._sources(stream, stat, attempt, rank)
        return [part for source in sources for part in source.parts(stat, windows)]

    def _sources(
        self, stream: str, stat: str, attempt: int | None, rank: int
    ) -> tuple[tuple[Piece, ...], list[Source]]:
        """Where the intervals of a thinned statistic are read from, and what of the line; [] when it is not thinned."""
        pieces = self._line if attempt is None else (Piece(attempt, -1, None),)
        found = [
            Source(piece.after, piece.upto, *tables)
            for piece in pieces
            if (tables := self._tables(stream, piece, rank))
        ]
        return pieces, found if any(is_thinned(source.table, source.dense, stat) for source in found) else []

    def _tables(self, stream: str, piece: Piece, rank: int) -> tuple[LayerTable, LayerTable] | None:
        """What was read of a matrix stream and of its dense windows."""
        data = self._attempts.get(piece.attempt)
        source = data.ranks.get(rank) if data else None
        return (getattr(source, stream), getattr(source, fmt.DENSE_STREAMS[stream])) if source else None

    def _matrix(self, stream: str, stat: str, attempt: int | None, rank: int) -> LayerMatrix:
        key = (stream, stat, attempt, rank)
        if key not in self._cache:
            pieces = self._line if attempt is None else (Piece(attempt, -1, None),)
            parts = list(self._layer_parts(stream, stat, pieces, rank))
            tables = [self._tables(stream, piece, rank) for piece in pieces]
            grows = not any(pair[1].blocks for pair in tables if pair)  # else rows come in between
            self._cache[key] = self._layer_matrix(key, stat, pieces if grows else None, parts)
        return self._cache[key]

    def _layer_matrix(self, key: Any, stat: str, identity: Any, parts: Sequence[LayerPart]) -> LayerMatrix:
        about = fmt.base_stat(stat)
        spec = LAYER_CATALOGUE.get(about) or MODULE_CATALOGUE.get(about)
        unit = spec.unit if spec else "1"
        names = tuple(dict.fromkeys(name for part in parts for name in part[0]))
        if any(own != names for own, *_ in parts):
            return LayerMatrix(stat, names=names, unit=unit, **_spread(names, parts))
        if not parts:
            nothing = np.empty((0, 0), np.float32)
            return LayerMatrix(stat, np.empty(0, np.int64), (), nothing, nothing.astype(bool), unit)
        identity = None if identity is None else (identity, names)
        step, value, present = self._join(key, identity, [part[1:] for part in parts])
        return LayerMatrix(stat, step, names, value, present, unit)

    def _layer_parts(self, stream: str, stat: str, pieces: Sequence[Piece], rank: int) -> Iterator[LayerPart]:
        for piece in pieces:
            tables = self._tables(stream, piece, rank)
            for names, step, value, present in samples(*tables, stat) if tables else ():
                low, high = _bounds(step, piece)
                if high > low:
                    yield names, step[low:high], value[low:high], present[low:high]

    def ranks(self, attempt: int) -> dict[int, RankData]:
        """What was read of each rank of one attempt, as it is kept; for code of this package."""
        data = self._attempts.get(attempt)
        return dict(data.ranks) if data else {}

    def events(self, kind: str | None = None) -> list[Event]:
        """Events of all attempts and ranks, by attempt and time; of one ``kind`` when it is given.

        What was found out afterwards about a step is among them while that step is on the current line.
        """
        if "events" not in self._cache:
            every: list[Event] = []
            for data in self._attempts.values():
                own = [event for rank in data.ranks.values() for event in rank.events]
                every.extend(sorted(own, key=lambda event: event.time) if len(data.ranks) > 1 else own)
            every.extend(event for event in self._afterwards.events if self._is_current(event))
            self._cache["events"] = every
        return [event for event in self._cache["events"] if kind is None or event.kind == kind]

    def _is_current(self, event: Event) -> bool:
        return event.attempt == self.attempt_of(event.step)

    def attempt_of(self, step: int | None) -> int | None:
        """The attempt whose ``step`` is on the current line; None for a step that no piece of it can hold."""
        for piece in self._line:
            if step is not None and piece.after < step and (piece.upto is None or step <= piece.upto):
                return piece.attempt
        return None

    def landscape(self, kind: str | None = None) -> list[LandscapeSample]:
        """Landscape samples of the current line, by step; of one ``kind`` when it is given.

        Those that were made afterwards, from a checkpoint, have a ``name`` and come after those that the training took
        at the same step.
        """
        if "landscape" not in self._cache:
            found = self._landscape_of_training()
            found.extend(one for one in self._landscapes.samples if self.attempt_of(one.step) == one.attempt)
            self._cache["landscape"] = sorted(found, key=lambda sample: sample.step)
        return [sample for sample in self._cache["landscape"] if kind is None or sample.kind == kind]

    def _landscape_of_training(self) -> list[LandscapeSample]:
        found: list[LandscapeSample] = []
        for piece in self._line:
            for rank in self._attempts[piece.attempt].ranks.values():
                found.extend(
                    sample
                    for sample in rank.landscape
                    if sample.step > piece.after and (piece.upto is None or sample.step <= piece.upto)
                )
        return found

    def system(self, *, attempt: int | None = None, rank: int = 0) -> pd.DataFrame:
        """Machine samples of all attempts, or of one: column ``time`` (unix seconds) and one per measure.

        A measure that was not taken is NA; a NaN was measured.
        """
        import pandas as pd

        frames: list[Any] = []
        for number, data in self._attempts.items():
            source = data.ranks.get(rank)
            if source is None or (attempt is not None and attempt != number) or not len(source.system.time):
                continue
            rows = len(source.system.time)
            columns: dict[str, Any] = {"time": source.system.time.view()}
            for name in source.system.names:
                columns[name] = _with_gaps(*source.system.column(name), np.arange(rows))
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"time": np.empty(0)})

    def frame(
        self, signals: Sequence[str] | None = None, start: int | None = None, stop: int | None = None
    ) -> pd.DataFrame:
        """Scalars side by side, indexed by step, for ``start <= step <= stop``; None takes all names.

        A value that was not recorded at a step is NA; a NaN was recorded.
        """
        import pandas as pd

        chosen = [self.series(name).between(start, stop) for name in (self.names if signals is None else signals)]
        steps = [signal.step for signal in chosen if len(signal)]
        index = steps[0] if steps else np.empty(0, np.int64)
        for other in steps[1:]:
            if len(other) != len(index) or not np.array_equal(other, index):
                index = np.union1d(index, other)
        columns = {signal.name: _with_gaps(signal.step, signal.value, index) for signal in chosen}
        return pd.DataFrame(columns, index=pd.Index(index, name="step"))

    # Other files ------------------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Checkpoint]:
        """Checkpoint folders by step, incomplete ones included."""
        folder = self.path / fmt.CHECKPOINTS_DIR
        found: list[Checkpoint] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    plain = entry.name.isdecimal() and entry.name.isascii() and len(entry.name) <= 18
                    if plain and entry.is_dir(follow_symlinks=False) and not folder.is_symlink():
                        commit = Path(entry.path) / fmt.COMMIT_FILE
                        complete = commit.is_file() and not commit.is_symlink()
                        found.append(Checkpoint(int(entry.name), Path(entry.path), complete))
        except OSError:
            return []
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def log_tail(self, lines: int = 200, rank: int = 0) -> list[str]:
        """The last lines that the latest attempt with a log printed; [] without one.

        Bytes that are no text are escaped. A line may hold anything that a program can print, control codes included.
        """
        for data in reversed(self._attempts.values()):
            folder = fmt.rank_dir(self.path, data.number, rank)
            if not fmt.is_real_folder(self.path, folder):
                continue
            try:
                fd = fmt.open_inside(folder / fmt.LOG_FILE)
            except (FileNotFoundError, RunError):
                continue
            try:
                size = os.fstat(fd).st_size
                begin = max(0, size - LOG_TAIL_BYTES)
                text = os.pread(fd, LOG_TAIL_BYTES, begin).decode("utf-8", "backslashreplace")
            finally:
                os.close(fd)
            return text.splitlines()[-lines:] if lines > 0 else []
        return []


def _bounds(step: np.ndarray, piece: Piece) -> tuple[int, int]:
    """The rows (first included, last excluded) that a piece of the line has."""
    low = int(np.searchsorted(step, piece.after, side="right"))
    return low, len(step) if piece.upto is None else int(np.searchsorted(step, piece.upto, side="right"))


def _merged(
    step: np.ndarray, value: np.ndarray, late_step: np.ndarray, late_value: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both series in one, by step; where a step has several values the last one said counts."""
    steps = np.concatenate([step, late_step])
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], np.concatenate([value, late_value])[order]
    last = np.append(steps[1:] != steps[:-1], True)
    return frozen(steps[last]), frozen(values[last])


def _spread(names: Sequence[str], parts: Sequence[LayerPart]) -> dict[str, np.ndarray]:
    """Rows about different layers in one matrix of all layers."""
    rows = sum(len(step) for _, step, _, _ in parts)
    value, present = np.zeros((rows, len(names)), np.float32), np.zeros((rows, len(names)), bool)
    place = {name: index for index, name in enumerate(names)}
    at = 0
    for own, step, part_value, part_present in parts:
        columns = [place[name] for name in own]
        value[at : at + len(step), columns] = part_value
        present[at : at + len(step), columns] = part_present
        at += len(step)
    step = np.concatenate([step for _, step, _, _ in parts])
    return {"step": frozen(step), "value": frozen(value), "present": frozen(present)}


def _with_gaps(step: np.ndarray, value: np.ndarray, index: np.ndarray) -> Any:
    """``value`` laid out along ``index`` as a pandas array that tells NA (absent) from NaN (recorded)."""
    import pandas as pd

    if len(step) == len(index):
        return pd.arrays.FloatingArray(value.copy(), np.zeros(len(index), bool))  # pyright: ignore[reportAttributeAccessIssue]
    full, absent = np.zeros(len(index)), np.ones(len(index), bool)
    where = np.searchsorted(index, step)
    full[where], absent[where] = value, False
    return pd.arrays.FloatingArray(full, absent)  # pyright: ignore[reportAttributeAccessIssue]
