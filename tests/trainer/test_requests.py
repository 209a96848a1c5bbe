"""What people ask of a running training: taken between steps, done on every rank, answered, faithful in a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.errors import ConfigError
from monitor.hook import background
from monitor.runfile.control import Asked, Request, ask, asked
from monitor.runfile.reader import Run, open_run
from monitor.runfile.store import run_state
from tests.trainer.conftest import TINY, Desk, Trained, assert_same
from tests.waiting import PATIENCE_S, until
from trainer import requests
from trainer.config import TrainConfig, load_config
from trainer.place import config_of_run
from trainer.requests import change
from trainer.schedules import lr_multiplier
from trainer.stop import StopFlag

ROOT = Path(__file__).resolve().parents[2]
LONG = ("steps=1000000", "checkpoint.every_steps=none", "evaluation.every_steps=none", "batch_size=2",
        "schedule.kind=constant", "model.dropout=0.1")  # fmt: skip


class Person:
    """Looks at a training from outside, by its files, and asks for things."""

    def __init__(self, runs: Path) -> None:
        self.path = until(lambda: next(iter(runs.glob("*/attempts/0000/attempt.json")), None), "a run").parents[2]
        until(lambda: (run_state(self.path).step or 0) >= 3, "three steps")

    def ask(self, do: str, **values: Any) -> Asked:
        """Ask, and wait for what comes of it."""
        name = ask(self.path, do, via="command line", **values).id
        return until(lambda: self._answered(name), f"an answer to {do}")

    def _answered(self, name: str) -> Asked | None:
        found = {one.id: one for one in asked(self.path, 0)}[name]
        return found if found.state in ("done", "failed", "refused") else None

    def step(self) -> int:
        return run_state(self.path).step or 0

    def wait_for_steps(self, count: int) -> None:
        first = self.step()
        until(lambda: self.step() >= first + count, f"{count} more steps")


@pytest.fixture
def beside(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trained]:
    """Trains while a person acts; what goes wrong with the person ends the training and fails the test."""
    monkeypatch.setattr(background, "LOOK_S", 0.02)
    monkeypatch.setattr(requests, "REST_S", 0.02)

    def train(act: Callable[[Person], None], *overrides: str, stop: StopFlag | None = None) -> Trained:
        flag, wrong = stop or StopFlag(), []

        def person() -> None:
            try:
                act(Person(desk.runs))
            except BaseException as error:
                wrong.append(error)
            finally:
                flag.request()

        thread = threading.Thread(target=person)
        thread.start()
        trained = desk.train(*LONG, *overrides, stop=flag)
        thread.join()
        if wrong:
            raise wrong[0]
        return trained

    return train


def receipts(run: Run) -> list[tuple[str, str]]:
    return [(one.request.do, one.state) for one in asked(run.path, 0) if one.request is not None]


def test_checkpoint_now_and_stop_after_the_step(beside: Callable[..., Trained]) -> None:
    answers: list[Asked] = []

    def act(person: Person) -> None:
        answers.append(person.ask("checkpoint"))
        person.wait_for_steps(2)
        answers.append(person.ask("stop"))

    trained = beside(act)
    saved, stopped = (one.receipt or {} for one in answers)
    commits = sorted(int(path.parent.name) for path in trained.place.checkpoints.glob("*/COMMIT.json"))
    assert len(commits) == 2 and f"checkpoints/{commits[0]:08d}" == saved["text"] and commits[1] == trained.outcome.step
    assert trained.outcome.word == "stopped" and "asked to stop (command line" in trained.outcome.reason
    assert trained.outcome.signal is None
    assert stopped["text"].startswith(f"stopped after step {trained.outcome.step}")
    events = trained.run.events("request")
    assert [(event.fields["do"], event.fields["outcome"]) for event in events] == [
        ("checkpoint", "done"),
        ("stop", "done"),
    ]
    assert events[1].step == trained.outcome.step == stopped["step"]


def test_a_pause_rests_and_changes_no_bit(desk: Desk, beside: Callable[..., Trained]) -> None:
    seen: dict[str, Any] = {}

    def act(person: Person) -> None:
        person.ask("pause")
        seen["state"] = until(lambda: (s := run_state(person.path)).word == "paused" and s, "the word paused")
        began, before = time.monotonic(), person.step()
        seen["again"] = person.ask("pause")
        seen["saved"] = person.ask("checkpoint")
        seen["dense"] = person.ask("record_dense", steps=5)
        heard = (run_state(person.path).heartbeat or {})["time"]
        until(lambda: (run_state(person.path).heartbeat or {})["time"] > heard, "a heartbeat in the pause")
        assert person.step() == before
        seen["seconds"] = time.monotonic() - began
        person.ask("continue")
        seen["not"] = person.ask("continue")
        person.wait_for_steps(8)

    paused = beside(act)
    assert seen["state"].heartbeat["state"] == "paused"
    assert (seen["again"].state, seen["not"].state, seen["saved"].state) == ("failed", "failed", "done")
    assert "paused already, by request 000000" in seen["again"].receipt["text"]
    step_time = paused.run.series("step_time_s").value
    assert step_time.max() < seen["seconds"], "the pause is part of no step"
    first = seen["dense"].receipt["step"] + 1
    measured = paused.run.layers("update_norm").step.tolist()
    assert set(range(first, first + 5)) <= set(measured)
    plain = desk.train(*LONG, f"steps={paused.outcome.step}")
    assert_same(paused.weights(), plain.weights())


def test_a_signal_and_a_stop_end_a_pause_with_a_checkpoint(beside: Callable[..., Trained], desk: Desk) -> None:
    by_signal = beside(lambda person: person.ask("pause") and None)
    assert by_signal.outcome.word == "stopped" and by_signal.outcome.signal is not None
    assert (by_signal.place.checkpoints / f"{by_signal.outcome.step:08d}" / "COMMIT.json").is_file()
    assert run_state(by_signal.place.run_dir).word == "stopped"


def test_a_stop_ends_a_pause(beside: Callable[..., Trained]) -> None:
    def act(person: Person) -> None:
        person.ask("pause")
        person.ask("stop")

    trained = beside(act)
    assert "asked to stop (command line" in trained.outcome.reason
    assert receipts(trained.run) == [("pause", "done"), ("stop", "done")]
    (phase,) = [event for event in trained.run.events("phase") if event.fields["name"] == "paused"]
    assert phase.fields["seconds"] > 0


def test_a_rate_set_live_is_that_of_a_resume_with_it_and_survives_one(
    desk: Desk, beside: Callable[..., Trained]
) -> None:
    def act(person: Person) -> None:
        person.ask("pause")
        person.ask("checkpoint")
        person.ask("set_lr", factor=0.5)
        person.ask("set_clip", value=0.25)
        person.ask("continue")
        person.wait_for_steps(6)

    live = beside(act)
    run, last = live.run, live.outcome.step
    (attempt,) = run.attempts
    at = attempt.changes[0][0]
    patch = {"optimizer.lr": live.config.optimizer.lr * 0.5, "clip.max_norm": 0.25}
    assert attempt.changes == ((at, {"optimizer.lr": patch["optimizer.lr"]}), (at, {"clip.max_norm": 0.25}))
    lr = run.series("lr")
    for step, value in zip(lr.step.tolist(), lr.value.tolist(), strict=True):
        peak = live.config.optimizer.lr * (1 if step <= at else 0.5)
        assert value == pytest.approx(peak * lr_multiplier(live.config.schedule, step, live.config.steps), rel=1e-12)
    limit = run.series("clip_max_norm")
    assert set(limit.value[limit.step > at]) == {0.25} and set(limit.value[limit.step <= at]) == {1.0}
    words = [f"{name}={value}" for name, value in patch.items()]
    # from the checkpoint of that step on: with the change as overrides the same weights, bit for bit
    twin = desk.resume(live, [*words, f"steps={last}"], at_step=at)
    assert_same(live.weights(last), twin.weights(last))


def test_a_resume_goes_on_with_what_was_set_live(desk: Desk, beside: Callable[..., Trained]) -> None:
    def act(person: Person) -> None:
        person.ask("set_lr", factor=0.5)
        person.wait_for_steps(2)

    live = beside(act)
    (change_step, _), *_ = live.run.attempts[0].changes
    lr = live.config.optimizer.lr
    assert config_of_run(live.run, [])[0].optimizer.lr == lr * 0.5
    assert config_of_run(live.run, [], change_step - 1)[0].optimizer.lr == lr, "who goes back, goes back before it"
    resumed = desk.resume(live, [f"steps={live.outcome.step + 3}"])
    assert resumed.config.optimizer.lr == lr * 0.5
    assert resumed.run.attempts[1].overrides["optimizer.lr"] == lr * 0.5
    assert resumed.place.changed == ("steps",), "the rate is no change against the checkpoint: it was in force there"


def test_a_change_that_cannot_be_kept_is_not_made(
    beside: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(requests, "record_change", full)
    answers: list[Asked] = []
    trained = beside(lambda person: answers.append(person.ask("set_lr", factor=0.1)))
    assert answers[0].state == "failed" and "No space left" in (answers[0].receipt or {})["text"]
    assert trained.run.series("lr").value[-1] == trained.config.optimizer.lr


def request(do: str, **values: Any) -> Request:
    return Request("000000", 0, do, values, 0.0, 1.0, "page", None, 1)


@pytest.mark.parametrize(("kind", "name"), [("norm", "max_norm"), ("value", "max_value"), ("adaptive", "growth")])
def test_the_limit_is_that_of_the_kind_of_clipping(kind: str, name: str) -> None:
    config = load_config(None, [f"clip.kind={kind}"])
    values, _ = change(request("set_clip", value=2.0), config, 5)
    assert values == {f"clip.{name}": 2.0}
    if kind == "norm":
        assert change(request("set_clip", value=None), config, 5)[0] == {"clip.max_norm": None}
    else:
        with pytest.raises(ConfigError, match="no limit of none"):
            change(request("set_clip", value=None), config, 5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "inverse_sqrt", "wsd"])
def test_a_rate_given_as_a_value_is_that_of_the_next_step(schedule: str) -> None:
    config = load_config(None, [f"schedule.kind={schedule}", "steps=100", "schedule.warmup_steps=10"])
    for step in (1, 9, 10, 50, 98):
        values, text = change(request("set_lr", value=1e-5), config, step)
        after = values["optimizer.lr"] * lr_multiplier(config.schedule, step + 1, 100)
        assert after == pytest.approx(1e-5, rel=1e-12) and f"from step {step + 1} on" in text


def test_a_rate_is_not_set_from_next_to_nothing() -> None:
    config = load_config(None, ["schedule.kind=linear", "schedule.min_lr_ratio=0", "steps=2000"])
    with pytest.raises(ConfigError, match="Give a factor instead"):
        change(request("set_lr", value=1e-5), config, 1999)
    assert change(request("set_lr", factor=2.0), config, 1999)[0] == {"optimizer.lr": 2 * TrainConfig().optimizer.lr}


@pytest.fixture
def two_ranks(tmp_path: Path, texts: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    config = load_config(None, [*TINY, *LONG, f"task.data={texts}", "parallel.processes=2"])
    (tmp_path / "config.json").write_text(json.dumps(config.record()))
    words = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    command = [sys.executable, *words, "-m", "trainer", "--config", str(tmp_path / "config.json"), "--runs",
               str(tmp_path / "runs")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield tmp_path / "runs", process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_two_ranks_do_it_at_one_step(two_ranks: tuple[Path, subprocess.Popen[str]]) -> None:
    runs, process = two_ranks
    person = Person(runs)
    assert person.ask("pause").state == "done"
    assert person.ask("set_lr", factor=0.25).state == "done"
    assert person.ask("continue").state == "done"
    person.wait_for_steps(3)
    assert person.ask("stop").state == "done"
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    run = open_run(person.path)
    ((at, values),) = run.attempts[0].changes
    rates = [run.series("lr", rank=rank) for rank in (0, 1)]
    np.testing.assert_array_equal(rates[0].step, rates[1].step)
    np.testing.assert_array_equal(rates[0].value, rates[1].value)
    assert rates[0].value[rates[0].step == at + 1][0] == values["optimizer.lr"]
    assert rates[0].step[-1] == (run.attempts[0].exit or {})["step"]
