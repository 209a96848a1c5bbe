"""Attempts, resumes and rewinds: which steps of which attempt make up the run as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class HasLineage(Protocol):
    """What the current line is computed from."""

    @property
    def number(self) -> int: ...
    @property
    def parent(self) -> int | None: ...
    @property
    def resume_step(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """The steps ``after < step <= upto`` of one attempt."""

    attempt: int
    after: int
    """The attempt's resume step: the parent's last step that still counts. -1 for an attempt without a parent, so that
    step 0 (before training) is in."""
    upto: int | None
    """None: to the end of what the attempt recorded."""


def current_line(attempts: Iterable[HasLineage], recorded: Iterable[int]) -> tuple[Piece, ...]:
    """The pieces of the current line, oldest first.

    Each attempt counts from its resume step until a later attempt takes over. An attempt takes over with the first
    step it records: one that died before does not hide what its parent did. While none has recorded a step, the line is
    that of the latest attempt.

    Args:
        attempts: all attempts of the run.
        recorded: numbers of the attempts that have recorded at least one step.
    """
    known = {attempt.number: attempt for attempt in attempts}
    candidates = [number for number in recorded if number in known] or list(known)
    pieces: list[Piece] = []
    number: int | None = max(candidates, default=None)
    upto: int | None = None
    while number is not None:
        attempt = known[number]
        # A parent is always an earlier attempt; anything else in the file would make the walk endless.
        parent = attempt.parent
        parent = parent if parent is not None and parent < number and parent in known else None
        after = attempt.resume_step if parent is not None else -1
        if upto is None or upto > after:
            pieces.append(Piece(number, after, upto))
        upto = after if upto is None else min(upto, after)
        number = parent
    return tuple(reversed(pieces))


def superseded_pieces(line: Iterable[Piece], last_steps: Mapping[int, int]) -> tuple[Piece, ...]:
    """What the attempts recorded outside the current line, by attempt.

    Args:
        line: the current line.
        last_steps: last recorded step of every attempt that has recorded one.
    """
    kept = {piece.attempt: piece for piece in line}
    gone: list[Piece] = []
    for number, last in sorted(last_steps.items()):
        piece = kept.get(number)
        if piece is None:
            gone.append(Piece(number, -1, None))
        elif piece.upto is not None and last > piece.upto:
            gone.append(Piece(number, piece.upto, None))
    return tuple(gone)
