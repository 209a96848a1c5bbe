"""One file of one stream, as its writer holds it."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from monitor.runfile import format as fmt


class Segment:
    """One open file of one stream. Appends whole blocks or nothing."""

    def __init__(self, folder: Path, stream: str, index: int):
        self.path = folder / fmt.segment_name(stream, index)
        self.index = index
        self.size = 0
        self.rows = 0
        self.batches = 0
        self.first_step: int | None = None
        self.last_step: int | None = None
        self.crc = 0
        # O_EXCL: two writers can never share a segment.
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def append(self, block: bytes | bytearray, steps: Sequence[int | None] = ()) -> None:
        """Write ``block`` at the end in one write; ``steps`` are the steps of its rows.

        Raises:
            OSError: it did not fit; the file is cut back to what it was.
        """
        view = memoryview(block)
        done = 0
        try:
            while done < len(view):  # one turn, unless the disk is nearly full
                done += os.pwrite(self.fd, view[done:], self.size + done)
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += done
        self.crc = zlib.crc32(view, self.crc)
        if steps:
            self.batches += 1
            self.rows += len(steps)
            known = [step for step in steps if step is not None]
            if known:
                self.first_step = known[0] if self.first_step is None else self.first_step
                self.last_step = known[-1]

    def sync(self) -> None:
        os.fdatasync(self.fd)

    def seal(self) -> None:
        """Make the segment durable, say what it holds, and close it."""
        try:
            self.sync()
            fmt.atomic_write_json(
                self.path.with_name(self.path.name + fmt.SEAL_SUFFIX),
                {
                    "file": self.path.name,
                    "rows": self.rows,
                    "batches": self.batches,
                    "first_step": self.first_step,
                    "last_step": self.last_step,
                    "bytes": self.size,
                    "crc32": f"{self.crc:08x}",
                },
            )
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the descriptor, leaving the segment as a live one that does not grow any more."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # an error here has been met by a write before
                os.close(fd)
