"""Checksums of a mapped file in blocks: what is looked at is checked, and nothing else is read for it.

A batch of a compact file is megabytes; a chart of a long run looks at a few kilobytes of it. So the seal of such a file
holds a CRC-32 for every 64 KiB, and a block is compared the first time that something in it is asked for.
"""

from __future__ import annotations

import mmap
import zlib
from typing import Any

import numpy as np

BLOCK_BYTES = 64 << 10
"""Small enough to check one for one number (0.05 ms), large enough that a seal of a gigabyte's file stays at 130 kB."""

_DIGITS = 8


def block_sums(data: mmap.mmap) -> str:
    """Eight hex digits of the CRC-32 of every block, end to end; the last block may be shorter."""
    with memoryview(data) as view:
        return "".join(f"{zlib.crc32(view[at : at + BLOCK_BYTES]):08x}" for at in range(0, len(view), BLOCK_BYTES))


class Blocks:
    """The blocks of one file and which of them were found to be whole."""

    def __init__(self, sums: str, size: int):
        self._sums, self._size = sums, size
        self._checked: dict[int, bool] = {}

    def damaged(self, data: mmap.mmap, start: int, stop: int) -> list[tuple[int, int]]:
        """(start, stop) of every block that is not as written and has a byte in ``start..stop`` (excluded)."""
        if stop <= start:
            return []
        wanted = range(start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1)
        found = [index for index in wanted if not self._is_whole(data, index)]
        return [(index * BLOCK_BYTES, min(self._size, (index + 1) * BLOCK_BYTES)) for index in found]

    def _is_whole(self, data: mmap.mmap, index: int) -> bool:
        if index not in self._checked:
            at = index * BLOCK_BYTES
            with memoryview(data) as view:
                found = f"{zlib.crc32(view[at : at + BLOCK_BYTES]):08x}"
            self._checked[index] = found == self._sums[_DIGITS * index : _DIGITS * (index + 1)]
        return self._checked[index]


def blocks_of(seal: dict[str, Any], size: int) -> Blocks | None:
    """The blocks of a file of ``size`` bytes; None when its ``seal`` does not hold a sum for every one."""
    sums = seal.get("blocks")
    if not isinstance(sums, str) or len(sums) != _DIGITS * -(-size // BLOCK_BYTES):
        return None
    return Blocks(sums, size)


def elements(damage: list[tuple[int, int]], start: int, size: int, count: int) -> np.ndarray:
    """bool[count]: which elements of ``size`` bytes each, from byte ``start`` on, lie in no damaged block."""
    whole = np.ones(count, bool)
    for low, high in damage:
        whole[max(0, low - start) // size : max(0, -(-(high - start) // size))] = False
    return whole
