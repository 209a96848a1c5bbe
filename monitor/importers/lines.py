"""Lines of a text file in bounded memory, whatever a terminal, a progress bar or an editor left in it."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path

from monitor.importers.rows import Account
from monitor.runfile.format import open_inside

CHUNK = 1 << 20
_CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])|\x00")
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def encoding_of(head: bytes) -> str:
    """The encoding that a byte-order mark declares (PowerShell's ``tee`` writes UTF-16), else UTF-8."""
    return next((name for mark, name in _BOMS if head.startswith(mark)), "utf-8")


def read_text(path: Path) -> Iterator[str]:
    """The file as text, in pieces of about a MiB; bytes that are no text become U+FFFD.

    Raises:
        RunError: a link, no regular file, or no permission.
    """
    fd = open_inside(path)
    with os.fdopen(fd, "rb") as file:
        chunk = file.read(CHUNK)
        decoder = codecs.getincrementaldecoder(encoding_of(chunk))("replace")
        while chunk:
            yield decoder.decode(chunk)
            chunk = file.read(CHUNK)
        yield decoder.decode(b"", final=True)


def read_lines(path: Path, account: Account, longest: int = CHUNK) -> Iterator[str]:
    """The lines of a file without their ends; of longer ones than ``longest`` characters nothing, and it is said.

    A carriage return ends a line too: a progress bar is one line per state.
    """
    rest, skipping = "", False
    for piece in read_text(path):
        text = rest + piece
        *whole, rest = re.split(r"\r\n|[\n\r]", text) if "\r" in text else text.split("\n")
        if skipping and whole:
            whole, skipping = whole[1:], False
        for line in whole:
            if len(line) <= longest:
                yield line
            else:
                _too_long(path, account, longest)
        if len(rest) > longest:
            if not skipping:
                _too_long(path, account, longest)
            rest, skipping = "", True
    if rest and not skipping:
        yield rest


def _too_long(path: Path, account: Account, longest: int) -> None:
    account.say("long line", f"{path}: a line has more than {longest:,} characters and is left out.")


def plain(line: str) -> str:
    """``line`` without colours and other terminal codes."""
    return _CONTROL.sub("", line) if "\x1b" in line or "\x00" in line else line
