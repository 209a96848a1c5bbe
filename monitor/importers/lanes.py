"""Which rows belong together: a counter that goes back is a resume, another training, another process, or a late row.

A lane is what one counter wrote without going back. Which of these a new lane is shows only when it has gone on for a
while, so that its first rows are held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from monitor.importers.rows import Account, Row

HELD = 64
"""Rows after which a new lane is decided, and a silent one closed; our judgement."""
MOST_RUNS, MOST_ATTEMPTS = 200, 1000
FEW = 3
"""Rows that are late or repeated rather than a lane of their own, when their neighbours go on."""

Kind = Literal["undecided", "written", "repeats"]


@dataclass(slots=True)
class Lane:
    """One counter: ``run`` and ``attempt`` say where its rows go."""

    run: int
    attempt: int
    resume_step: int | None
    """None: nothing comes before it."""
    kind: Kind
    before: Lane | None = None
    first: int = 0
    top: int = -1
    interval: int = 0
    """Steps between two rows: the least of the last few, as one row may be missing or late."""
    touched: int = 0
    since: int = 0
    """Row of the source that it began with."""
    fresh: bool = False
    last: dict[str, int] = field(default_factory=dict)
    gaps: deque[int] = field(default_factory=lambda: deque(maxlen=4))
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=512))
    held: list[Row] = field(default_factory=list)

    def accepts(self, row: Row) -> bool:
        """Whether no value goes back, and at least one is new: training and evaluation may tell of the same step."""
        step = row.step
        assert step is not None
        said = [self.last.get(name, -1) for name in row.values]
        return max(said) <= step and min(said) < step

    def note(self, row: Row, index: int) -> None:
        step = row.step
        assert step is not None
        for name in row.values:
            self.last[name] = step
        if step > self.top:
            if self.top >= 0:
                self.gaps.append(step - self.top)
                self.interval = min(self.gaps)
            else:
                self.first = step
            self.top = step
        self.recent.append(step)
        self.touched = index


class Lanes:
    """Sorts rows that have steps.

    Args:
        write: called with each row and the lane it belongs to; of a lane, in the order of the source.
        resumes: a counter that starts anew is the same run, whatever step it starts at.
    """

    def __init__(self, write: Callable[[Lane, Row], None], account: Account, *, resumes: bool = False) -> None:
        self._write, self._account, self._resumes = write, account, resumes
        self._open: list[Lane] = []
        self._index = 0
        self._runs = 0
        self._attempts: dict[int, int] = {}
        self._latest: Lane | None = None

    def add(self, row: Row) -> None:
        """Sort one row; ``row.step`` is set."""
        self._index += 1
        lane = self._latest
        if lane is not None and not lane.accepts(row):
            if self._repeats(lane, row):
                self._account.say(
                    "repeated", "rows repeat the step before them (other ranks, or a bar) and are left out."
                )
                lane.touched = self._index
                return
            lane = self._lane_for(row)
        elif lane is not None and len(self._open) > 1:
            lane = self._lane_for(row)
        if lane is None:
            lane = self._begin(row)
            if lane is None:
                return
        lane.note(row, self._index)
        self._latest = lane
        if lane.kind == "undecided":
            lane.held.append(row)
        elif lane.kind == "written":
            self._write(lane, row)
        if len(self._open) > 1 and self._index % 8 == 0:
            self._settle()

    def end(self) -> None:
        """Decide what is undecided."""
        self._settle(final=True)

    def _repeats(self, lane: Lane, row: Row) -> bool:
        """Whether the row says again what the lane's last one, or the one before, has said."""
        near = row.step is not None and row.step >= lane.top - lane.interval
        return near and not row.fresh and all(lane.last.get(name) == row.step for name in row.values)

    def _lane_for(self, row: Row) -> Lane | None:
        step = row.step
        assert step is not None
        fitting = [] if row.fresh else [lane for lane in self._open if lane.accepts(row)]
        return max(fitting, key=lambda lane: self._fit(lane, step), default=None)

    def _fit(self, lane: Lane, step: int) -> tuple[int, int, int]:
        """How well a step goes on from a lane: exactly the next, or near to the latest, or closest behind."""
        gap = step - lane.top
        if gap in (0, lane.interval):
            return 3, lane.touched, 0
        if lane is self._latest and 0 < gap <= 3 * max(1, lane.interval):
            return 2, lane.touched, 0
        return (1, lane.top, lane.touched) if gap > 0 else (0, lane.touched, 0)

    def _begin(self, row: Row) -> Lane | None:
        before = self._latest
        if before is None:
            lane = self._new_run("written")
        else:
            lane = Lane(-1, -1, None, "undecided", before, interval=before.interval, fresh=row.fresh)
        if lane is not None:
            lane.since = self._index
            self._open.append(lane)
            if len(self._open) > 16:
                self._settle(final=True)
        return lane

    def _new_run(self, kind: Kind) -> Lane | None:
        if self._runs >= MOST_RUNS:
            self._account.say("runs", f"more than {MOST_RUNS} trainings in one source; further ones are left out.")
            return None
        self._runs += 1
        self._attempts[self._runs - 1] = 1
        return Lane(self._runs - 1, 0, None, kind)

    def _settle(self, final: bool = False) -> None:
        """Decide lanes that have gone on for long enough, and close those that were left."""
        for lane in list(self._open):
            silent = self._index - lane.touched >= HELD
            if lane.kind == "undecided" and (final or silent or len(lane.held) >= HELD):
                self._decide(lane)
            if silent and lane is not self._latest and lane.kind != "undecided":
                self._open.remove(lane)

    def _decide(self, lane: Lane) -> None:
        before = lane.before
        assert before is not None
        held, lane.held = lane.held, []
        went_on = before.touched > lane.since
        seen = [row for row in held if row.step in before.recent]
        if went_on and len(held) <= FEW:
            self._out_of_order(before, held, len(seen))
            self._drop(lane)
            return
        if went_on and len(seen) >= 0.9 * len(held):
            self._account.say("process", "another process printed the same steps; its rows are left out.", len(held))
            lane.kind = "repeats"
            return
        if not self._place(lane, before, went_on):
            self._drop(lane)
            return
        lane.kind = "written"
        for row in held:
            self._write(lane, row)

    def _out_of_order(self, before: Lane, held: list[Row], seen: int) -> None:
        if seen:
            self._account.say(
                "repeated", "rows repeat the step before them (other ranks, or a bar) and are left out.", seen
            )
        for row in held:
            if row.step not in before.recent and before.kind == "written":
                self._write(before, row)

    def _drop(self, lane: Lane) -> None:
        self._open.remove(lane)
        if self._latest is lane:
            self._latest = lane.before if lane.before in self._open else (self._open[-1] if self._open else None)

    def _place(self, lane: Lane, before: Lane, went_on: bool) -> bool:
        """Give the lane its run and attempt; False when there are too many."""
        again = lane.first <= before.first + max(1, before.interval)
        if before.kind != "written" or went_on or (again and not self._resumes):
            new = self._new_run("written")
            if new is None:
                return False
            what = (
                "rows of several trainings are mixed; each is a run"
                if went_on
                else "the counter starts anew: a further run"
            )
            self._account.say("several", f"{what} (at step {lane.first}).")
            lane.run, lane.attempt = new.run, 0
            return True
        number = self._attempts[before.run]
        if number >= MOST_ATTEMPTS:
            self._account.say(
                "attempts", f"the counter goes back more than {MOST_ATTEMPTS} times; further rows are left out."
            )
            return False
        self._attempts[before.run] = number + 1
        lane.run, lane.attempt = before.run, number
        lane.resume_step = None if again else lane.first - 1
        self._account.say("resumed", f"the counter goes back from {before.top} to {lane.first}: a further attempt.")
        return True
