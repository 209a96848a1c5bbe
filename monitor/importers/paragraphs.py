"""Rows that a text log spreads over lines of one name and one number each, as RSL-RL, Coqui and rlpyt print them.

A paragraph begins with a line that does nothing but count, or it is a run of such lines in which one counts or before
each of which stands a bar. It becomes one line of names and numbers; what turns out to be none is left as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

LEAST_ENTRIES, LEAST_WITH_HEAD = 4, 3
"""Entries that make a paragraph; our judgement."""
MOST_LINES = 200
MOST_REMARKS = 3
"""Other lines inside one, such as an entry that was broken into two."""
_HEAD = re.compile(
    r"[\W_]*(?:learning |training )?(?P<word>iteration|iter|itr|epoch|step|update|episode)[\s:#=]*(?P<count>\d{1,15})"
    r"(?P<total>\s*/\s*\d{1,15})?(?:\W+global_step\W+(?P<all>\d{1,15}))?[\W_]*",
    re.I,
)
_TAG = re.compile(
    r".*\[(?P<word>step|batch|iteration)=(?P<count>\d{1,15})(?P<total>/\d{1,15})?(?:,epoch=\d+)?\]:?\s*", re.I
)
"""How OLMo and Composer begin one."""
_STAMPED_BAR = re.compile(r"\s*(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.,]\d+\s*)?\|[\s>|]*")
_ENTRY = re.compile(
    r"\s*(?P<name>[A-Za-z][^:|=\[\]{}\"']{0,80}?)\s*(?::|=|\s{2,})\s*"
    r"(?P<number>[-+]?(?:\d[\d,]*\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|nan|inf))"
    r"(?:\s*\([^()]*\)|(?P<unit>\s?[A-Za-z/%]{1,8}))?\s*\|?\s*",
    re.I,
)
LONGEST_ENTRY = 200
_EDGE = re.compile(r"\s*([-#=*_])\1{7,}\s*")
_MEASURES = re.compile(r"loss(?![_ ](?:scale|weight|fn|type|coef|lambda|func))", re.I)
_COUNTS = re.compile(r"(?:.*[/ _])?(?:iteration|iter|itr|epoch|global_step|total_?steps|total_?timesteps)", re.I)


@dataclass(slots=True)
class _Paragraph:
    head: str = ""
    """``iteration 7/100``; empty when there is no line that does nothing but count."""
    entries: dict[str, str] = field(default_factory=dict)
    barred: int = 0
    """Entries with a bar before them."""
    lines: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def end(self) -> Iterator[str]:
        """One line, then the remarks; or all lines as they were."""
        names = self.entries
        counted = bool(self.head) or self.barred == len(names) or any(_COUNTS.fullmatch(name) for name in names)
        enough = len(names) >= (LEAST_WITH_HEAD if self.head else LEAST_ENTRIES)
        if enough and counted and any(_MEASURES.search(name) for name in names):
            parts = [self.head] if self.head else []
            yield " | ".join([*parts, *(f"{name}: {number}" for name, number in names.items())])
            yield from self.remarks
        else:
            yield from self.lines


def _count(head: re.Match[str]) -> str:
    """``iteration 7/100``. A batch of Composer's is none of an epoch."""
    fields = head.groupdict()
    if fields.get("all"):
        return f"global_step {fields['all']}"
    word = "step" if fields["word"].lower() == "batch" else fields["word"].lower()
    return f"{word} {fields['count']}{fields['total'] or ''}"


def one_line_each(lines: Iterable[str]) -> Iterator[str]:
    """``lines``, where those of a paragraph are one line."""
    now = _Paragraph()
    for line in lines:
        short = len(line) < LONGEST_ENTRY and ", " not in line and " - " not in line  # most rows of a log are not
        if short and (head := _HEAD.fullmatch(line) or _TAG.fullmatch(line)):
            yield from now.end()
            now = _Paragraph(_count(head), lines=[line])
            continue
        bar = _STAMPED_BAR.match(line) if short else None
        entry = _ENTRY.fullmatch(line, bar.end() if bar else 0) if short else None
        if entry is None:
            if not now.lines:
                yield line
                continue
            now.lines.append(line)
            blank = not line.strip()
            if not blank:
                now.remarks.append(line)
            if not now.head or _EDGE.fullmatch(line) or len(now.remarks) > MOST_REMARKS or (blank and now.entries):
                yield from now.end()
                now = _Paragraph()
            continue
        if entry["name"] in now.entries or len(now.lines) >= MOST_LINES:
            yield from now.end()
            now = _Paragraph()
        now.entries[entry["name"]] = entry["number"] + (entry["unit"] or "")
        now.barred += bar is not None
        now.lines.append(line)
    yield from now.end()
