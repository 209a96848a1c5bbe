"""Requests to a loop of one's own: it takes those that it said it answers; recording in full needs no line of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import monitor
from monitor.errors import RunError
from monitor.hook import background
from monitor.runfile.control import Asked, ask, asked
from monitor.runfile.reader import open_run


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, mon: monitor.Monitor) -> None:
    loss = model(torch.ones(2, 8)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    mon.step(loss=loss)


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[monitor.Monitor, Callable[[], None]]]:
    monkeypatch.setattr(background, "LOOK_S", 0.01)

    def begin(**options: object) -> tuple[monitor.Monitor, Callable[[], None]]:
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        mon = monitor.attach(model, optimizer, run=tmp_path / "runs", **options)
        return mon, lambda: one_step(model, optimizer, mon)

    return begin


def until(look: Callable[[], bool], what: str, do: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        do()
        time.sleep(0.01)


def only(mon: monitor.Monitor) -> Asked:
    return asked(mon.run_dir, mon.attempt)[-1]


def made(mon: monitor.Monitor, do: str, **values: object) -> None:
    """Ask as soon as the heartbeat says that the loop is there."""

    def look() -> bool:
        try:
            ask(mon.run_dir, do, **values)
        except RunError as error:
            assert "has not begun" in str(error) or "it answers no requests" in str(error), error
            return False
        return True

    until(look, "a heartbeat")


def test_a_loop_takes_what_it_said_and_answers(loop: Callable) -> None:
    mon, step = loop(requests=("checkpoint", "set_lr"))
    with mon:
        for _ in range(3):
            step()
        assert mon.requests() == []
        made(mon, "set_lr", value=0.5)
        with pytest.raises(RunError, match="does not answer pause; it answers checkpoint, set_lr, record_dense"):
            ask(mon.run_dir, "pause")
        taken: list = []
        until(lambda: bool(taken), "the request", lambda: taken.extend(mon.requests()))
        assert [(request.do, dict(request.values)) for request in taken] == [("set_lr", {"value": 0.5})]
        assert only(mon).state == "arrived"
        step()
        mon.answer(taken[0], "set", before=0.01)
        assert only(mon).state == "done" and (only(mon).receipt or {})["before"] == 0.01
        ask(mon.run_dir, "checkpoint")
    assert only(mon).state == "failed" and "ended" in (only(mon).receipt or {})["text"]
    events = open_run(mon.run_dir).events("request")
    assert [(e.step, e.fields["do"], e.fields["outcome"]) for e in events] == [
        (4, "set_lr", "done"), (4, "checkpoint", "failed"),
    ]  # fmt: skip


def test_the_next_steps_are_recorded_in_full_without_a_line_of_the_loop(loop: Callable) -> None:
    mon, step = loop()
    with mon:
        for _ in range(25):
            step()
        made(mon, "record_dense", steps=7)
        until(lambda: only(mon).state == "done", "an answer", step)
        for _ in range(12):
            step()
        at = (only(mon).receipt or {})["step"]
    measured = set(open_run(mon.run_dir).layers("update_norm").step.tolist())
    assert set(range(at + 1, at + 8)) <= measured
    assert not set(range(at + 8, mon.step_number + 1)) - {n for n in range(1000) if n % 20 == 0} & measured


def test_a_pause_of_a_loop_of_ones_own_is_part_of_no_step(loop: Callable) -> None:
    mon, step = loop()
    with mon:
        step()
        step()
        with mon.phase("paused"):
            time.sleep(0.5)
        step()
    times = open_run(mon.run_dir).series("step_time_s")
    assert times.value[-1] < 0.5


def test_an_unknown_kind_is_refused_at_once(loop: Callable) -> None:
    with pytest.raises(ValueError, match=r"requests names explode; accepted: checkpoint, stop, .*"):
        loop(requests=("explode",))
