"""Every way of watching sees the same gradients, and the table says what was measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.bench.overhead import Cost, comparison, costs, goals
from tests.bench.watchers import measure

STEPS = 2


@pytest.mark.parametrize("name", ["foreach", "composer", "ours-norms", "ours-standard"])
def test_everybody_sees_the_same_norms(tmp_path: Path, name: str) -> None:
    _, slow = measure("item", "tiny", 1, STEPS, tmp_path / "item")
    times, method = measure(name, "tiny", 1, STEPS, tmp_path / "other")
    assert slow.seen.keys() == method.seen.keys() == set(range(1, 2 * STEPS + 1))
    for step, norms in slow.seen.items():
        assert method.seen[step] == pytest.approx(norms, rel=1e-4), step
    assert len(times.call) == STEPS
    assert all(len(block) == 1 for block in (*times.wall.values(), *times.cpu.values()))


def test_a_method_is_measured_in_a_process_of_its_own_and_an_absent_one_told_of() -> None:
    absent_one = [] if importlib.util.find_spec("cockpit") else ["cockpit"]
    found, absent = costs("tiny", ["bare", *absent_one], 2, STEPS, 1)
    assert list(absent) == absent_one
    assert len(found["bare"].cpu) == 2 and found["bare"].in_call_ms is None
    assert "absent" in comparison("title", found, absent) or not absent_one


def test_ratios_are_within_a_round_and_goals_of_the_design() -> None:
    times = {
        "cpu": {"bare": [10.0, 20.0, 10.0], "watched": [11.0, 24.0, 10.0]},
        "wall": {"bare": [1.0, 1.0, 1.0], "watched": [3.0, 2.0, 1.0]},
    }
    peer, mine, unit = Cost.of(times, []), Cost.of(times, [0.1, 0.1, 0.4]), Cost.of(times, [0.1])
    assert (peer.cpu, peer.wall) == ([1.0, 1.1, 1.2], [1.0, 2.0, 3.0])
    assert (peer.own_ms, mine.own_ms) == (1.0, pytest.approx(0.2))
    found = {"limit": unit, "ours-norms": mine, "ours-standard": mine, "wandb-watch-1": peer}
    lines = {line.what: line for line in goals("1M", found)}
    assert [round(line.measured, 3) for line in lines.values()] == [2.0, 0.2, 1.02]
    assert [line.goal for line in lines.values()] == [1.3, 0.05, 1.03]
    rows = comparison("title", found, {"aim-log": "No module named 'aim'"}).splitlines()
    assert "1.100 (1.000 to 1.200)" in rows[-2] and "in hooks" in rows[-2] and "No module" in rows[-1]
