"""The profile of the monitor's parts: each part's own time, and every part of a step in it."""

from __future__ import annotations

from tests.bench.overhead import part_table
from tests.bench.parts import BESIDE, HOOKS, ROW, SelfTimes, profile


def test_what_is_called_within_a_part_is_not_its_own() -> None:
    now = [0]

    def work(ns: int) -> None:
        now[0] += ns

    times = SelfTimes(lambda: now[0])
    inner = times.around(lambda: work(5), "inner")

    def outer() -> None:
        work(1)
        inner()
        work(2)
        inner()

    times.around(outer, "outer")()
    work(100)  # nobody's
    inner()
    assert times.spent == {"outer": 3, "inner": 15}


def test_every_part_of_a_step_is_in_the_profile() -> None:
    norms, standard = profile("tiny", "norms", 20), profile("tiny", "standard", 20)
    assert {HOOKS, ROW, *BESIDE, "finding the gradients", "their norms (_foreach_norm)"} <= norms.keys()
    assert all(spent > 0 for spent in (*norms.values(), *standard.values()))
    probes = {name for name in standard if name.startswith("probe: ")}
    assert "probe: weight and update norms" in probes and not probes & norms.keys()
    lines = part_table("title", norms).splitlines()
    assert len(lines) == 2 + len(norms)
    assert sum(float(line.split()[0]) for line in lines[4:]) > 0.9 * float(lines[3].split()[0])
