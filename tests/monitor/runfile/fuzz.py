"""Real runs, broken at random; run as ``python -m tests.monitor.runfile.fuzz FOLDER FIRST_SEED COUNT`` by test_fuzz.py.

Everything that reads a run must end with data or with one of our own errors. A process of its own, because what must
not happen (a hang, gigabytes) can be limited only there.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from monitor.diagnosis.engine import diagnose
from monitor.errors import GradiometerError
from monitor.runfile import framing
from monitor.runfile.compact import compact_run
from monitor.runfile.downsample import heat, min_max
from monitor.runfile.export import export_run
from monitor.runfile.levels import layer_window, window
from monitor.runfile.reader import Run, open_run
from monitor.runfile.store import list_runs
from monitor.runfile.trash import delete_run, restore_run, trash_run
from monitor.runfile.tree import run_tree, tree_lines

SAMPLES = sorted(path.parent for path in (Path(__file__).parents[3] / "sample_runs").glob("*/run.json"))
MEMORY_BYTES = 3 << 30
SECONDS = 60
"""For one broken run; a sound one takes one."""

Chance = random.Random


# Breaking ------------------------------------------------------------------------------------------------------------


def mutate(data: bytes, chance: Chance) -> bytes:
    """One to four random changes: flipped, cut, doubled, zeroed or replaced bytes, or an extreme number somewhere."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not changed:
            break
        start = chance.randrange(len(changed))
        stop = min(len(changed), start + chance.choice([1, 4, 8, 100]))
        match chance.randrange(7):
            case 0:
                changed[start] ^= 1 << chance.randrange(8)
            case 1:
                del changed[start:stop]
            case 2:
                changed[start:start] = changed[start:stop]
            case 3:
                changed[start:stop] = bytes(stop - start)
            case 4:
                changed[start:stop] = chance.randbytes(stop - start)
            case 5:
                extreme = chance.choice([0, 1, -1, 2**31 - 1, -(2**31)])
                changed[start : start + 4] = struct.pack("<i", extreme)
            case 6:
                del changed[start:]
    return bytes(changed)


def forge(data: bytes, chance: Chance) -> bytes:
    """Change numbers inside batches and make their checksums right again, as somebody with bad intentions would."""
    begin = 8 if data.startswith(b"ARROW1") else 0
    changed = bytearray(data)
    try:
        schema = framing.parse_schema(changed, begin)
        seed, at = zlib.crc32(changed[begin : schema.end]), schema.end
        while (message := framing.parse_message(changed, at)) is not None:
            for _ in range(chance.choice([0, 1, 3])):
                low = message.metadata_end if chance.random() < 0.7 else message.start + 8
                if message.end - low < 16:
                    continue
                place = low + 8 * chance.randrange((message.end - low) // 8)
                number = chance.choice([0, 1, -1, 2**62, -(2**63), 2**63 - 1, chance.getrandbits(63), 0x7FF0 << 48])
                changed[place : place + 8] = struct.pack("<q", number)
            changed[message.crc32_at : message.crc32_at + 8] = framing._crc32(
                changed, message.metadata_end, message.end
            )
            changed[message.head32_at : message.head32_at + 8] = framing._head32(changed, message, seed).encode()
            at = message.end
    except (framing.BadMessage, framing.Incomplete, struct.error, IndexError):
        pass  # the change itself was the end of it
    return bytes(changed)


WORDS: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    "NaN",
    "",
    "../..",
    "/etc/passwd",
    [],
    [[]],
    {},
    {"a": {}},
    "\0",
    "\ud800",
]


def confuse(value: Any, chance: Chance) -> Any:
    """A JSON value with some of its parts missing or of another kind."""
    if chance.random() < 0.08:
        return chance.choice(WORDS)
    if isinstance(value, dict):
        return {key: confuse(item, chance) for key, item in value.items() if chance.random() > 0.05}
    if isinstance(value, list):
        return [confuse(item, chance) for item in value]
    return value


def confuse_file(data: bytes, chance: Chance) -> bytes:
    """The same of a JSON file, or of every line of a file of events (without their checksums)."""
    lines = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                record.pop("crc32", None)
            lines.append(json.dumps(confuse(record, chance)).encode())
    return b"\n".join(lines) + b"\n"


def break_run(run_dir: Path, chance: Chance) -> None:
    """Do one to four bad things to the files of a run."""
    for _ in range(chance.randint(1, 4)):
        files = sorted(path for path in run_dir.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            return
        path, other = chance.choice(files), chance.choice(files)
        kind = chance.randrange(10)
        if kind <= 2:
            path.write_bytes(mutate(path.read_bytes(), chance))
        elif kind <= 5:
            change: Callable[[bytes, Chance], bytes] = forge if path.suffix in (".arrows", ".arrow") else confuse_file
            path.write_bytes(change(path.read_bytes(), chance))
        elif kind == 6:
            path.unlink()
        elif kind == 7:
            mine, theirs = path.read_bytes(), other.read_bytes()
            path.write_bytes(theirs)
            other.write_bytes(mine)
        elif kind == 8:
            duplicate(path, other, chance)
        else:
            replace(path, other, chance)


def duplicate(path: Path, other: Path, chance: Chance) -> None:
    """A second copy of a file: as the next segment, as another stream, in another folder."""
    name = chance.choice([path.name.replace("000000", "000001"), other.name, path.name.replace("scalars", "system")])
    target = chance.choice([path.parent, other.parent]) / name
    if target != path:
        shutil.copy(path, target)


def replace(path: Path, other: Path, chance: Chance) -> None:
    """Something that is no file, or is somewhere else, in place of a file."""
    path.unlink()
    match chance.randrange(4):
        case 0:
            path.mkdir()
        case 1:
            path.symlink_to(other)
        case 2:
            os.mkfifo(path)
        case 3:
            path.symlink_to("/dev/zero")


# Reading -------------------------------------------------------------------------------------------------------------


def touch_everything(run: Run) -> None:
    """Ask a run for all there is; nothing here may raise."""
    for name in (*run.names, "train_loss"):
        signal_ = run.series(name)
        run.superseded(name)
        min_max(signal_.step, signal_.value, 50)
        window(run, name, points=20)
    for stat in run.layer_stats:
        heat(run.layers(stat), 50)
        layer_window(run, stat, points=20)
        run.extents(stat)
    for stat in run.module_stats:
        run.modules(stat)
    run.frame(), run.system(), run.events(), run.landscape(), run.times(), run.checkpoints(), run.log_tail()
    assert isinstance(run.state.word, str)
    assert (run.name, run.task, run.config, run.parent, run.meta, run.planned_steps) is not None
    assert all(isinstance(problem, str) for problem in run.problems)


def use_everything(runs: Path, run_dir: Path) -> Iterator[Callable[[], Any]]:
    """All that a user may do with a run, as calls that end with data or with one of our own errors."""
    yield lambda: tree_lines(run_tree(runs))
    yield lambda: list_runs(runs)
    yield lambda: touch_everything(open_run(run_dir))
    yield lambda: diagnose(open_run(run_dir)).to_dict()
    for to in ("parquet", "csv"):
        yield lambda to=to: export_run(run_dir, runs.parent / f"export-{to}", to)  # type: ignore[misc]
    yield lambda: compact_run(run_dir, remove=True)
    yield lambda: touch_everything(open_run(run_dir))
    yield lambda: trash_run(runs, run_dir.name)
    yield lambda: restore_run(runs, run_dir.name)
    yield lambda: trash_run(runs, run_dir.name)
    yield lambda: delete_run(runs, run_dir.name)


def once(folder: Path, seed: int) -> None:
    """Break one run by ``seed`` and use it."""
    chance = Chance(seed)
    place = folder / f"seed-{seed}"
    run_dir = shutil.copytree(chance.choice(SAMPLES), place / "runs" / "one")
    if chance.random() < 0.3:
        compact_run(run_dir, remove=chance.random() < 0.5)
    break_run(run_dir, chance)
    for use in use_everything(place / "runs", run_dir):
        with contextlib.suppress(GradiometerError):
            use()
    shutil.rmtree(place)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for seed in range(first, first + count):
        print(seed, flush=True)
        signal.alarm(SECONDS)  # its default is to end the process
        once(folder, seed)
    signal.alarm(0)


if __name__ == "__main__":
    main()
