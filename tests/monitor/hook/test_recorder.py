"""What the flight recorder wrote brings back the random numbers of a step; whatever else it is given is one message."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import monitor
from monitor.errors import RunError
from monitor.hook import recorder
from monitor.hook.recorder import STEPS, FlightRecorder, restore_random_states
from monitor.runfile.reader import open_run
from tests.monitor.hook.problems import MLP


def _draw() -> tuple[list[float], list[float], list[float]]:
    return torch.rand(3).tolist(), [random.random(), random.gauss(0, 1)], np.random.standard_normal(3).tolist()


def _crashing(folder: Path, steps: int) -> tuple[Path, list[Any]]:
    """A loop that draws from every generator in each step and breaks after ``steps``."""
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    drawn = []
    mon = monitor.attach(model, optimizer, run=folder)
    with pytest.raises(RuntimeError, match="it broke"), mon:
        for number in range(steps):
            loss = MLP.loss(model, *MLP.batch(number))
            drawn.append(_draw())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            mon.step(loss=loss)
        raise RuntimeError("it broke")
    return mon.run_dir, drawn


def test_the_random_numbers_of_a_step_before_a_crash_can_be_drawn_again(tmp_path: Path) -> None:
    run_dir, drawn = _crashing(tmp_path, 20)
    run = open_run(run_dir)
    (event,) = run.events("flight")
    assert event.fields["reason"] == "crashed"
    assert [entry["step"] for entry in event.fields["random"]] == list(range(20 - STEPS + 1, 21))
    for step in (20, 11):
        assert restore_random_states(run, step) == ("torch", "python", "numpy")
        assert _draw() == drawn[step - 1]


def test_a_step_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    run_dir, _ = _crashing(tmp_path, 2)
    with pytest.raises(RunError, match=r"no random states of step 9; it has them of steps 1, 2"):
        restore_random_states(open_run(run_dir), 9)


@pytest.mark.parametrize("entry", [{"step": 1}, {"step": 1, "torch": "!", "python": 3}, {"step": 1, "torch": "AAAA"}])
def test_damaged_states_are_one_message(tmp_path: Path, entry: dict[str, Any]) -> None:
    run_dir, _ = _crashing(tmp_path, 1)
    events = run_dir / "attempts" / "0000" / "rank-00000" / "events-000000.jsonl"
    with events.open("a") as file:
        file.write(json.dumps({"step": 1, "time": 1.0, "kind": "flight", "random": [entry]}) + "\n")
    events.with_name(events.name + ".seal").unlink()
    with pytest.raises(RunError, match="random states of step 1 are damaged"):
        restore_random_states(open_run(run_dir), 1)


def test_a_training_in_trouble_all_the_time_writes_a_bounded_number_of_windows() -> None:
    written: list[dict[str, Any]] = []
    flight = FlightRecorder(lambda kind, **fields: written.append(fields))
    for step in range(1, 1000):
        flight.step_begins(step)
        if step % 3 == 0:
            flight.freeze("again")
    assert len(written) == recorder.MOST_WRITTEN
    steps = [entry["step"] for fields in written for entry in fields["random"]]
    assert steps == list(range(1, 3 * recorder.MOST_WRITTEN + 1))  # none twice
    flight.freeze("crashed", at_end=True)
    assert written[-1]["reason"] == "crashed"
    assert [entry["step"] for entry in written[-1]["random"]] == list(range(1000 - STEPS, 1000))
