"""The run directory in a fresh process: ``python -m tests.bench.ours write|read|zoom ...``. Prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import numpy.ma  # np.unique imports it at its first call

from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from monitor.runfile.zoom import drawn, long_matrix, zoom_rows
from tests.bench.peer import folder_bytes, rows

STAT = "grad_norm_preclip"
START = 1_800_000_000.0


def begin(folder: Path, width: int) -> tuple[RankWriter, list[str]]:
    """A writer of a new run; above 100 values a step they are layers."""
    run = create_run(folder)
    begin_attempt(run)
    writer = RankWriter(run, 0, queue_rows=1_000_000)
    names = [f"layer.{index}.weight" for index in range(width)]
    if width > 100:
        writer.define_layers(names, [(8, 8)] * width)
    return writer, names


def put(writer: RankWriter, names: list[str], data: list[list[float]], first: int, last: int) -> None:
    """Steps ``first..last``, as fast as they are taken; nothing is dropped."""
    layers = len(names) > 100
    for step in range(first, last + 1):
        values = data[step % 2000]
        if layers:
            writer.layers(step, START + step, {STAT: np.array(values, np.float32)})
        else:
            writer.scalars(step, START + step, dict(zip(names, values, strict=True)))
        if step % 20_000 == 0:
            writer.flush(60)


def write(folder: Path, width: int, steps: int) -> dict[str, float]:
    writer, names = begin(folder, width)
    data, before = rows(width), folder_bytes(folder)
    began, own, all_threads = time.perf_counter(), time.thread_time(), time.process_time()
    put(writer, names, data, 1, steps)
    own = time.thread_time() - own
    writer.close()
    took = time.perf_counter() - began
    assert writer.rows_dropped == 0
    return {
        "steps": steps,
        "seconds": took,
        "bytes": folder_bytes(folder) - before,
        "training_thread_us": own / steps * 1e6,
        "writer_thread_us": (time.process_time() - all_threads - own) / steps * 1e6,
    }


def memory() -> dict[str, float]:
    """MB: the peak of everything in memory, mapped files included; and what is ours alone now."""
    text = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in text.splitlines() if line.endswith(" kB")}
    return {"peak": found.get("VmHWM", 0.0), "own": found.get("RssAnon", 0.0)}


def series(run: Run, name: str) -> np.ndarray:
    """One scalar, or one layer's column, whole."""
    if name in run.names:
        return run.series(name).value
    matrix = run.layers(STAT)
    return matrix.value[:, matrix.names.index(name)]


def read(path: Path, name: str) -> dict[str, float]:
    """Open the run and read one series whole."""
    before = memory()
    began = time.perf_counter()
    run = open_run(path)
    value = series(run, name)
    took = time.perf_counter() - began
    after = memory()
    return {
        "seconds": took,
        "steps": len(value),
        "sum": float(value.astype(float).sum()),
        "peak": after["peak"] - before["peak"],
        "own": after["own"] - before["own"],
    }


def view(run: Run, name: str, first: int | None, last: int | None) -> int:
    """2 000 points of one series, as the page draws it; the number of points."""
    if name in run.names:
        signal = drawn(run, name)
    else:
        from app.charts.measures import layer_curve

        signal = layer_curve(long_matrix(run, STAT) or run.layers(STAT), name)
    if hasattr(signal, "zoom"):
        return len(signal.zoom(first, last, 1000).step)
    inside = signal.between(first, last)
    return len(zoom_rows(inside.step, inside.value, 1000).step)


def zoom(path: Path, name: str, steps: int) -> dict[str, float]:
    """Open the run and make the first view of one series; then other stretches of it, and the first of other series."""
    before = memory()
    began = time.perf_counter()
    run = open_run(path)
    points = view(run, name, None, None)
    first = time.perf_counter() - began
    after = memory()
    times: list[float] = []
    random = np.random.default_rng(1)
    for _ in range(15):
        low, high = sorted(random.integers(1, steps, 2).tolist())
        began = time.perf_counter()
        view(run, name, low, high)
        times.append(time.perf_counter() - began)
    others: list[float] = []
    for index in range(4, 9):
        began = time.perf_counter()
        view(run, f"layer.{index}.weight", None, None)
        others.append(time.perf_counter() - began)
    return {
        "first": first,
        "zoom": float(np.median(times)),
        "other": float(np.median(others)),
        "points": points,
        "peak": after["peak"] - before["peak"],
        "own": after["own"] - before["own"],
    }


def page(path: Path) -> dict[str, float]:
    """Open the run and make the message with all its charts; again after nothing happened."""
    from app import frame
    from app.charts.story import story_charts

    began = time.perf_counter()
    run = open_run(path)
    window = frame.Window(1000)
    message = frame.build(story_charts(run), window)
    first = time.perf_counter() - began
    assert message is not None
    header, _ = frame.unpack(message)
    have = header["versions"] | {chart["id"]: chart["version"] for chart in header["charts"]}
    again: list[float] = []
    for _ in range(7):
        began = time.perf_counter()
        run.refresh()
        assert frame.build(story_charts(run), window, have=have) is None
        again.append(time.perf_counter() - began)
    return {
        "first": first,
        "again": float(np.median(again)),
        "charts": len(header["charts"]),
        "kb": len(message) / 1024,
    }


def profile(command: str, path: Path, name: str) -> str:
    """Where the time of one opening and reading goes: the costliest functions."""
    import cProfile
    import io
    import pstats

    watched = cProfile.Profile()
    watched.enable()
    run = open_run(path)
    if command == "read":
        series(run, name)
    else:
        view(run, name, None, None)
    watched.disable()
    text = io.StringIO()
    pstats.Stats(watched, stream=text).sort_stats("tottime").print_stats(7)
    return "\n".join(line for line in text.getvalue().splitlines() if line.strip()[:1].isdigit())


if __name__ == "__main__":
    command, folder, *given = sys.argv[1:]
    if command == "write":
        result = write(Path(folder), int(given[0]), int(given[1]))
    elif command == "read":
        result = read(Path(folder), given[0])
    elif command == "page":
        result = page(Path(folder))
    elif command == "profile":
        result = {"text": profile(given[1], Path(folder), given[0])}
    else:
        result = zoom(Path(folder), given[0], int(given[1]))
    print(json.dumps(result), flush=True)
