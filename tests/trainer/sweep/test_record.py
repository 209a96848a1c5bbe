"""What lies in a sweep's folder is data: torn, strange and foreign contents are said, not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monitor.errors import ConfigError, RunError
from trainer.config import TrainConfig, load_config
from trainer.sweep import list_sweeps, make_plan, open_sweep
from trainer.sweep.plan import read_plan
from trainer.sweep.record import read_trials

BEGIN = {"kind": "begin", "trial": 0, "run": "s-0000", "params": {"optimizer.lr": 0.1}, "time": 1.0}
END = {"kind": "end", "trial": 0, "state": "complete", "value": 0.5, "reason": "all 10 steps", "time": 2.0}


def folder_with(runs: Path, lines: list[object], torn: str = "", **plan: object) -> Path:
    folder = runs / ".sweeps" / "s"
    folder.mkdir(parents=True)
    record = make_plan(TrainConfig(), ["optimizer.lr=1e-4..1e-2:log"], trials=1).record() | plan
    (folder / "sweep.json").write_text(json.dumps(record))
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    return folder


def test_a_plan_comes_back_as_it_was() -> None:
    plan = make_plan(
        load_config(None, ["steps=50"]), ["optimizer.lr=1e-4..1e-2:log", "optimizer.kind=adamw,sgd"],
        trials=7, parallel=2, sampler="tpe", pruner="median", metric="train_loss", goal="maximise", seed=4,
    )  # fmt: skip
    assert read_plan(json.loads(json.dumps(plan.record())), "here") == plan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trials": 0}, "1 to 10000"),
        ({"trials": "many"}, "whole numbers"),
        ({"sampler": "magic"}, "Choose from"),
        ({"pruner": "shears"}, "Choose from"),
        ({"goal": "win"}, "Choose from"),
        ({"metric": ""}, "name of a scalar"),
        ({"base": None}, "no configuration"),
        ({"base": {"steps": -1}}, "steps"),
        ({"space": {"a": 1}}, "varied"),
    ],
)
def test_a_plan_that_says_nonsense_is_refused(changes: dict[str, object], words: str) -> None:
    record = make_plan(TrainConfig(), ["optimizer.lr=1e-4..1e-2:log"]).record() | changes
    with pytest.raises(ConfigError, match=words):
        read_plan(record, "sweep.json")


def test_trials_are_read_at_every_length_of_a_torn_file(tmp_path: Path) -> None:
    whole = b"".join(json.dumps(line).encode() + b"\n" for line in (BEGIN, END))
    first = whole.index(b"\n") + 1
    file = tmp_path / "trials.jsonl"
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        trials, problem = read_trials(tmp_path)
        assert problem is None
        assert [trial.state for trial in trials] == (
            [] if length < first else ["running"] if length < len(whole) else ["complete"]
        )


def test_lines_that_make_no_sense_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    strange: list[object] = [
        7, [], {}, {"kind": "begin", "trial": -1, "run": "x", "params": {}, "time": 0}, BEGIN | {"run": "../../etc"},
        {"kind": "end", "trial": 99, "state": "complete", "value": 1, "reason": "", "time": 0},
        BEGIN, {"kind": "report", "trial": 0, "step": 5, "value": "NaN"}, END | {"state": "glorious"}, END,
    ]  # fmt: skip
    folder_with(tmp_path, strange)
    sweep = open_sweep(tmp_path, "s")
    assert sweep.problem is not None and sweep.problem.endswith("left out: 7")
    (trial,) = sweep.trials
    assert (trial.state, trial.result, len(trial.reports)) == ("complete", 0.5, 1)
    assert (sweep.state, sweep.best) == ("finished", trial)


def test_the_best_leaves_out_what_did_not_complete_or_is_no_number(tmp_path: Path) -> None:
    ends = [("complete", "NaN"), ("pruned", 0.1), ("complete", 0.7), ("complete", 0.6), ("dead", 0.0)]
    lines: list[object] = []
    for number, (state, value) in enumerate(ends):
        lines += [BEGIN | {"trial": number}, END | {"trial": number, "state": state, "value": value}]
    folder_with(tmp_path, lines)
    best = open_sweep(tmp_path, "s").best
    assert best is not None and best.number == 3


def test_what_is_no_sweep_is_said_and_left_out_of_the_list(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gradiometer sweep list"):
        open_sweep(tmp_path, "nothing")
    with pytest.raises(RunError, match="cannot name a directory"):
        open_sweep(tmp_path, "../elsewhere")
    folder_with(tmp_path, [BEGIN])
    (tmp_path / ".sweeps" / "broken").mkdir()
    (tmp_path / ".sweeps" / "broken" / "sweep.json").write_text("{")
    (tmp_path / ".sweeps" / "link").symlink_to(tmp_path / ".sweeps" / "s")
    assert [sweep.id for sweep in list_sweeps(tmp_path)] == ["s"]
    assert open_sweep(tmp_path, "s").state == "interrupted"
    with pytest.raises(RunError):
        open_sweep(tmp_path, "link")
