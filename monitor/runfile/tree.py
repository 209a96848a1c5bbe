"""Runs and their attempts as a tree: what resumed from where, what was superseded, which run was forked from which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.lineage import superseded_pieces
from monitor.runfile.reader import Run, open_run
from monitor.runfile.store import RunSummary, list_runs

MAX_DEPTH = 100
"""A run that is more forks than this away from the first stands alone, as do runs whose records form a circle."""


@dataclass(frozen=True, slots=True)
class AttemptNode:
    """One attempt of a run."""

    number: int
    parent: int | None
    """The attempt that this one goes on from; None for a fresh start."""
    resume_step: int
    """Last step of the parent that still counts; 0 without a parent."""
    first_step: int | None
    """First recorded step; None when nothing was recorded."""
    last_step: int | None
    superseded: tuple[int, int] | None
    """First and last recorded step that a later attempt has taken over; None when all of them count."""
    outcome: str | None
    """``finished``, ``stopped`` or ``crashed`` as the exit record says; None without one."""


@dataclass(frozen=True, slots=True)
class RunNode:
    """One run, its attempts, and the runs forked from it."""

    summary: RunSummary
    attempts: tuple[AttemptNode, ...]
    forked_from: str | None
    """Id of the parent run, whether it is in the folder or not."""
    forked_at: int | None
    """The parent's step that the fork goes on from."""
    forks: tuple[RunNode, ...]
    """By creation, oldest first."""


def run_tree(runs_dir: str | os.PathLike[str] | None = None) -> list[RunNode]:
    """The runs of a folder that were not forked from another one in it, newest first, each with its forks.

    A run that cannot be read is a node without attempts; its summary says why.
    """
    summaries = list_runs(runs_dir)
    read = {summary.id: _read(summary) for summary in summaries}
    children: dict[str | None, list[RunSummary]] = {}
    for summary in summaries:
        above = read[summary.id].parent
        is_fork = above in read and _depth(summary.id, read) <= MAX_DEPTH
        children.setdefault(above if is_fork else None, []).append(summary)

    def node(summary: RunSummary) -> RunNode:
        forks = tuple(node(child) for child in reversed(children.get(summary.id, ())))
        own = read[summary.id]
        return RunNode(summary, own.attempts, own.parent, own.step, forks)

    return [node(summary) for summary in children.get(None, ())]


@dataclass(frozen=True, slots=True)
class _Read:
    """What the tree needs of one run."""

    attempts: tuple[AttemptNode, ...] = ()
    parent: str | None = None
    step: int | None = None


def _read(summary: RunSummary) -> _Read:
    try:
        run = None if summary.problem else open_run(summary.path)
    except RunError:
        run = None
    if run is None:
        return _Read()
    record = run.parent or {}
    name, step = record.get("run"), record.get("step")
    plain = isinstance(step, int) and not isinstance(step, bool)
    return _Read(_attempts(run), name if isinstance(name, str) else None, step if plain else None)


def _depth(name: str, read: dict[str, _Read]) -> int:
    """Forks from the root of the tree to ``name``, counted no further than just beyond what is shown."""
    depth, above = 0, read[name].parent
    while above in read and depth <= MAX_DEPTH:
        depth, above = depth + 1, read[above].parent
    return depth


def _attempts(run: Run) -> tuple[AttemptNode, ...]:
    recorded = {attempt.number: _recorded(run, attempt.number) for attempt in run.attempts}
    last_steps = {number: steps[1] for number, steps in recorded.items() if steps is not None}
    gone = {piece.attempt: piece.after for piece in superseded_pieces(run.line, last_steps)}
    nodes: list[AttemptNode] = []
    for attempt in run.attempts:
        first, last = recorded[attempt.number] or (None, None)
        superseded = None
        if first is not None and last is not None and attempt.number in gone:
            superseded = (max(first, gone[attempt.number] + 1), last)
        outcome = (attempt.exit or {}).get("outcome")
        nodes.append(
            AttemptNode(
                attempt.number,
                attempt.parent,
                attempt.resume_step,
                first,
                last,
                superseded,
                outcome if outcome in fmt.OUTCOMES else None,
            )
        )
    return tuple(nodes)


def _recorded(run: Run, attempt: int) -> tuple[int, int] | None:
    """First and last step in the scalars of any rank."""
    steps = [rank.scalars.step.view() for rank in run.ranks(attempt).values()]
    ends = [(int(step[0]), int(step[-1])) for step in steps if len(step)]
    return (min(first for first, _ in ends), max(last for _, last in ends)) if ends else None


def tree_lines(nodes: Sequence[RunNode], indent: str = "") -> list[str]:
    """The tree as text, a line per run and per attempt."""
    lines: list[str] = []
    for node in nodes:
        lines.append(f"{indent}{node.summary.id}  {node.summary.problem or node.summary.state.word}{_fork(node)}")
        lines += [f"{indent}  {_attempt_line(attempt)}" for attempt in node.attempts]
        lines += tree_lines(node.forks, indent + "    ")
    return lines


def _fork(node: RunNode) -> str:
    if node.forked_from is None:
        return ""
    at = f" after step {node.forked_at}" if node.forked_at is not None else ""
    return f"  forked from {node.forked_from}{at}"


def _attempt_line(attempt: AttemptNode) -> str:
    if attempt.parent is None:
        words = [f"attempt {attempt.number}: from the start"]
    else:
        words = [f"attempt {attempt.number}: from attempt {attempt.parent} after step {attempt.resume_step}"]
    steps = "nothing recorded" if attempt.last_step is None else f"steps {attempt.first_step}-{attempt.last_step}"
    words.append(steps)
    if attempt.superseded is not None:
        words.append(f"superseded {attempt.superseded[0]}-{attempt.superseded[1]}")
    if attempt.outcome is not None:
        words.append(attempt.outcome)
    return ", ".join(words)


def tree_rows(nodes: Sequence[RunNode]) -> list[dict[str, object]]:
    """The tree as plain JSON."""
    return [
        {
            "id": node.summary.id,
            "state": node.summary.state.word,
            "problem": node.summary.problem,
            "forked_from": node.forked_from,
            "forked_at": node.forked_at,
            "attempts": [
                {
                    "attempt": attempt.number,
                    "parent": attempt.parent,
                    "resume_step": attempt.resume_step,
                    "first_step": attempt.first_step,
                    "last_step": attempt.last_step,
                    "superseded": list(attempt.superseded) if attempt.superseded else None,
                    "outcome": attempt.outcome,
                }
                for attempt in node.attempts
            ],
            "forks": tree_rows(node.forks),
        }
        for node in nodes
    ]
