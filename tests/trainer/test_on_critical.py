"""What a training does about a critical finding: save, stop, go back; on every rank at one step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor import Monitor
from monitor.diagnosis.follow import said
from monitor.diagnosis.rule import Finding, Remedy, Severity
from monitor.diagnosis.verdict import judge
from monitor.diagnosis.view import Signals
from monitor.hook import findings
from monitor.runfile.reader import open_run
from tests.trainer.conftest import TINY, Desk, assert_same
from trainer.commit import newest_complete
from trainer.config import load_config
from trainer.loop import train
from trainer.on_critical import trouble_of
from trainer.place import new_run, resumed_run
from trainer.stop import StopFlag

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("steps=20", "checkpoint.every_steps=5", "checkpoint.keep_last=2", "batch_size=4", "model.dropout=0.1")
AT, ONSET = 12, 9


def finding(patch: dict[str, Any], onset: int = ONSET) -> dict[str, Any]:
    """As the process beside the training says it."""
    remedy = Remedy("Lower the learning rate.", patch)
    return said(Finding("the loss is lost", onset, AT, AT, Severity.CRITICAL, id="loss-spike", remedy=remedy))


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the monitor find something at step ``AT`` of the first ``times`` attempts."""

    def arrange(patch: Callable[[int], dict[str, Any]] = lambda attempt: {}, times: int = 1) -> None:
        step = Monitor.step

        def and_find(self: Any, *given: Any, **named: Any) -> None:
            step(self, *given, **named)
            if self.step_number == AT and self.attempt < times:
                self._answer(finding(patch(self.attempt)))

        monkeypatch.setattr(Monitor, "step", and_find)

    return arrange


def test_a_checkpoint_is_saved_at_once_and_kept(desk: Desk, found: Callable[..., None]) -> None:
    plain = desk.train(*SHORT)
    found()
    trained = desk.train(*SHORT, "monitor.on_critical=checkpoint")
    assert trained.outcome.word == "finished"
    kept = sorted(path.name for path in trained.place.checkpoints.iterdir())
    assert kept == ["00000012", "00000015", "00000020"], "two by keep_last, and the one after the finding"
    commit = json.loads((trained.place.checkpoints / "00000012" / "COMMIT.json").read_text())
    assert "loss-spike" in commit["after_finding"]
    assert_same(trained.weights(), plain.weights())
    newest = newest_complete(trained.place.checkpoints, lambda message: None)
    assert newest is not None and newest.step == 20


def test_only_so_many_are_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Monitor.step

    def and_find(self: Any, *given: Any, **named: Any) -> None:
        step(self, *given, **named)
        self._answer(finding({}))

    monkeypatch.setattr(Monitor, "step", and_find)
    trained = desk.train("steps=8", "checkpoint.every_steps=none", "monitor.on_critical=checkpoint")
    assert sorted(path.name for path in trained.place.checkpoints.iterdir()) == [f"0000000{n}" for n in (1, 2, 3, 8)]


def test_it_stops_after_the_step_and_a_resume_goes_on_before_it(desk: Desk, found: Callable[..., None]) -> None:
    found()
    trained = desk.train(*SHORT, "monitor.on_critical=stop")
    assert (trained.outcome.word, trained.outcome.step) == ("stopped", AT)
    exit_record = trained.run.attempts[0].exit
    assert exit_record is not None and "critical finding loss-spike" in exit_record["reason"]
    said_on_the_way: list[str] = []
    _, place = resumed_run(trained.place.run_dir, [], said_on_the_way.append)
    assert place.start_step == 10
    assert any("--at-step 12" in line for line in said_on_the_way)


def test_the_checkpoint_of_the_finding_can_be_asked_for(desk: Desk, found: Callable[..., None]) -> None:
    found()
    trained = desk.train(*SHORT, "monitor.on_critical=stop")
    _, place = resumed_run(trained.place.run_dir, [], lambda message: None, at_step=AT)
    assert place.start_step == AT


def test_a_rewind_is_a_resume_with_the_remedy(desk: Desk, found: Callable[..., None]) -> None:
    by_hand = desk.train(*SHORT, "checkpoint.keep_last=9")
    resumed = desk.resume(by_hand, ["optimizer.lr=1e-4"], at_step=5)
    found(lambda attempt: {"optimizer.lr": 1e-4})
    trained = desk.train(*SHORT, "monitor.on_critical=rewind")
    assert (trained.outcome.word, trained.outcome.step) == ("finished", 20)
    first, second = trained.run.attempts
    assert (second.parent, second.resume_step, second.overrides) == (0, 5, {"optimizer.lr": 1e-4})
    assert first.exit is not None and "back to step 5 after a critical finding" in first.exit["reason"]
    (event,) = trained.run.events("rewind")
    assert (event.step, event.fields["to_step"], event.fields["patch"]) == (AT, 5, {"optimizer.lr": 1e-4})
    (told,) = trained.run.events("rewind_outcome")
    assert (told.step, told.attempt, told.fields["word"]) == (20, 1, "not decided")
    assert told.fields["text"] == f"11 of 60 steps past the onset at step {ONSET} and the training has ended"
    assert trained.run.series("lr").step.tolist() == list(range(1, 21))
    assert_same(trained.weights(), resumed.weights())


def test_after_so_many_rewinds_it_stops(desk: Desk, found: Callable[..., None]) -> None:
    found(lambda attempt: {"optimizer.lr": 1e-4 / (1 + attempt)}, times=9)
    trained = desk.train(*SHORT, "monitor.on_critical=rewind", "monitor.rewinds=2")
    assert (trained.outcome.word, trained.outcome.step) == ("stopped", AT)
    assert "as often as monitor.rewinds allows" in trained.outcome.reason
    assert [attempt.resume_step for attempt in trained.run.attempts] == [0, 5, 5]
    assert len(trained.run.events("rewind")) == 2
    told = [event.fields["word"] for event in trained.run.events("rewind_outcome")]
    assert len(told) == 2, "one of each way back"


@pytest.mark.parametrize(
    ("patch", "more", "why"),
    [
        ({}, (), "no configuration field is known to help"),
        ({"optimizer.lr": -1.0}, (), "the remedy is refused"),
        ({"optimizer.lr": 2e-4}, ("optimizer.lr=2e-4",), "already as the remedy wants it"),
        ({"optimizer.lr": 1e-4}, ("checkpoint.every_steps=none",), "no complete checkpoint of before step 9"),
    ],
)
def test_where_there_is_no_way_back_it_stops(
    desk: Desk, found: Callable[..., None], patch: dict[str, Any], more: tuple[str, ...], why: str
) -> None:
    found(lambda attempt: patch)
    trained = desk.train(*SHORT, *more, "monitor.on_critical=rewind")
    assert (trained.outcome.word, trained.outcome.step) == ("stopped", AT)
    assert why in trained.outcome.reason


def test_a_real_fault_is_found_while_training_and_stops_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "START_AFTER_S", 0.0)
    config = desk.config("steps=1000000", "checkpoint.every_steps=none", "monitor.on_critical=stop", "batch_size=2",
                         "fault.kind=nan_gradient", "fault.step=30", "evaluation.every_steps=none")  # fmt: skip
    outcome = train(config, place := new_run(config, desk.runs), StopFlag())
    assert outcome.word == "stopped" and "critical finding non-finite" in outcome.reason
    run = open_run(place.run_dir)
    assert run.events("finding")[0].fields["onset_step"] >= 30
    assert [event.step for event in run.events("stop")] == [outcome.step]


def test_two_ranks_go_back_at_one_step(tmp_path: Path, texts: Path) -> None:
    config = load_config(None, [*TINY, *SHORT, f"task.data={texts}", "parallel.processes=2",
                                "monitor.on_critical=rewind", "monitor.rewinds=1"])  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config.record()))
    words = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    command = [sys.executable, *words, "-m", "tests.trainer.critical_ranks", str(tmp_path / "runs"),
               str(tmp_path / "config.json")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "runs").iterdir()
    run = open_run(path)
    assert [(attempt.resume_step, attempt.overrides or {}) for attempt in run.attempts] == [
        (0, {}),
        (5, {"optimizer.lr": 1e-4}),
    ]
    last = run.attempts[-1].exit
    assert last is not None and last["step"] == AT and "monitor.rewinds" in last["reason"]
    for rank in (0, 1):
        assert run.series("lr", rank=rank).step.tolist() == list(range(1, AT + 1))
    assert "after_finding" in json.loads((path / "checkpoints" / f"{AT:08d}" / "COMMIT.json").read_text())


def test_what_came_of_a_rewind_is_judged_as_a_fix_is_and_written_down(desk: Desk, found: Callable[..., None]) -> None:
    found(lambda attempt: {"optimizer.lr": 1e-4})
    more = ("steps=90", "schedule.kind=constant", "monitor.on_critical=rewind")
    trained = desk.train(*SHORT, *more)
    (told,) = trained.run.events("rewind_outcome")
    assert (told.step, told.fields["word"]) == (ONSET + 60, "gone"), told.fields["text"]
    signals = Signals.from_run(trained.run).until(told.step)
    again = judge(trouble_of(finding({})), signals, 5)
    assert (again.word, again.text) == (told.fields["word"], told.fields["text"])
