"""What the pages read: the folders of runs, one growing reader per run, and each one's diagnosis while it is true."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from app.doctor import Doctor, Report
from app.engine_state import ENGINE_STATES
from monitor.errors import GradiometerError, RunError
from monitor.runfile.format import check_run_id
from monitor.runfile.index import RunIndex, config_of
from monitor.runfile.reader import Run, open_run
from monitor.runfile.store import RunSummary
from monitor.runfile.zoom import drawn, zoomed

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "sample_runs"
SAMPLE_SWEEP = ".sweep"  # in it: a folder of runs, the trials of a sweep, which no list of runs shows


# ---- folders ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Folder:
    """One place that runs lie in."""

    path: Path
    sample: bool
    """Whether these are the runs that come with the repository."""


def folders() -> tuple[Folder, ...]:
    """Where runs are looked for: ``GRADIOMETER_RUNS`` (several as in PATH) or ``./runs``, then the samples."""
    given = [part for part in os.environ.get("GRADIOMETER_RUNS", "").split(os.pathsep) if part] or ["runs"]
    paths = list(dict.fromkeys(Path(part).expanduser().absolute() for part in given))
    own = tuple(Folder(path, sample=False) for path in paths)
    return own if SAMPLES in paths else (*own, Folder(SAMPLES, sample=True))


def launch_folder() -> Path:
    """Where a run started from the page is written: the first of the folders."""
    return folders()[0].path


def find_run(run_id: str) -> Path:
    """The directory of ``run_id`` in the first folder that has it.

    Raises:
        RunError: the id has other characters than ``[A-Za-z0-9._-]``, or no folder has such a run.
    """
    name = check_run_id(run_id)
    for folder in (*(folder.path for folder in folders()), SAMPLES / SAMPLE_SWEEP):
        candidate = folder / name
        if candidate.is_dir() and candidate.resolve().parent == folder.resolve():
            return candidate
    looked = ", ".join(str(folder.path) for folder in folders())
    raise RunError(f"No run with the id {name!r}. Looked in {looked}. List the runs there with: gradiometer runs")


def is_sample(path: Path) -> bool:
    """Whether the run at ``path`` came with the repository."""
    return path.parent in (SAMPLES, SAMPLES / SAMPLE_SWEEP)


def sweep_folders() -> tuple[Path, ...]:
    """Where sweeps are looked for: where runs are started from the page, and the sample."""
    return launch_folder(), SAMPLES / SAMPLE_SWEEP


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of the list of runs."""

    summary: RunSummary
    sample: bool


class Listing:
    """The rows of all folders, read again when they are older than five times what reading them took.

    Every open tab asks every two seconds, and a folder of thousands of runs takes a tenth of a second to check.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._indexes: dict[Path, RunIndex] = {}
        self._key: tuple[Folder, ...] = ()
        self._rows: list[Listed] = []
        self._notes: list[str] = []
        self._good_until = float("-inf")
        self._changes = 0

    def rows(self) -> list[Listed]:
        """Every run of every folder: one's own first, then the samples, newest first in each."""
        with self._lock:
            key = folders()
            if key != self._key or self._clock() >= self._good_until:
                began = self._clock()
                self._indexes = {folder.path: self._indexes.get(folder.path) or RunIndex(folder.path) for folder in key}
                lists = [(folder, self._indexes[folder.path].read()) for folder in key]
                rows = [
                    Listed(summary, folder.sample)
                    for folder, found in lists
                    for summary in (found.rows if folder.sample else ENGINE_STATES.rows(found.rows))
                ]
                notes = [note for _, found in lists for note in found.notes]
                self._changes += (rows, notes) != (self._rows, self._notes)
                self._rows, self._notes = rows, notes
                self._key, self._good_until = key, self._clock() + max(0.5, 5 * (self._clock() - began))
            return self._rows

    def notes(self) -> list[str]:
        """What the last reading has to say beside the rows."""
        return self._notes

    def forget(self) -> None:
        """Read again at the next question: something was changed from here."""
        with self._lock:
            self._good_until = float("-inf")

    def version(self) -> str:
        """Another word whenever the rows are other ones."""
        self.rows()
        return str(self._changes)

    def config_of(self, summary: RunSummary) -> Mapping[str, Any]:
        """The configuration of a listed run, flat."""
        index = self._indexes.get(summary.path.parent)
        return index.config_of(summary) if index else config_of(summary)


LISTING = Listing()


def listed_runs() -> list[Listed]:
    """Every run of every folder: one's own first, then the samples, newest first in each."""
    return LISTING.rows()


# ---- readers ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Held:
    lock: threading.Lock
    run: Run | None = None
    refreshed: float = -1.0


class RunReaders:
    """One ``Run`` per directory, shared by all tabs and routes, refreshed at most every ``min_interval`` seconds.

    Not ``st.cache_resource``: the routes run outside any session, and a reader must not be refreshed by two threads.
    """

    def __init__(
        self, *, capacity: int = 48, min_interval: float = 0.2, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._held: OrderedDict[Path, _Held] = OrderedDict()
        self._guard = threading.Lock()
        self._capacity, self._min_interval, self._clock = capacity, min_interval, clock

    @contextmanager
    def reading(self, path: Path) -> Iterator[Run]:
        """The run at ``path``, up to date and held still while the block runs.

        Raises:
            RunError: not a run directory, or one of a newer format.
        """
        held = self._take(path)
        with held.lock:
            now = self._clock()
            if held.run is None:
                held.run = open_run(path)
                held.refreshed = now
            elif now - held.refreshed >= self._min_interval:
                held.run.refresh()
                held.refreshed = now
            yield held.run

    def forget(self, path: Path) -> None:
        """Open ``path`` anew next time."""
        with self._guard:
            self._held.pop(path, None)

    def _take(self, path: Path) -> _Held:
        with self._guard:
            held = self._held.setdefault(path, _Held(threading.Lock()))
            self._held.move_to_end(path)
            while len(self._held) > self._capacity:
                self._held.popitem(last=False)
            return held


READERS = RunReaders()
"""Shared by pages and routes; modules are imported once per server, since no file watcher reloads them."""


# ---- work that no page waits for -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """What is known about a run from work done in the background."""

    value: T | None
    """The latest result; None while the first is being made, or when it could not be made."""
    error: str | None
    """Why the latest work failed."""
    pending: bool
    """Whether a newer result is due or being made."""


@dataclass(slots=True)
class _Work(Generic[T]):
    token: object = None
    value: T | None = None
    error: str | None = None
    started: float = float("-inf")
    took: float = 0.0
    """Seconds that the latest result took."""
    worker: int | None = None
    """Index of the worker that has made it."""
    done: threading.Event = field(default_factory=threading.Event)
    """Set while nothing is being made."""


MOST_SHARE = 0.2
"""Of the time that one result may be in the making while its run goes on. Our judgement."""


@dataclass(slots=True)
class _Worker(Generic[T]):
    """A thread with its queue."""

    make: Callable[[Path], T]
    queue: queue.Queue[tuple[Path, object, _Work[T]]]
    thread: threading.Thread | None = None
    waiting: int = 0
    """Results that are due or being made."""


class Background(Generic[T]):
    """One result per run directory, made in a thread of its own and made again when the run changed.

    A run that goes on changing is worked on at most every ``min_interval`` seconds, and for at most ``MOST_SHARE`` of
    the time: what is slow to make of a long run must not run without a pause beside the training. The threads are
    daemons: ending the app does not wait for a long diagnosis.

    Args:
        make: several are several threads. A run stays with the one that has made its first result, where the run may
            be open; it begins with the one that has least to do.
        latest_first: make first what was asked for last; else one after the other.
    """

    def __init__(
        self,
        name: str,
        *make: Callable[[Path], T],
        latest_first: bool = False,
        min_interval: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._min_interval, self._clock = name, min_interval, clock
        self._workers = [_Worker(one, queue.LifoQueue() if latest_first else queue.Queue()) for one in make]
        self._works: OrderedDict[Path, _Work[T]] = OrderedDict()
        self._guard = threading.Lock()
        self.finished = 0
        """How many results have been made."""

    def of(self, path: Path, token: object, wait: float = 0.0, head_start: float = 0.0) -> Made[T]:
        """What is known about ``path``; starts the work when ``token`` is not the one of the latest result.

        Args:
            token: anything that changes when the run does.
            wait: seconds to wait when nothing is known yet.
            head_start: seconds that a first result is not begun for: what was asked for with it comes first.
        """
        with self._guard:
            work = self._works.get(path)
            if work is None:
                work = self._works[path] = _Work()
                work.done.set()
            self._works.move_to_end(path)
            while len(self._works) > 5_000:
                self._works.popitem(last=False)
            pause = max(self._min_interval, work.took / MOST_SHARE)
            if work.token != token and work.done.is_set() and self._clock() - work.started >= pause:
                work.started = self._clock()
                work.done.clear()
                self._give(path, token, work, 0.0 if work.worker is not None else head_start)
        if wait > 0 and work.value is None and work.error is None:
            work.done.wait(wait)
        return Made(work.value, work.error, pending=work.token != token)

    def _give(self, path: Path, token: object, work: _Work[T], head_start: float) -> None:
        if work.worker is None:
            work.worker = min(range(len(self._workers)), key=lambda index: self._workers[index].waiting)
        worker = self._workers[work.worker]
        worker.waiting += 1
        if head_start > 0:
            timer = threading.Timer(head_start, worker.queue.put, [(path, token, work)])
            timer.daemon = True
            timer.start()
        else:
            worker.queue.put((path, token, work))
        if worker.thread is None:
            worker.thread = threading.Thread(target=self._run, args=(worker,), name=self._name, daemon=True)
            worker.thread.start()

    def _run(self, worker: _Worker[T]) -> None:
        while True:
            path, token, work = worker.queue.get()
            began = self._clock()
            try:
                work.value, work.error = worker.make(path), None
            except GradiometerError as refused:
                work.error = str(refused)
            except Exception as failed:  # said on the page, where it belongs; it must not take the page with it
                work.error = f"{type(failed).__name__}: {failed}"
            work.token, work.took = token, self._clock() - began
            with self._guard:
                self.finished += 1
                worker.waiting -= 1
            work.done.set()


DIAGNOSES: Background[Report] = Background("diagnosis", Doctor().ask, Doctor().ask, latest_first=True)
"""For the page of a run, the one that was opened last first. The second process begins when the first is busy: the
diagnosis of a long run does not hold up the page of another one."""


def incidents_of(made: Made[Report]) -> list[dict[str, Any]]:
    """The incidents as far as they are known, worst first."""
    return list(made.value["incidents"]) if made.value else []


# ---- overview of a run, for the list ------------------------------------------------------------------------------

SPARK_POINTS = 48


@dataclass(frozen=True, slots=True)
class Spark:
    """A loss curve for a cell of a table."""

    loss: tuple[float, ...]
    """Training loss, at most about ``SPARK_POINTS`` finite values with the extremes kept."""
    nonfinite: int
    """Steps with a NaN or infinite loss."""


def _spark(path: Path) -> Spark:
    with READERS.reading(path) as run:
        seen = zoomed(drawn(run, "train_loss"), None, None, SPARK_POINTS // 2)
    return Spark(tuple(seen.value.tolist()), sum(seen.nonfinite))


SPARKS: Background[Spark] = Background("sparks", _spark, min_interval=2.0)
LIST_DIAGNOSES: Background[Report] = Background("list-diagnosis", Doctor().ask, min_interval=8.0)
"""For the list of runs; with a process of its own, so that a long list does not hold up the page of one run."""


@dataclass(frozen=True, slots=True)
class Overview:
    """What the list of runs shows beyond the summary, as far as it is known."""

    spark: Made[Spark]
    report: Made[Report]


def list_version() -> str:
    """Another word whenever the list of runs, or what is known of one beyond the list, is another."""
    return f"{LISTING.version()}-{SPARKS.finished}-{LIST_DIAGNOSES.finished}"


def overview(summary: RunSummary) -> Overview:
    """Loss curve and diagnosis of a listed run; starts the work on what is missing."""
    token = repr((summary.state.word, summary.last_step, summary.last_loss))
    return Overview(SPARKS.of(summary.path, token), LIST_DIAGNOSES.of(summary.path, token))


def overviews(summaries: Iterable[RunSummary]) -> dict[Path, Overview]:
    """The overview of each, the short runs first to be worked on."""
    ordered = sorted(summaries, key=lambda summary: summary.last_step or 0)
    return {summary.path: overview(summary) for summary in ordered if summary.problem is None}
