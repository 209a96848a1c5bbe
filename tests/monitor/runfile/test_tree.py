"""The tree of attempts and forks, checked against runs made with known rewinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monitor.runfile import tree
from monitor.runfile.tree import RunNode, run_tree, tree_lines, tree_rows
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.conftest import START, write_steps


def make_run(runs: Path, run_id: str, at: float = 0, parent: dict[str, Any] | None = None) -> Path:
    return create_run(runs, run_id=run_id, parent=parent, now=lambda: START + at)


def record(run: Path, first: int, last: int, *, parent: int | None = None, outcome: str | None = None) -> None:
    number = begin_attempt(run, parent=parent, resume_step=first - 1 if parent is not None else 0)
    if last >= first:
        writer = RankWriter(run, number)
        write_steps(writer, first, last)
        writer.close()
    if outcome:
        write_exit(run, number, outcome=outcome, step=last, reason="so")


def test_attempts_with_what_a_later_one_has_taken_over(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one")
    record(run, 1, 30, outcome="crashed")
    record(run, 21, 40, parent=0, outcome="stopped")
    record(run, 11, 25, parent=0, outcome="finished")  # goes back behind the second one's start
    record(run, 26, 25, parent=2)  # died before its first step: supersedes nothing
    (node,) = run_tree(tmp_path)
    told = [(a.number, a.parent, a.resume_step, a.first_step, a.last_step, a.superseded) for a in node.attempts]
    assert told == [
        (0, None, 0, 1, 30, (11, 30)),
        (1, 0, 20, 21, 40, (21, 40)),
        (2, 0, 10, 11, 25, None),
        (3, 2, 25, None, None, None),
    ]
    assert tree_lines([node])[1:] == [
        "  attempt 0: from the start, steps 1-30, superseded 11-30, crashed",
        "  attempt 1: from attempt 0 after step 20, steps 21-40, superseded 21-40, stopped",
        "  attempt 2: from attempt 0 after step 10, steps 11-25, finished",
        "  attempt 3: from attempt 2 after step 25, nothing recorded",
    ]


def ids(nodes: tuple[RunNode, ...] | list[RunNode]) -> list[Any]:
    return [(node.summary.id, ids(node.forks)) for node in nodes]


def test_forks_stand_under_their_parent_and_roots_are_newest_first(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", 1, {"run": "a", "attempt": 0, "step": 5})
    make_run(tmp_path, "c", 2, {"run": "a", "attempt": 0, "step": 7})
    make_run(tmp_path, "d", 3, {"run": "b", "attempt": 0, "step": 9})
    make_run(tmp_path, "e", 4, {"run": "gone", "attempt": 0, "step": 1})
    (tmp_path / "broken").mkdir()
    nodes = run_tree(tmp_path)
    assert ids(nodes) == [("e", []), ("a", [("b", [("d", [])]), ("c", [])]), ("broken", [])]
    lines = tree_lines(nodes)
    assert "forked from gone after step 1" in lines[0]
    assert any(line.startswith("        d ") and "forked from b after step 9" in line for line in lines)
    assert json.loads(json.dumps(tree_rows(nodes)))[1]["forks"][0]["forked_at"] == 5


def test_records_that_lead_in_a_circle_do_not_hang_and_hide_nothing(tmp_path: Path) -> None:
    for name, parent in (("a", "b"), ("b", "a"), ("c", "c"), ("d", "a")):
        make_run(tmp_path, name, parent={"run": parent, "attempt": 0, "step": "x"})
    nodes = run_tree(tmp_path)
    assert sorted(node.summary.id for node in nodes) == ["a", "b", "c", "d"]
    assert all(node.forks == () and node.forked_at is None for node in nodes)


def test_a_long_chain_of_forks_is_cut(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tree, "MAX_DEPTH", 3)
    for index in range(8):
        make_run(tmp_path, f"r{index}", index, {"run": f"r{index - 1}"})
    nodes = run_tree(tmp_path)
    shown: list[str] = []

    def walk(nodes: Any) -> None:
        for node in nodes:
            shown.append(node.summary.id)
            walk(node.forks)

    walk(nodes)
    assert sorted(shown) == [f"r{index}" for index in range(8)]
