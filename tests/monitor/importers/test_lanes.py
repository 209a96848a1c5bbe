"""Counters that go back: resumes, several trainings, mixed processes, late rows; and steps that have to be found."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from monitor.importers import import_path
from monitor.runfile.reader import Run, open_run
from tests.monitor.importers.helpers import log, read, series, taken


def lines(steps: range, loss: float = 2.0) -> list[str]:
    return [f"step {step}: loss {loss + step / 4}" for step in steps]


def runs_of(source: Path, runs: Path) -> list[Run]:
    return [open_run(path) for one in import_path(source, runs) for path in one.runs]


@pytest.mark.parametrize(("resumed", "interval"), [(500, 10), (505, 10), (990, 10), (37, 1), (4, 3)])
def test_a_counter_that_goes_back_is_a_resume(tmp_path, resumed, interval):
    first, second = range(0, 1001, interval), range(resumed, 1500, interval)
    source = log(tmp_path, "\n".join([*lines(first), "loading checkpoint", *lines(second, 9.0)]))
    run = read(source, tmp_path / "runs")
    assert [attempt.resume_step for attempt in run.attempts] == [0, resumed - 1]
    wanted = {step: 2.0 + step / 4 for step in first if step < resumed} | {step: 9.0 + step / 4 for step in second}
    assert series(run, "train_loss") == wanted
    assert sum(len(part) for part in run.superseded("train_loss")) == sum(step >= resumed for step in first)


def test_a_counter_that_begins_anew_is_another_training(tmp_path):
    source = log(tmp_path, "\n".join(lines(range(500)) + lines(range(300), 7.0) + lines(range(200), 8.0)))
    found = runs_of(source, tmp_path / "runs")
    assert [(run.last_step, series(run, "train_loss")[0]) for run in found] == [(499, 2.0), (299, 7.0), (199, 8.0)]


def test_how_a_source_ends_is_said_of_its_last_training(tmp_path):
    end = ["Traceback (most recent call last):", "ValueError: no more"]
    source = log(tmp_path, "\n".join([*lines(range(300)), *lines(range(200)), *lines(range(150, 250)), *end]))
    first, second = runs_of(source, tmp_path / "runs")
    assert first.state.word == "stopped" and "follows" in first.state.reason
    assert second.state.word == "crashed" and "no more" in second.state.reason
    assert [attempt.exit["outcome"] for attempt in second.attempts] == ["stopped", "crashed"]


def test_two_trainings_that_write_to_one_file_are_two_runs(tmp_path):
    mixed = [line for pair in zip(lines(range(1000, 1500)), lines(range(500), 7.0), strict=True) for line in pair]
    found = runs_of(log(tmp_path, "\n".join(mixed)), tmp_path / "runs")
    assert [(len(run.series("train_loss")), run.last_step) for run in found] == [(500, 1499), (500, 499)]


def test_lines_that_ranks_repeat_count_once(tmp_path):
    every = [line for line in lines(range(0, 300, 10)) for _ in range(8)]
    one = taken(log(tmp_path, "\n".join(every)), tmp_path / "runs")
    assert len(one.runs) == 1 and one.rows == 30
    assert any("repeat" in message for message in one.messages)


def test_lines_of_other_ranks_are_left_out_by_name(tmp_path):
    every = [f"[rank{rank}]:step: {step}  loss: {rank + step}" for step in range(50) for rank in (0, 1)]
    run = read(log(tmp_path, "\n".join(every)), tmp_path / "runs")
    assert series(run, "train_loss") == {step: float(step) for step in range(50)}


def test_a_line_that_comes_late_is_put_in_its_place(tmp_path):
    every = lines(range(0, 200, 10))
    every[5], every[6] = every[6], every[5]
    run = read(log(tmp_path, "\n".join(every)), tmp_path / "runs")
    assert len(run.attempts) == 1
    assert series(run, "train_loss") == {step: 2.0 + step / 4 for step in range(0, 200, 10)}


def test_a_counter_within_the_epoch_goes_on(tmp_path):
    every = [f"Epoch {epoch} step {step} loss {epoch + step / 64}" for epoch in range(3) for step in range(1, 65)]
    one = taken(log(tmp_path, "\n".join(every)), tmp_path / "runs")
    assert len(one.runs) == 1
    assert list(series(open_run(one.runs[0]), "train_loss")) == list(range(1, 193))
    assert any("each epoch" in message for message in one.messages)


def test_batches_of_an_epoch_are_steps(tmp_path):
    every = [f"Epoch: [{epoch}][{batch:4d}/100]\tLoss 2.5 (2.6)" for epoch in range(3) for batch in range(0, 100, 10)]
    run = read(log(tmp_path, "\n".join(every)), tmp_path / "runs")
    assert list(series(run, "train_loss")) == list(range(0, 300, 10))


def test_without_steps_rows_are_counted_and_it_is_said(tmp_path):
    table = "loss,x\n" + "\n".join(f"{1 / row},{row}" for row in range(1, 21))
    source = log(tmp_path, table, "a.csv")
    one = taken(source, tmp_path / "runs")
    assert list(series(open_run(one.runs[0]), "train_loss")) == list(range(1, 21))
    assert any("no steps" in message for message in one.messages)


def test_a_table_by_epoch_has_epochs_for_steps(tmp_path):
    source = log(
        tmp_path, "epoch,loss,val_loss\n" + "\n".join(f"{e},{3 - e / 8},{4 - e / 8}" for e in range(9)), "h.csv"
    )
    one = taken(source, tmp_path / "runs")
    run = open_run(one.runs[0])
    assert series(run, "val_loss") == {epoch: 4 - epoch / 8 for epoch in range(9)}
    assert any("a step here is an epoch" in message for message in one.messages)


def test_steps_that_no_run_can_hold_are_left_out_and_said(tmp_path):
    steps = ["1", "2", "-5", "1e300", "9" * 40, "3", "4.5", "NaN"]
    source = log(tmp_path, "step,loss\n" + "\n".join(f"{step},0.5" for step in steps), "h.csv")
    (one,) = import_path(source, tmp_path / "runs")
    found = {step for path in one.runs for step in series(open_run(path), "train_loss")}
    assert {1, 2, 3} <= found <= set(range(1, 9))
    assert one.messages


def test_losses_that_are_zero_or_negative_stay_so(tmp_path):
    values = [0.0, -0.25, -3.0, 0.5, 0.0]
    source = log(
        tmp_path, "\n".join(f"step {step} | loss {value} | reward {-value}" for step, value in enumerate(values))
    )
    run = read(source, tmp_path / "runs")
    assert list(series(run, "train_loss").values()) == values
    assert list(series(run, "reward").values()) == [-value for value in values]


def test_a_source_that_has_grown_is_read_on(tmp_path):
    source, runs = log(tmp_path, "\n".join(lines(range(0, 300, 10))) + "\n"), tmp_path / "runs"
    first = taken(source, runs)
    again = taken(source, runs)
    assert (first.rows, again.rows, again.runs) == (30, 0, first.runs)
    assert len(open_run(first.runs[0]).attempts) == 1
    with source.open("a") as file:
        file.write("\n".join(lines(range(300, 500, 10))) + "\n")
    grown = taken(source, runs)
    run = open_run(grown.runs[0])
    assert grown.runs == first.runs and [path.name for path in runs.iterdir()] == [grown.runs[0].name]
    assert series(run, "train_loss") == {step: 2.0 + step / 4 for step in range(0, 500, 10)}
    assert taken(source, runs).rows == 0


def test_a_resume_that_a_grown_source_brings_is_an_attempt(tmp_path):
    source, runs = log(tmp_path, "\n".join(lines(range(0, 300, 10))) + "\n"), tmp_path / "runs"
    taken(source, runs)
    with source.open("a") as file:
        file.write("\n".join(lines(range(200, 500, 10), 7.0)) + "\n")
    run = read(source, runs)
    assert [attempt.resume_step for attempt in run.attempts] == [0, 199]
    assert series(run, "train_loss")[200] == 57.0
    assert taken(source, runs).rows == 0


def test_another_file_in_the_same_place_is_another_run(tmp_path):
    runs = tmp_path / "runs"
    first = taken(log(tmp_path, "\n".join(lines(range(100)))), runs)
    second = taken(log(tmp_path, "\n".join(lines(range(100), 5.0))), runs)
    assert first.runs != second.runs and len(list(runs.iterdir())) == 2
    assert math.isclose(series(open_run(second.runs[0]), "train_loss")[0], 5.0)
