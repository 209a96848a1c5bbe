"""The buttons of a run's page: asked, arrived, done, from files; one of two tabs wins; nothing where nothing may be."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import access, control
from app.data import SAMPLES
from monitor.errors import RunError
from monitor.runfile.control import KINDS, Asked, Inbox, ask, asked
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from tests.app.conftest import Open, words
from trainer.config import TrainConfig
from trainer.launch.intentions import intentions

STEP = 41


class Training:
    """A training that answers when it is told to."""

    def __init__(self, runs: Path, answers: tuple[str, ...] = tuple(KINDS)) -> None:
        self.path = create_run(runs, run_id="asked", name="asked", task="gpt", config={"optimizer": {"lr": 1e-3}})
        begin_attempt(self.path, planned_steps=100)
        self.writer = RankWriter(self.path, 0)
        for step in range(1, STEP + 1):
            self.writer.scalars(step, time.time(), {"train_loss": 1.0 / step})
        self.beat("training", answers)
        self.inbox = Inbox(self.path, 0, answers, lambda **fields: None, lambda: STEP)

    def beat(self, state: str, answers: tuple[str, ...] = tuple(KINDS)) -> None:
        self.writer.heartbeat(step=STEP, state=state, step_time_s=0.1, planned_steps=100, requests=list(answers))
        self.writer.flush()
        self.writer._write_heartbeat()

    def answer(self, outcome: str = "done", text: str = "as asked") -> None:
        self.inbox.look()
        for request in self.inbox.take():
            self.inbox.answer(request, outcome, STEP + 1, text)


@pytest.fixture
def training(no_runs: Path) -> Iterator[Training]:
    made = Training(no_runs)
    yield made
    made.writer.close()


def keys(page: Any) -> set[str]:
    return {str(button.key) for button in page.button}


def test_a_click_is_asked_arrives_and_is_done_and_a_reload_shows_the_same(training: Training, open_page: Open) -> None:
    page = open_page("run", run="asked")
    assert {"checkpoint", "pause", "stop", "set_lr", "set_clip", "record_dense"} <= keys(page)
    page.button(key="checkpoint").click().run()
    assert "Checkpoint now asked for" in words(page) and "not arrived yet" in words(page)
    assert page.button(key="checkpoint").disabled
    training.inbox.look()
    assert f"arrived at step {STEP}, being done" in words(page.run()).replace("\\", "")
    training.answer(text="checkpoints/00000042")
    for tab in (page.run(), open_page("run", run="asked")):
        said = words(tab).replace("\\", "")
        assert f"done at step {STEP + 1}: checkpoints/00000042" in said, said


def test_pause_becomes_go_on(training: Training, open_page: Open) -> None:
    page = open_page("run", run="asked")
    page.button(key="pause").click().run()
    training.answer()
    training.beat("paused")
    page = open_page("run", run="asked")
    assert "paused" in words(page) and "continue" in keys(page) and "pause" not in keys(page)


@pytest.mark.parametrize(
    ("key", "typed", "wanted"),
    [
        ("set_lr", "1e-4", {"value": 1e-4}),
        ("set_lr", "x0.5", {"factor": 0.5}),
        ("set_clip", "none", {"value": None}),
        ("set_clip", "0.25", {"value": 0.25}),
        ("record_dense", "", {"steps": 64}),
        ("record_dense", "12", {"steps": 12}),
        ("set_lr", "fast", "'fast' is no number"),
        ("set_lr", "-1", "a finite number above 0"),
        ("set_lr", "nan", "a finite number above 0"),
        ("record_dense", "nan", "whole number"),
        ("record_dense", "1.5", "whole number"),
    ],
)  # fmt: skip
def test_what_is_typed_is_checked_before_it_is_asked(
    training: Training, open_page: Open, key: str, typed: str, wanted: Any
) -> None:
    page = open_page("run", run="asked")
    page.text_input(key=f"typed.{key}").set_value(typed)
    page.button(key=key).click().run()
    made = [dict(one.request.values) for one in asked(training.path, 0) if one.request]
    if isinstance(wanted, dict):
        assert made == [wanted]
    else:
        assert made == [] and wanted in words(page).replace("\\", "")


def test_of_two_tabs_one_wins_and_the_other_is_told(training: Training, open_page: Open) -> None:
    one, other = open_page("run", run="asked"), open_page("run", run="asked")
    one.text_input(key="typed.set_lr").set_value("1e-4")
    one.button(key="set_lr").click().run()
    other.text_input(key="typed.set_lr").set_value("2e-4")
    other.button(key="set_lr").click().run()
    assert [dict(a.request.values) for a in asked(training.path, 0) if a.request] == [{"value": 1e-4}]
    assert "Somebody else was first: set_lr value 0.0001" in words(other).replace("\\", "")


def test_a_loop_of_ones_own_gets_the_buttons_that_it_answers(no_runs: Path, open_page: Open) -> None:
    training = Training(no_runs, answers=("record_dense",))
    page = open_page("run", run="asked")
    assert "record_dense" in keys(page) and not {"pause", "checkpoint", "set_lr"} & keys(page)
    training.writer.close()


def test_a_forged_receipt_is_text(training: Training, open_page: Open) -> None:
    made = ask(training.path, "pause")
    text = "![](http://elsewhere/beacon) <b>bold</b> :red[x]"
    forged = {"id": made.id, "state": "done", "step": "x", "text": text, "arrived_step": [1]}
    (training.path / "attempts" / "0000" / "receipts" / f"{made.id}.json").write_text(json.dumps(forged))
    page = open_page("run", run="asked")
    captions = [caption.value for caption in page.caption if "Pause" in caption.value]
    assert captions and all("](" not in caption and "<b>" not in caption for caption in captions), captions


# ---- the control layer ---------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(access.READ_ONLY_VARIABLE, "1")


def test_nothing_is_done_where_the_page_only_shows(training: Training, open_page: Open, read_only: None) -> None:
    page = open_page("run", run="asked")
    assert all(button.disabled for button in page.button if button.key in {*KINDS, "stop"})
    acts: list[Callable[[], Any]] = [
        lambda: control.start(TrainConfig()),
        lambda: control.stop(training.path),
        lambda: control.resume(training.path),
        lambda: control.ask(training.path, "pause", None),
    ]
    for act in acts:
        with pytest.raises(RunError, match="Read-only"):
            act()
    assert asked(training.path, 0) == []


def test_every_action_of_the_control_layer_asks_whether_it_may(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None was forgotten: each public function that is no question refuses."""
    monkeypatch.setattr(control, "read_only_reason", lambda: "Read-only: for this test.")
    questions = {"engines"}
    actions = {
        name: value
        for name, value in vars(control).items()
        if inspect.isfunction(value) and value.__module__ == control.__name__ and not name.startswith("_")
    }
    assert {"start", "stop", "resume", "ask", *questions} <= actions.keys()
    for name in actions.keys() - questions:
        needed = [one for one in inspect.signature(actions[name]).parameters.values() if one.default is one.empty]
        given: dict[str, Any] = {one.name: tmp_path for one in needed if one.kind is not one.VAR_KEYWORD}
        with pytest.raises(RunError, match="for this test"):
            actions[name](**given)


def test_samples_are_never_acted_on() -> None:
    sample = next(path for path in SAMPLES.iterdir() if (path / "run.json").is_file())
    for act in (control.stop, control.resume, lambda path: control.ask(path, "pause", None)):
        with pytest.raises(RunError, match=r"sample run|Read-only"):
            act(sample)


def test_eight_clicks_at_once_on_one_sight_make_one_request(
    training: Training, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "read_only_reason", lambda: None)
    gate, results = threading.Barrier(8), []

    def click() -> None:
        gate.wait()
        try:
            results.append(control.ask(training.path, "checkpoint", 0).id)
        except RunError as error:
            results.append(str(error))

    tabs = [threading.Thread(target=click) for _ in range(8)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert results.count("000000") == 1 and sum("Somebody else was first" in one for one in results) == 7


def test_a_stop_that_no_signal_can_carry_is_a_request(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "read_only_reason", lambda: None)
    record = training.path / "attempts" / "0000" / "attempt.json"
    elsewhere = json.loads(record.read_text()) | {"host": "another-machine", "pid_namespace": "elsewhere"}
    record.write_text(json.dumps(elsewhere))
    beat = training.path / "attempts" / "0000" / "rank-00000" / "heartbeat.json"
    beat.write_text(json.dumps(json.loads(beat.read_text()) | {"host": "another-machine"}))
    assert "request 000000" in control.stop(training.path)
    (one,) = asked(training.path, 0)
    assert isinstance(one, Asked) and one.request is not None and one.request.do == "stop"


def test_intentions_of_a_run_without_records(tmp_path: Path) -> None:
    run = create_run(tmp_path)
    assert intentions(run).state == "never started"
    begin_attempt(run)
    assert intentions(run).attempt == 0 and not intentions(run).ended
