"""Samples of the landscape keep to their share of the time, and none of them starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.allowance import Allowance


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.floats(0.001, 0.2), st.floats(0.001, 5.0), st.floats(0.01, 50.0), st.floats(0.1, 10.0))
def test_the_share_is_kept_but_for_the_first_of_each_kind(
    share: float, cheap: float, dear: float, step_s: float
) -> None:
    clock = Clock()
    allowance = Allowance(share, clock)
    cost, taken = {"cheap": cheap, "dear": dear}, {"cheap": 0, "dear": 0}
    for _ in range(400):
        clock.now += step_s
        for kind in allowance.in_turn(["cheap", "dear"]):
            if not allowance.affords(kind):
                break
            with allowance.spending(kind):
                clock.now += cost[kind]
                taken[kind] += 1
    spent = sum(cost[kind] * taken[kind] for kind in cost)
    assert spent <= share * clock.now + cheap + dear
    room = share * clock.now - (cheap + dear)  # what both of them may take beyond their first
    if room > 3 * (cheap + dear):
        assert min(taken.values()) >= 2, "the dear one has its turn, too"


def test_the_kind_that_waited_longest_comes_first() -> None:
    clock = Clock()
    allowance = Allowance(1.0, clock)
    assert allowance.in_turn(["a", "b"]) == ["a", "b"]
    with allowance.spending("a"):
        clock.now += 1
    assert allowance.in_turn(["a", "b"]) == ["b", "a"]
    with allowance.spending("b"):
        clock.now += 1
    assert allowance.in_turn(["a", "b"]) == ["a", "b"]


def test_what_fails_is_counted_all_the_same() -> None:
    clock = Clock()
    allowance = Allowance(0.5, clock)
    try:
        with allowance.spending("a"):
            clock.now += 4
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert not allowance.affords("b")
    clock.now += 4
    assert allowance.affords("b") and not allowance.affords("a")
