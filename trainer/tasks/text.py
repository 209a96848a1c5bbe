"""Text as tokens: Python's standard library or the user's own, without repeats, split by file for honest validation."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monitor.errors import ConfigError
from trainer.config import TaskConfig
from trainer.tasks.base import Batch
from trainer.tasks.bpe import encoded

BYTES = tuple(bytes([byte]) for byte in range(256))
"""The vocabulary when every byte is a token."""
LINES_TOGETHER = 3
"""A near-duplicate is told by runs of that many lines: single ones, such as ``return None``, recur everywhere."""
SEPARATOR = b"\0"
"""Ends every document. Text never contains it, since a file with a zero byte counts as binary."""
SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)
"""Left out of the standard library: what differs between machines, tests, and large tables that are not code."""
PROBE_BYTES = 1 << 16
"""How much of a file is looked at to tell text from binary, as git does with its first 8000 bytes."""


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens to learn from, and tokens held out: uint8[N] each when they are bytes, int32[N] otherwise."""

    train: Tensor
    val: Tensor
    summary: str
    vocabulary: tuple[bytes, ...]
    """What each token number stands for; the first 256 are the bytes."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Tokens cut into consecutive sequences: example i is tokens ``[i*T, i*T + T]``, the last of them only a target."""

    data: Tensor
    """uint8[N] or int32[N]."""
    seq_len: int

    def __len__(self) -> int:
        return (len(self.data) - 1) // self.seq_len

    def batch(self, indices: Tensor) -> Batch:
        """The examples int64[B] ``indices``."""
        starts = indices.unsqueeze(1) * self.seq_len
        windows = self.data[starts + torch.arange(self.seq_len + 1)].long()  # [B, T + 1]
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())


def load_text(config: TaskConfig) -> Text:
    """The text that ``task.data`` names, or the standard library's source.

    Raises:
        ConfigError: it does not exist, is empty, is binary, or is too short for one sequence.
    """
    chosen = config.data_path()
    if chosen is None:
        root = Path(sysconfig.get_path("stdlib"))
        return _split(root, sorted(_standard_library(root)), config, "Python's standard library")
    if chosen.is_file():
        return _split(chosen.parent, [chosen], config, str(chosen))
    return _split(chosen, sorted(_text_candidates(chosen)), config, str(chosen))


def _standard_library(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _text_candidates(root: Path) -> Iterator[Path]:
    """Every regular file below ``root`` that is not hidden; links to folders are not followed."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__pycache__")
        yield from (path for name in names if not name.startswith(".") and (path := Path(folder, name)).is_file())


def _split(root: Path, files: list[Path], config: TaskConfig, what: str) -> Text:
    """Read ``files`` once each, without repeats, in an order that depends only on their relative names.

    Validation takes whole files first, so that no document is on both sides; a single file is cut near its end instead.
    """
    if not files:
        raise ConfigError(f"task.data = {what}: holds no files. Give a text file or a folder of text files.")
    documents, skipped, repeated = _documents(root, files, config)
    total = sum(map(len, documents))
    if total == 0:
        found = f"{skipped} binary or unreadable of {len(files)} files" if skipped else "no bytes"
        raise ConfigError(f"task.data = {what}: no text in it ({found}). Give a text file or a folder of text files.")
    held_out = int(total * config.val_fraction)
    if len(documents) == 1:
        train, val = documents[0][: total - held_out], documents[0][total - held_out :]
    else:
        count = _files_to_hold_out(documents, held_out)
        val, train = b"".join(documents[:count]), b"".join(documents[count:])
    if config.tokens == "bytes":
        vocabulary, tokens = BYTES, [torch.from_numpy(np.frombuffer(side, np.uint8).copy()) for side in (train, val)]
    else:
        learnt = encoded(train, val, config.vocab_size)
        vocabulary, tokens = learnt.words, [torch.from_numpy(learnt.train), torch.from_numpy(learnt.val)]
    if min(map(len, tokens)) < config.seq_len + 1:
        unit = "bytes" if config.tokens == "bytes" else "tokens"
        raise ConfigError(
            f"task.data = {what}: {total} bytes of text leave {len(tokens[0])} {unit} for training and "
            f"{len(tokens[1])} for validation, and one sequence needs {config.seq_len + 1}. "
            "Give more text, or lower task.seq_len."
        )
    sizes = f"{len(train) / 2**20:.1f} MiB to train on, {len(val) / 2**20:.2f} MiB held out"
    notes = [
        f", {len(train) / len(tokens[0]):.2f} bytes per token" if config.tokens == "bpe" else "",
        f", {repeated} repeated files left out" if repeated else "",
        f", {skipped} binary or unreadable files left out" if skipped else "",
    ]
    summary = f"{what}: {len(documents)} documents, {sizes}{''.join(notes)}"
    return Text(tokens[0], tokens[1], summary, vocabulary)


def _documents(root: Path, files: list[Path], config: TaskConfig) -> tuple[list[bytes], int, int]:
    """Distinct texts, each ended by the separator, until the cap; how many files were not text, how many repeats.

    The order is by a hash of the relative name: a cap or a split then takes a fair share of every folder.
    """
    documents: list[bytes] = []
    seen: set[bytes] = set()
    known: set[int] = set()
    skipped = repeated = 0
    room = int(config.max_data_mib * 2**20)
    for path in sorted(
        files, key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode(errors="replace")).digest()
    ):
        if room <= 0:
            break
        content = _read_text(path, room)
        if content is None:
            skipped += 1
        elif content:
            digest = hashlib.sha256(content).digest()
            if digest in seen or (config.near_duplicates and _is_near(content, known, config.near_duplicates)):
                repeated += 1
                continue
            seen.add(digest)
            documents.append(content + SEPARATOR)
            room -= len(content)
    return documents, skipped, repeated


def _is_near(content: bytes, known: set[int], share: float) -> bool:
    """Whether at least ``share`` of the runs of lines in ``content`` are ``known``; when not, they become so.

    Blank lines and indentation do not count. Exact runs instead of MinHash signatures: the text fits in memory anyway.
    """
    lines = [line for raw in content.splitlines() if (line := raw.strip())]
    runs = {hash(tuple(lines[start : start + LINES_TOGETHER])) for start in range(len(lines) - LINES_TOGETHER + 1)}
    if runs and len(runs & known) >= share * len(runs):
        return True
    known |= runs
    return False


def _read_text(path: Path, most_bytes: int) -> bytes | None:
    """The file's bytes, at most ``most_bytes``; None when it is binary or cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes)
    except OSError:
        return None
    return None if b"\0" in content[:PROBE_BYTES] else content.replace(b"\0", b"")


def _files_to_hold_out(documents: list[bytes], held_out: int) -> int:
    """How many of the first documents make up ``held_out`` bytes; at least one is left on either side."""
    count, size = 1, len(documents[0])
    while size < held_out and count < len(documents) - 1:
        size += len(documents[count])
        count += 1
    return count
