"""From an incident to a verdict: a real training that explodes, and the children that try to mend it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app import fixes
from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.verdict import continued, judge
from monitor.diagnosis.view import Signals
from monitor.errors import RunError
from monitor.runfile.reader import Run, open_run
from tests.monitor.runfile.test_specification import BLOCKS
from tests.waiting import until
from trainer.config import load_config
from trainer.launch import start, status

ROOT = Path(__file__).resolve().parents[2]
STEPS = 150
"""Of the preset."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(None, ["threads=1"], preset="explosion")
    path = start(config, tmp_path_factory.mktemp("fixes") / "runs", name="broken").run_dir
    until(lambda: not status(path).running, "the end of the training")
    return path


def gradiometer(*words: object) -> subprocess.CompletedProcess[str]:
    told = [sys.executable, "-m", "app", *map(str, words)]
    return subprocess.run(told, capture_output=True, text=True, check=False, cwd=ROOT)


def planned(path: Path) -> list[fixes.Plan]:
    run = open_run(path)
    report = diagnose(run).to_dict()
    return fixes.plans(run, fixes.chosen_incident(report, None), report["findings"])


def test_the_recommended_change_is_tried_from_before_the_onset_and_judged_gone(broken: Path) -> None:
    (plan, *_) = planned(broken)
    assert plan.experiment.key == "remedy" and plan.experiment.patch["optimizer.lr"] == 2.0
    assert 0 < plan.step < plan.trouble.onset_step <= plan.step + 20  # the last of the checkpoints every 20 steps
    done = gradiometer("fix", broken, "--wait", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    row = json.loads(done.stdout)
    assert row["word"] == "gone" and row["past"] >= row["needed"] == 60
    assert row["loss"] < row["loss_before"] and row["loss_broken"] == "Infinity"
    child, parent = open_run(broken.parent / row["run"]), open_run(broken)
    assert child.forked_after == plan.step == row["from_step"]
    assert child.config is not None and child.config["optimizer"]["lr"] == 2.0
    (tried,) = [one for one in fixes.tried(parent) if one.run == child.id]
    assert (tried.key, tried.outcome["word"], tried.onset_step) == ("remedy", "gone", plan.trouble.onset_step)
    live_is_post_hoc(child, parent, row)


def live_is_post_hoc(child: Run, parent: Run, row: dict[str, Any]) -> None:
    """What was told while the child trained is what its rows up to there say now."""
    until(lambda: not status(child.path).running, "the end of the child")
    child.refresh()
    trouble, before = fixes.trouble_of(child), Signals.from_run(parent)
    assert child.forked_after is not None
    signals = continued(before, Signals.from_run(child), child.forked_after)
    then = judge(trouble, signals.until(row["step"]), child.forked_after, before=before)
    assert (then.word, then.text, then.past) == (row["word"], row["text"], row["past"])
    assert fixes.outcome_of(child).word == "gone"
    assert child.last_step == STEPS


def test_several_changes_are_tried_with_few_steps_each_and_ranked(broken: Path) -> None:
    done = gradiometer("whatif", broken, "--remedy", "again", "--remedy", "remedy", "--jobs", 2, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    first, second = json.loads(done.stdout)
    assert (first["key"], first["word"]) == ("remedy", "gone")
    assert (second["key"], second["word"]) == ("again", "came back")  # bit for bit the same steps
    assert second["onset_step"] == fixes.trouble_of(open_run(broken.parent / second["run"])).onset_step
    ended = open_run(broken.parent / first["run"])
    assert ended.last_step == first["step"] < STEPS and "stop_after" in ended.state.reason
    told = {one.run: (one.patch, one.outcome["word"]) for one in fixes.tried(open_run(broken))}
    assert told[first["run"]] == (first["patch"], "gone") and told[second["run"]] == ({}, "came back")
    names: dict[str, Any] = {}
    exec("\n".join(BLOCKS), names)
    assert names["fixes"](broken) == told  # by the specification alone


def test_what_cannot_be_tried_or_judged_says_why(broken: Path, tmp_path: Path) -> None:
    listed = gradiometer("fix", broken, "--list")
    assert listed.returncode == 0 and "optimizer.lr = 2.0" in listed.stdout
    assert "has no incident x@1. It has: " in gradiometer("fix", broken, "--incident", "x@1").stderr
    with pytest.raises(RunError, match="not started to try a fix"):
        fixes.outcome_of(open_run(broken))

    foreign = tmp_path / "foreign"
    shutil.copytree(broken, foreign)
    record = json.loads((foreign / "run.json").read_text())
    (foreign / "run.json").write_text(json.dumps({**record, "config": {"lr": 4.0}}))
    with pytest.raises(RunError, match="Not made by this trainer"):
        fixes.begin(foreign, planned(broken)[0])

    orphan = tmp_path / "orphan"
    shutil.copytree(broken, orphan)
    parent = {"run": "gone", "attempt": 0, "step": 60, "fix": {"incident": planned(broken)[0].trouble.record()}}
    (orphan / "run.json").write_text(json.dumps({**record, "parent": parent}))
    with pytest.raises(RunError, match=r"The child itself is whole. If the parent was thrown away, take it back"):
        fixes.settle(orphan)
