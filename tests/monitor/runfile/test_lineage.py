"""The current line against a slow one that plays the attempts back step by step."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from monitor.runfile.lineage import Piece, current_line, superseded_pieces


@dataclass(frozen=True)
class Tried:
    number: int
    parent: int | None = None
    resume_step: int = 0


def test_one_attempt_is_its_own_line_with_step_0() -> None:
    assert current_line([Tried(0)], [0]) == (Piece(0, -1, None),)


def test_a_rewind_cuts_its_parent() -> None:
    attempts = [Tried(0), Tried(1, 0, 50), Tried(2, 1, 30)]
    line = current_line(attempts, [0, 1, 2])
    assert line == (Piece(0, -1, 30), Piece(2, 30, None))
    assert superseded_pieces(line, {0: 100, 1: 80, 2: 60}) == (Piece(0, 30, None), Piece(1, -1, None))


def test_a_resume_of_an_earlier_attempt_leaves_the_one_between_out() -> None:
    attempts = [Tried(0), Tried(1, 0, 50), Tried(2, 0, 70)]
    assert current_line(attempts, [0, 1, 2]) == (Piece(0, -1, 70), Piece(2, 70, None))


def test_an_attempt_that_recorded_nothing_does_not_take_over() -> None:
    assert current_line([Tried(0), Tried(1, 0, 50)], [0]) == (Piece(0, -1, None),)


def test_while_nothing_is_recorded_the_latest_attempt_is_the_line() -> None:
    assert current_line([Tried(0), Tried(1)], []) == (Piece(1, -1, None),)
    assert current_line([], []) == ()


def test_a_fresh_start_supersedes_all() -> None:
    line = current_line([Tried(0), Tried(1)], [0, 1])
    assert line == (Piece(1, -1, None),)
    assert superseded_pieces(line, {0: 10, 1: 3}) == (Piece(0, -1, None),)


def test_a_parent_that_is_no_earlier_attempt_ends_the_walk() -> None:
    assert current_line([Tried(0, 0, 5), Tried(1, 1, 5), Tried(2, 9, 5)], [0, 1, 2]) == (Piece(2, -1, None),)


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[Tried], dict[int, int]]:
    """Attempts and each one's last step; every resume is at a step that its parent's line has."""
    attempts = [Tried(0)]
    last = {0: draw(st.integers(1, 20))}
    for number in range(1, draw(st.integers(1, 6))):
        parent = draw(st.integers(0, number - 1))
        resume = draw(st.integers(0, last[parent]))
        attempts.append(Tried(number, parent, resume))
        last[number] = resume + draw(st.integers(1, 20))
    return attempts, last


def replay(number: int, attempts: list[Tried], last: dict[int, int]) -> dict[int, int]:
    """step -> attempt, by copying the parent's history up to the resume step."""
    tried = attempts[number]
    history = {} if tried.parent is None else replay(tried.parent, attempts, last)
    history = {step: owner for step, owner in history.items() if step <= tried.resume_step}
    history.update(dict.fromkeys(range(tried.resume_step + 1, last[number] + 1), number))
    return history


@given(trees())
def test_the_line_is_the_history_played_back(tree: tuple[list[Tried], dict[int, int]]) -> None:
    attempts, last = tree
    line = current_line(attempts, last)
    owners = {
        step: piece.attempt
        for piece in line
        for step in range(attempts[piece.attempt].resume_step + 1, last[piece.attempt] + 1)
        if step > piece.after and (piece.upto is None or step <= piece.upto)
    }
    assert owners == replay(len(attempts) - 1, attempts, last)
    gone = [
        (piece.attempt, step)
        for piece in superseded_pieces(line, last)
        for step in range(attempts[piece.attempt].resume_step + 1, last[piece.attempt] + 1)
        if step > piece.after
    ]
    everything = {(a.number, step) for a in attempts for step in range(a.resume_step + 1, last[a.number] + 1)}
    assert sorted(gone) == sorted(everything - {(owner, step) for step, owner in owners.items()})
