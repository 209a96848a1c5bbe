"""Append-only writer of a run: the training thread queues, a background thread writes.

What it promises: nothing here blocks the training thread or raises into it; every batch goes to the file in one write;
what :meth:`RankWriter.flush` has acknowledged survives ``kill -9``; two writers never share a file; after a fork only
the parent writes; a full disk costs rows, never a torn file and never the training; per-layer statistics are thinned
when they have used their budget, and no extreme and no non-finite value is lost by that.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import queue
import threading
import time
import warnings
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from monitor import guard
from monitor.errors import MonitorWarning, RunError
from monitor.runfile import format as fmt
from monitor.runfile.begin import begin_attempt as begin_attempt
from monitor.runfile.begin import create_run as create_run
from monitor.runfile.begin import write_exit as write_exit
from monitor.runfile.columns import landscape_batch, layers_batch, scalars_batch, system_batch
from monitor.runfile.dense import Recorder
from monitor.runfile.framing import END_OF_STREAM, encode_batch, encode_schema
from monitor.runfile.identity import is_anonymous as is_anonymous
from monitor.runfile.identity import process_identity as process_identity
from monitor.runfile.queued import KeepDense, Row
from monitor.runfile.segment import Segment
from monitor.runfile.thinning import DEFAULT_BUDGET_BYTES, LATE_SECONDS, Thinning

EVENT_DELAY_S = 0.02
"""An event waits this long for others before the thread writes them together."""
HEARTBEAT_SECONDS = 1.0
MAX_NAME = 512
"""Characters in the name of a value."""
CLOSE_SECONDS = 10.0
"""How long close() waits for rows that the disk does not take."""
EVENT_HEADROOM_BYTES = 1 << 20
"""Events are written until the quota is exceeded by this much: they are what says that the quota is reached."""
BULKY_QUOTA_SHARE = 0.9
"""Layers, system and landscape stop at this share of the quota, so that the scalars can go on. Our judgement."""
LAYER_QUOTA_SHARE = 4
"""With a quota, thinning begins at the latest when per-layer statistics have used this part of it. Our judgement."""
DENSE_SHARE = 2
"""All dense windows together may use this part of the budget of the stream that they belong to. Our judgement."""
DENSE_STEPS = 64
"""Steps that a dense window goes on for. Our judgement, as for armed probes: a spike is over by then."""

_GIVEN_UP = {
    "scalars": "every number by step; only events go on",
    "layers": "per-layer statistics; scalars go on",
    "modules": "statistics of modules; scalars go on",
    "system": "samples of the machine; scalars go on",
    "landscape": "landscape samples; scalars go on",
    "dense": "per-layer statistics in full round incidents; scalars go on",
    "dense_modules": "statistics of modules in full round incidents; scalars go on",
    "events": "everything; nothing more is written",
}
"""What a quota costs, by stream."""
_RESERVED = ("step", "time")
"""Column names that every stream has already."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Wake:
    """An event that a signal handler may set while it interrupts the same thread in :meth:`set`.

    threading.Event would deadlock there; SimpleQueue.put is reentrant by promise.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._called = False

    def set(self) -> None:
        if not self._called:
            self._called = True
            self._calls.put(None)

    def wait(self, seconds: float) -> None:
        """Return after :meth:`set`, at once if it was called since the last return, or after ``seconds``."""
        with contextlib.suppress(queue.Empty):
            self._calls.get(timeout=seconds)
        self._called = False
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()


@dataclass(slots=True)
class Stream:
    """One kind of row: what is waiting, and the segment it goes to."""

    name: str
    build: Callable[[Sequence[Row], Sequence[str], Any], tuple[pa.RecordBatch, int]]
    schema_of: Callable[[Sequence[str], Any], pa.Schema]
    waiting: deque[Row] = field(default_factory=deque)
    thinning: Thinning | None = None
    """Of layers and modules: which of the rows that wait are written."""
    recorder: Recorder | None = None
    """Of the same: what a dense window holds."""
    chosen: deque[Row] = field(default_factory=deque)
    """What is written next: of a stream that is not thinned, all that waits."""
    chosen_at: float = 0.0
    """Of a thinned one, when a row was last chosen; monotonic seconds."""
    columns: list[str] = field(default_factory=list)
    layout: Any = None
    segment: Segment | None = None
    schema: pa.Schema | None = None
    schema_size: int = 0
    seed: int = 0
    next_index: int = 0
    last_step: int | None = None
    """Last step that was queued."""

    def __post_init__(self) -> None:
        if self.thinning is None:
            self.chosen = self.waiting


def _layout(names: Sequence[str], shapes: Sequence[Sequence[int]]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"name": str(name), "shape": [int(size) for size in shape], "depth": depth}
        for depth, (name, shape) in enumerate(zip(names, shapes, strict=True))
    )


class RankWriter:
    """Writes what one rank of one attempt records. Every method may be called from any thread and returns at once.

    Args:
        run_dir, attempt, rank: where; the attempt must have been begun.
        rows_per_batch, seconds_per_batch: a batch is written when either is reached.
        segment_bytes: a segment that has grown beyond it is sealed and the next one begun.
        quota_bytes: bytes that this writer may put on disk; None: no limit. Near it layers, system and landscape stop,
            at it the scalars, and the heartbeat says so.
        layer_budget_bytes: bytes up to which every row of per-layer statistics is written; then fewer and fewer, with
            the extremes of what is left out (see ``monitor.runfile.thinning``). For layers and for modules; dense
            windows may use half as much again. None: 256 MiB, or a quarter of the quota when that is less.
        queue_rows: rows kept in memory while the disk does not take them; further ones are counted and dropped.
        clock, monotonic: wall clock for what is written, monotonic clock for when to write.

    Raises:
        RunError: no such attempt, this rank of it has a writer already (resume is a new attempt), or no budget.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        attempt: int,
        rank: int = 0,
        *,
        rows_per_batch: int = 64,
        seconds_per_batch: float = 1.0,
        segment_bytes: int = 16 << 20,
        quota_bytes: int | None = None,
        layer_budget_bytes: int | None = None,
        queue_rows: int = 100_000,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self.folder = fmt.rank_dir(Path(run_dir), attempt, rank)
        self.attempt, self.rank = attempt, rank
        self._rows_per_batch, self._seconds_per_batch = rows_per_batch, seconds_per_batch
        self._segment_bytes, self._quota_bytes, self._queue_rows = segment_bytes, quota_bytes, queue_rows
        self._clock, self._monotonic = clock, monotonic

        if layer_budget_bytes is None:
            quota = DEFAULT_BUDGET_BYTES * LAYER_QUOTA_SHARE if quota_bytes is None else quota_bytes
            layer_budget_bytes = max(1, min(DEFAULT_BUDGET_BYTES, quota // LAYER_QUOTA_SHARE))
        if layer_budget_bytes < 1:
            raise RunError(
                f"layer_budget_bytes is {layer_budget_bytes}; at least 1 is needed. Leave it out for the usual budget."
            )
        self._streams = {
            "scalars": Stream("scalars", scalars_batch, lambda names, _: fmt.scalars_schema(names)),
            "layers": _thinned("layers", layer_budget_bytes),
            "modules": _thinned("modules", layer_budget_bytes),
            "system": Stream("system", system_batch, lambda names, _: fmt.system_schema(names)),
            "landscape": Stream("landscape", landscape_batch, lambda _names, _: fmt.landscape_schema()),
        }
        self._dense = {name: _dense_of(self._streams[name]) for name in fmt.DENSE_STREAMS}
        self._events: deque[bytes] = deque()
        self._events_segment: Segment | None = None
        self._events_index = 0
        self._layouts: dict[str, tuple[dict[str, Any], ...]] = {}

        self._new_locks()
        self._put = 0  # rows and events accepted so far
        self._done = 0  # of those, written or given up
        self._left_out = 0  # of the rest, known only by the extremes of the row to come: not in memory
        self._requests: deque[tuple[int, bool]] = deque()  # (wanted _done, with fdatasync)
        self._served = 0
        self._requested = 0
        self._stop = False
        self._closed = False
        self._dropped = 0
        self._written = 0
        self._error: BaseException | None = None
        self._error_said = False
        self._disk_full = False
        self._heartbeat: dict[str, Any] = {}
        self._warnings: list[str] = []
        self._warned: set[str] = set()
        self._summary: dict[str, dict[str, Any]] = {}
        self._scalar_rows = 0
        self._last_step: int | None = None
        self._step_at: float | None = None
        self._identity = process_identity()
        self._claim()
        self._thread = threading.Thread(target=self._run, name=f"gradiometer-writer-{attempt}-{rank}", daemon=True)
        self._thread.start()
        _LIVE.add(self)
        self._atexit = _close_at_exit(weakref.ref(self))
        atexit.register(self._atexit)

    def _claim(self) -> None:
        """Make this rank's folder ours: the heartbeat can be created once only."""
        if not (self.folder.parent / fmt.ATTEMPT_FILE).is_file():
            raise RunError(f"{self.folder.parent} has no {fmt.ATTEMPT_FILE}. Begin the attempt with begin_attempt().")
        try:
            self.folder.mkdir(exist_ok=True)
            fmt.exclusive_write_json(self.folder / fmt.HEARTBEAT_FILE, self._heartbeat_record())
        except FileExistsError:
            raise RunError(
                f"{self.folder} has been written before. One writer per attempt and rank: begin a new attempt."
            ) from None
        except OSError as error:
            raise RunError(f"{self.folder} cannot be written: {error.strerror}.") from None

    def _new_locks(self) -> None:
        # Reentrant: a signal handler that writes an event may interrupt this very thread inside one of these methods.
        self._lock = threading.RLock()
        self._wake = Wake()
        self._finished = threading.Condition(self._lock)

    # What the training thread calls ---------------------------------------------------------------------------------

    def scalars(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Queue one row of named numbers; a name that is left out is absent at that step, a NaN is a value."""
        self._put_row("scalars", Row(int(step), float(time), dict(values)))

    def define_layers(self, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
        """Name the layers (parameters in depth order) that the rows of :meth:`layers` are about, from now on."""
        if len(names) != len(shapes):
            self._warn(
                "define_layers",
                f"{len(names)} layer names with {len(shapes)} shapes; both must have one entry a layer.",
            )
            return
        if not 0 < len(names) <= fmt.MAX_LAYERS:
            self._warn("define_layers", f"{len(names)} layers; 1 to {fmt.MAX_LAYERS} are accepted.")
            return
        self._layouts["layers"] = _layout(names, shapes)

    def define_modules(self, names: Sequence[str]) -> None:
        """Name the modules (in the order of ``named_modules``) that the rows of :meth:`modules` are about."""
        if not 0 < len(names) <= fmt.MAX_LAYERS:
            self._warn("define_modules", f"{len(names)} modules; 1 to {fmt.MAX_LAYERS} are accepted.")
            return
        self._layouts["modules"] = _layout(names, [()] * len(names))

    def layers(self, step: int, time: float, stats: Mapping[str, Any]) -> None:
        """Queue one row of per-layer statistics.

        Args:
            stats: statistic -> float32[L], or (float32[L], bool[L] present), or None when it is absent at that step.
        """
        self._put_matrix_row("layers", step, time, stats)

    def modules(self, step: int, time: float, stats: Mapping[str, Any]) -> None:
        """Queue one row of statistics of modules' outputs; ``stats`` as for :meth:`layers`."""
        self._put_matrix_row("modules", step, time, stats)

    def keep_dense(self, steps: int = DENSE_STEPS) -> None:
        """Write the last rows of layers and modules, and those of the next ``steps`` steps, in full.

        For an incident or an early sign of one. What is written anyway is not written twice; the stream ``dense`` has
        the rows that thinning left out or would leave out, as far as the budget of such windows goes.
        """
        for stream in self._dense:
            with self._lock:
                last = self._streams[stream].last_step
            if last is not None:  # in the queue, so that it is about the rows before it
                self._put_row(stream, Row(None, self._clock(), KeepDense(last + int(steps)), self._layouts.get(stream)))

    def _put_matrix_row(self, stream: str, step: int, time: float, stats: Mapping[str, Any]) -> None:
        layout = self._layouts.get(stream)
        if layout is None:
            self._warn(stream, f"{stream}() was called before define_{stream}(); the rows are dropped.")
            self._drop()
            return
        count = len(layout)
        values: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        for stat, given in stats.items():
            if given is None:
                continue
            if fmt.base_stat(stat) != stat:
                self._warn(f"{stream} {stat}", f"{stat!r} names the extremes of {fmt.base_stat(stat)!r}. Left out.")
                continue
            array, present = given if isinstance(given, tuple) else (given, None)
            with np.errstate(over="ignore"):  # what no float32 can hold is an infinity, and not a warning
                array = np.array(array, dtype=np.float32)  # a copy: the caller may reuse its buffer
            present = None if present is None else np.array(present, dtype=bool)
            if array.shape != (count,) or (present is not None and present.shape != (count,)):
                self._warn(
                    f"{stream} {stat}", f"{stat} of step {step} has shape {array.shape}; expected ({count},). Dropped."
                )
                continue
            values[stat] = (array, present)
        self._put_row(stream, Row(int(step), float(time), values, layout))

    def system(self, time: float, values: Mapping[str, float]) -> None:
        """Queue one sample of the machine; it belongs to a time, not to a step."""
        self._put_row("system", Row(None, float(time), dict(values)))

    def landscape(
        self,
        step: int,
        time: float,
        *,
        kind: str,
        direction: str,
        radius: float,
        coords: Any,
        loss: Any,
        baseline: float,
        coords_y: Any = (),
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Queue one landscape sample: ``loss[i]`` at ``coords[i]``; several samples may share a step.

        ``coords_y`` is the second coordinate of a plane's points; ``detail`` is kept as JSON. See FORMAT.md.
        """
        coords, loss, coords_y = (np.array(numbers, np.float64).ravel() for numbers in (coords, loss, coords_y))
        told = fmt.dump_json(detail) if detail else ""
        values = (kind, direction, float(radius), coords, loss, float(baseline), coords_y, told)
        self._put_row("landscape", Row(int(step), float(time), values))

    def event(self, kind: str, step: int | None = None, **fields: Any) -> None:
        """Queue one event; a reader sees it within 0.1 s."""
        record = {"step": None if step is None else int(step), "time": self._clock(), "kind": kind}
        record.update((key, value) for key, value in fields.items() if key not in record)
        line = fmt.event_line(record)
        if len(line) > fmt.MAX_EVENT_BYTES:
            self._warn(
                "event", f"an event of kind {kind!r} has {len(line)} bytes; at most {fmt.MAX_EVENT_BYTES}. Dropped."
            )
            self._drop()
            return
        self._surface()
        with self._lock:
            if self._refuses_locked():
                return
            self._events.append(line)
            self._put += 1
        self._wake.set()

    def heartbeat(self, **fields: Any) -> None:
        """Update fields of the heartbeat; ``warnings`` is added to the writer's own."""
        with self._lock:
            if fields.get("step") is not None and fields["step"] != self._heartbeat.get("step"):
                self._step_at = self._clock()
            self._heartbeat.update(fields)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything queued so far is on disk; False when it is not within ``timeout`` seconds."""
        return self._request(timeout, durable=False)

    def sync(self) -> None:
        """Flush, then make it durable against a power cut. Slow (milliseconds); for checkpoints."""
        self._request(CLOSE_SECONDS, durable=True)

    def close(self) -> None:
        """Write what is queued, seal every segment and end the thread. Calling it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._stop = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS + 5)
        atexit.unregister(self._atexit)
        _LIVE.discard(self)
        self._surface()

    @property
    def rows_dropped(self) -> int:
        """Rows and events that were not written: no room in the queue, over the quota, or refused."""
        return self._dropped

    @property
    def bytes_written(self) -> int:
        """Bytes on disk, in all segments of this writer."""
        return self._written

    @property
    def error(self) -> BaseException | None:
        """What ended the background thread; None while all is well."""
        return self._error

    def _put_row(self, stream_name: str, row: Row) -> None:
        stream = self._streams[stream_name]
        self._surface()
        if row.step is not None and not 0 <= row.step < fmt.MAX_STEP:
            self._drop()
            self._warn(f"{stream_name} range", f"{stream_name}: step {row.step}; 0 to 2**53 - 1 are accepted. Dropped.")
            return
        with self._lock:
            if self._refuses_locked():
                return
            if row.step is not None:
                last = stream.last_step
                # Landscape samples of one step are several rows.
                if last is not None and (row.step < last or (row.step == last and stream_name != "landscape")):
                    self._dropped += 1
                    refused = last
                else:
                    refused = None
                    stream.last_step = row.step
            else:
                refused = None
            if refused is None:
                stream.waiting.append(row)
                self._put += 1
        if refused is not None:
            self._warn(
                f"{stream_name} steps",
                f"{stream_name}: step {row.step} after {refused}; steps must increase within an attempt. The row is "
                "not written. To go back, begin a new attempt.",
            )
        elif len(stream.waiting) >= self._rows_per_batch and not self._disk_full:
            self._wake.set()

    def _refuses_locked(self) -> bool:
        """Whether nothing more is accepted; counts the row as dropped. The lock is held."""
        in_memory = self._put - self._done - self._left_out
        if self._closed or self._error is not None or in_memory >= self._queue_rows:
            self._dropped += 1
            return True
        return False

    def _drop(self) -> None:
        with self._lock:
            self._dropped += 1

    def _warn(self, topic: str, text: str) -> None:
        """Say ``text`` once per ``topic``: as a MonitorWarning and in the heartbeat."""
        if self._note(topic, text):
            warnings.warn(text, MonitorWarning, stacklevel=4)

    def _note(self, topic: str, text: str) -> bool:
        """Put ``text`` into the heartbeat; False when the topic was there already."""
        with self._lock:
            if topic in self._warned:
                return False
            self._warned.add(topic)
            self._warnings.append(text)
        return True

    def _surface(self) -> None:
        """Report the thread's error, once, in the thread of the caller."""
        if self._error is not None and not self._error_said:
            self._error_said = True
            guard.report(f"the run in {self.folder}", self._error)

    def _request(self, timeout: float, durable: bool) -> bool:
        deadline = time.monotonic() + timeout
        with self._finished:
            if self._closed or self._error is not None:
                return self._put == self._done and self._error is None
            self._requested += 1
            ticket = self._requested
            wanted = self._put
            self._requests.append((ticket, durable))
            self._wake.set()
            while (
                (self._served < ticket or self._done < wanted or self._dense_waits())
                and self._error is None
                and self._thread.is_alive()
            ):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._finished.wait(min(left, 0.5))
            written = self._done >= wanted and not self._dense_waits()
            done = self._served >= ticket and written and self._error is None
        self._surface()
        return done

    # The background thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # surfaces in the caller's thread: see _surface
            with self._finished:
                self._error = error
                self._finished.notify_all()
            self._abandon()

    def _loop(self) -> None:
        next_flush = next_beat = self._monotonic() + min(self._seconds_per_batch, HEARTBEAT_SECONDS)
        while not self._stop:
            # At least once a second: the heartbeat shows a living process, and no row waits longer than its time.
            self._wake.wait(min(self._seconds_per_batch, HEARTBEAT_SECONDS))
            if self._events and not self._requests and not self._stop:
                time.sleep(EVENT_DELAY_S)
            now = self._monotonic()
            with self._lock:
                requests = list(self._requests)
                self._requests.clear()
            forced = bool(requests)
            if forced or now >= next_flush or self._batch_is_ready():
                self._write_all(whole=forced)
                next_flush = now + self._seconds_per_batch
            else:
                self._write_events()
            if forced or now >= next_beat:
                self._write_heartbeat()
                next_beat = now + HEARTBEAT_SECONDS
            self._serve(requests)
        self._finish()

    def _batch_is_ready(self) -> bool:
        return not self._disk_full and any(
            len(stream.waiting) >= self._rows_per_batch for stream in self._streams.values()
        )

    def _serve(self, requests: Sequence[tuple[int, bool]]) -> None:
        if not requests:
            return
        if any(durable for _, durable in requests):
            for segment in self._open_segments():
                segment.sync()
        with self._finished:
            self._served = requests[-1][0]
            self._finished.notify_all()

    def _open_segments(self) -> list[Segment]:
        streams = [*self._streams.values(), *self._dense.values()]
        segments = [stream.segment for stream in streams] + [self._events_segment]
        return [segment for segment in segments if segment is not None]

    def _write_all(self, whole: bool = False) -> None:
        """Write what waits.

        Args:
            whole: also what thinning has left out so far, as the extremes of a row.
        """
        self._write_events()
        self._write_in_turns(list(self._streams.values()))
        thinned = [self._streams[name] for name in self._dense]
        for stream in thinned:
            if whole or self._monotonic() - stream.chosen_at > LATE_SECONDS:
                self._close_interval(stream, early=not whole)
        self._write_in_turns(thinned)
        self._write_in_turns(list(self._dense.values()))

    def _write_in_turns(self, left: list[Stream]) -> None:
        while left:  # in turns, so that with a backlog no stream runs ahead of the others
            left = [stream for stream in left if (stream.waiting or stream.chosen) and self._write_batch(stream)]

    def _dense_waits(self) -> bool:
        return any(stream.waiting for stream in self._dense.values())

    def _thin(self, stream: Stream) -> None:
        """Choose among the rows that wait, until there is a batch of them or of rows for a dense window."""
        thinning, recorder = stream.thinning, stream.recorder
        if thinning is None or recorder is None:
            return
        dense = self._dense[stream.name].waiting
        while stream.waiting and max(len(stream.chosen), len(dense)) < self._rows_per_batch:
            row = stream.waiting[0]
            if isinstance(row.values, KeepDense):
                self._choose(stream, [], taken=1, done=1)
                before_it = recorder.open(row.values.until)
                dense.extend(before_it)
                if before_it:  # so that what follows stands for itself
                    self._close_interval(stream)
                continue
            if recorder.ends_before(row):
                self._close_interval(stream)
            before = thinning.left_out
            chosen = thinning.take(row)
            if before and chosen and chosen[0].step != row.step:
                recorder.chose_last()
            if thinning.stride > 1:
                full = recorder.saw(row, bool(chosen) and chosen[-1].step == row.step)
                dense.extend([] if full is None else [full])
            self._choose(stream, chosen, taken=1, left_out=thinning.left_out - before)

    def _close_interval(self, stream: Stream, early: bool = False) -> None:
        """Choose the last row that was left out, for the interval up to it."""
        if stream.thinning is None or stream.recorder is None:
            return
        before = stream.thinning.left_out
        chosen = stream.thinning.close_early() if early else stream.thinning.close()
        if chosen:
            stream.recorder.chose_last()
            self._choose(stream, chosen, left_out=-before)

    def _choose(self, stream: Stream, chosen: list[Row], taken: int = 0, left_out: int = 0, done: int = 0) -> None:
        """Put rows where the next batch is taken from.

        Args:
            taken: rows taken from those that wait.
            left_out: how many more rows are left out than before.
            done: of those taken, how many need no writing.
        """
        with self._finished:
            for _ in range(taken):
                stream.waiting.popleft()
            stream.chosen.extend(chosen)
            stream.chosen_at = self._monotonic() if chosen else stream.chosen_at
            self._left_out += left_out + sum(row.stands_for - 1 for row in chosen)
            self._done += done
            if done:
                self._finished.notify_all()

    def _write_batch(self, stream: Stream) -> bool:
        """Write one batch of what waits; False when the disk does not take it (it keeps waiting)."""
        if stream.thinning is None:
            return self._write_chosen(stream)
        self._thin(stream)
        dense = self._dense[stream.name]
        return self._write_chosen(stream) and (len(dense.waiting) < self._rows_per_batch or self._write_chosen(dense))

    def _write_chosen(self, stream: Stream) -> bool:
        rows, before = _same_layout(stream.chosen, self._rows_per_batch), self._written
        if not rows:
            return True
        if self._over_quota(stream.name):
            self._done_with(stream, len(rows), dropped=True)
            return True
        try:
            self._open_for(stream, rows)
            assert stream.segment is not None and stream.schema is not None
            batch, refused = stream.build(rows, stream.columns, stream.schema)
            if refused:
                self._note(
                    f"{stream.name} values", f"{stream.name}: {refused} value(s) that are not numbers were left out."
                )
            block = encode_batch(batch, stream.schema_size, stream.seed)
            stream.segment.append(block, [row.step for row in rows])
        except OSError as error:
            return self._disk_refuses(error)
        except (ValueError, TypeError, AttributeError, OverflowError, pa.ArrowException) as error:
            # Values that cannot be put into columns: these rows are lost, the recording is not.
            self._note(f"{stream.name} rows", f"{stream.name}: rows up to step {rows[-1].step} were left out: {error}")
            self._done_with(stream, len(rows), dropped=True)
            return True
        self._disk_is_back()
        self._written += len(block)
        self._done_with(stream, len(rows))
        self._count_bytes(stream, rows, self._written - before)
        if stream.name == "scalars":
            self._scalar_rows += len(rows)
            self._summarise(rows)
        if stream.segment.size >= self._segment_bytes:
            self._end_segment(stream)
        return True

    def _open_for(self, stream: Stream, rows: Sequence[Row]) -> None:
        """See to it that the stream's open segment has a column for everything in ``rows``; begin a new one if not."""
        known = set(stream.columns)
        new: dict[str, None] = {}
        if stream.name != "landscape":
            for row in rows:
                for name in row.values:
                    if name not in known and name not in new and self._accepts_name(stream.name, name):
                        new[name] = None
        if len(known) + len(new) > fmt.MAX_COLUMNS:
            self._note(
                f"{stream.name} columns",
                f"{stream.name}: more than {fmt.MAX_COLUMNS} names; further ones are left out.",
            )
            new = dict.fromkeys(list(new)[: fmt.MAX_COLUMNS - len(known)])
        if stream.segment is not None and not new and rows[0].layout == stream.layout:
            return
        if stream.segment is not None:
            self._end_segment(stream)
        columns = [*stream.columns, *new]
        schema = stream.schema_of(columns, rows[0].layout)
        block = encode_schema(schema)
        segment = Segment(self.folder, stream.name, stream.next_index)
        try:
            segment.append(block)
        except OSError:
            segment.abandon()
            segment.path.unlink()  # empty and ours alone; the number is used again when there is space
            raise
        stream.segment, stream.schema, stream.columns, stream.layout = segment, schema, columns, rows[0].layout
        stream.schema_size, stream.seed = len(block), zlib.crc32(block)
        stream.next_index += 1
        self._written += len(block)

    def _accepts_name(self, stream_name: str, name: Any) -> bool:
        """Whether ``name`` can be a column; said once per stream when not."""
        if name in _RESERVED:
            return False
        if isinstance(name, str) and 0 < len(name) <= MAX_NAME and "\0" not in name and _is_unicode(name):
            return True
        self._note(f"{stream_name} names", f"{stream_name}: {name!r:.80} cannot name a value; it is left out.")
        return False

    def _end_segment(self, stream: Stream) -> None:
        segment, stream.segment = stream.segment, None
        if segment is None:
            return
        try:
            segment.append(END_OF_STREAM)
            self._written += len(END_OF_STREAM)
            segment.seal()
        except OSError as error:
            segment.abandon()  # without a seal it stays readable as a live one
            self._disk_refuses(error)

    def _write_events(self) -> None:
        with self._lock:
            lines = list(self._events)
        if not lines:
            return
        if self._over_quota("events"):
            self._done_with_events(len(lines), dropped=True)
            return
        block = b"".join(lines)
        try:
            if self._events_segment is None:
                self._events_segment = Segment(self.folder, "events", self._events_index)
                self._events_index += 1
            self._events_segment.append(block, [None] * len(lines))
        except OSError as error:
            self._disk_refuses(error)
            return
        self._written += len(block)
        self._done_with_events(len(lines))
        if self._events_segment.size >= self._segment_bytes:
            self._end_events()

    def _end_events(self) -> None:
        segment, self._events_segment = self._events_segment, None
        if segment is not None:
            try:
                segment.seal()
            except OSError as error:
                self._disk_refuses(error)

    def _done_with(self, stream: Stream, count: int, dropped: bool = False) -> None:
        with self._finished:
            for _ in range(count):
                row = stream.chosen.popleft()
                self._done += row.stands_for
                self._left_out -= max(0, row.stands_for - 1)
                self._dropped += row.stands_for if dropped else 0
            self._finished.notify_all()

    def _count_bytes(self, stream: Stream, rows: Sequence[Row], size: int) -> None:
        """Take what was written off the budget; say so when the stream is thinned for it."""
        if stream.thinning is None:
            if stream.recorder is not None:
                stream.recorder.wrote(rows, size)
            return
        if not stream.thinning.wrote(size) or self._closed:
            return
        stride = stream.thinning.stride
        # Three columns a statistic: the sample and both extremes.
        last = rows[-1]
        row = 16 + 3 * sum(values.nbytes for name, (values, _) in last.values.items() if fmt.base_stat(name) == name)
        per_step = round(row / stride)
        self.event(
            "thinning",
            last.step,
            stream=stream.name,
            stride=stride,
            bytes_per_step=per_step,
            text=f"{stream.name} thinned to every {stride}th step, about {per_step} bytes per step; "
            "extremes and non-finite values of the steps left out are kept",
        )

    def _done_with_events(self, count: int, dropped: bool = False) -> None:
        with self._finished:
            for _ in range(count):
                self._events.popleft()
            self._done += count
            self._dropped += count if dropped else 0
            self._finished.notify_all()

    def _over_quota(self, stream_name: str) -> bool:
        if self._quota_bytes is None:
            return False
        limit = {
            "scalars": float(self._quota_bytes),
            "events": self._quota_bytes + EVENT_HEADROOM_BYTES,
        }.get(stream_name, BULKY_QUOTA_SHARE * self._quota_bytes)
        if self._written < limit:
            return False
        given_up = _GIVEN_UP.get(stream_name, stream_name)
        if self._note(
            f"quota {stream_name}",
            f"quota of {self._quota_bytes} bytes: {stream_name} no longer recorded after step {self._last_step} "
            f"({self._written} bytes written): {given_up}.",
        ):
            self.event("warning", self._last_step, text=self._warnings[-1])
        return True

    def _disk_refuses(self, error: OSError) -> bool:
        """Go on in memory when the disk is full. Anything else ends the writer. Always False."""
        if error.errno not in _DISK_FULL:
            raise error
        self._disk_full = True
        return False

    def _disk_is_back(self) -> None:
        if self._disk_full:
            self._disk_full = False
            if not self._closed:  # closing: nothing more is accepted, and this must not count as lost
                text = "the disk was full and has space again; rows are written again"
                self.event("warning", self._last_step, text=text)

    def _summarise(self, rows: Sequence[Row]) -> None:
        """Keep last and best loss for the list of runs, so that listing need not read the rows."""
        for row in rows:
            for name in ("train_loss", "val_loss"):
                value = fmt.as_number(row.values.get(name))
                if value is None:
                    continue
                summary = self._summary.setdefault(
                    name, {"last": value, "last_step": row.step, "best": None, "best_step": None}
                )
                summary["last"], summary["last_step"] = value, row.step
                if np.isfinite(value) and (summary["best"] is None or value < summary["best"]):
                    summary["best"], summary["best_step"] = value, row.step
        if rows[-1].step != self._last_step:
            self._last_step = rows[-1].step
            self._step_at = self._clock()

    def _heartbeat_record(self) -> dict[str, Any]:
        with self._lock:
            given = dict(self._heartbeat)
            record: dict[str, Any] = {
                "step": self._last_step,
                "time": self._clock(),
                "state": "idle",
                "step_time_s": None,
                "planned_steps": None,
                "monitor_share": None,
                "bytes_per_step": round(self._written / self._scalar_rows, 1) if self._scalar_rows else None,
                **given,
                "stride": {name: stream.thinning.stride for name, stream in self._streams.items() if stream.thinning},
                "step_at": self._step_at,
                "bytes_written": self._written,
                "rows_dropped": self._dropped,
                "summary": self._summary,
                "warnings": [*given.get("warnings", []), *self._warnings],
                **self._identity,
            }
            if self._disk_full:
                waiting = self._put - self._done - self._left_out
                record["warnings"].insert(0, f"disk full: {waiting} rows wait in memory, {self._dropped} dropped")
        return record

    def _write_heartbeat(self, **more: Any) -> None:
        record = {**self._heartbeat_record(), **more}
        path = self.folder / fmt.HEARTBEAT_FILE
        try:
            fmt.atomic_write_json(path, record)
        except OSError as error:
            self._disk_refuses(error)
            _overwrite_in_place(path, record)

    def _finish(self) -> None:
        deadline = time.monotonic() + CLOSE_SECONDS
        self._write_all(whole=True)
        while (self._done < self._put or self._dense_waits()) and time.monotonic() < deadline:
            time.sleep(0.2)
            self._write_all(whole=True)
        with self._lock:
            self._dropped += self._put - self._done
        for stream in (*self._streams.values(), *self._dense.values()):
            self._end_segment(stream)
        self._end_events()
        self._write_heartbeat(state="closing")
        self._serve([(self._requested, False)])

    def _abandon(self) -> None:
        for segment in self._open_segments():
            segment.abandon()

    def _after_fork_in_child(self) -> None:
        """The copy in a forked child writes nothing: same files, and no thread."""
        self._new_locks()
        self._closed = True
        self._abandon()
        atexit.unregister(self._atexit)


def _thinned(name: str, budget_bytes: int) -> Stream:
    return Stream(
        name,
        layers_batch,
        partial(fmt.layers_schema, kind=name),
        thinning=Thinning(budget_bytes),
        recorder=Recorder(budget_bytes // DENSE_SHARE),
    )


def _dense_of(stream: Stream) -> Stream:
    """Where the dense windows of a thinned stream go."""
    name = fmt.DENSE_STREAMS[stream.name]
    return Stream(name, layers_batch, partial(fmt.layers_schema, kind=name), recorder=stream.recorder)


def _same_layout(waiting: deque[Row], count: int) -> list[Row]:
    """The first rows, at most ``count``, that can share a segment."""
    rows: list[Row] = []
    for index in range(min(len(waiting), count)):
        row = waiting[index]
        if rows and row.layout is not rows[0].layout and row.layout != rows[0].layout:
            break
        rows.append(row)
    return rows


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _overwrite_in_place(path: Path, record: Mapping[str, Any]) -> None:
    """Change a small file without asking the full disk for a new block. A reader may see a half for a moment."""
    text = fmt.dump_json(record).encode()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        size = os.fstat(fd).st_size
        os.pwrite(fd, text.ljust(max(size - 1, 0)) + b"\n", 0)
    except OSError:
        pass  # not even that: the heartbeat grows old, which says the same
    finally:
        os.close(fd)


def _close_at_exit(reference: weakref.ref[RankWriter]) -> Callable[[], None]:
    def close() -> None:
        writer = reference()
        if writer is not None:
            writer.close()

    return close


_LIVE: weakref.WeakSet[RankWriter] = weakref.WeakSet()


def _forget_in_child() -> None:
    for writer in list(_LIVE):
        writer._after_fork_in_child()
    _LIVE.clear()


os.register_at_fork(after_in_child=_forget_in_child)
