"""Requests in a run directory: who may ask for what, what counts, and what becomes of the rest."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import RunError
from monitor.runfile import control
from monitor.runfile.control import (
    KINDS,
    MOST_BYTES,
    Inbox,
    ask,
    asked,
    checked,
    next_number,
    read_changes,
    record_change,
)
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, write_exit
from tests.waiting import until

STEP = 41


class Training:
    """What a training does with requests, without a training."""

    def __init__(self, run_dir: Path, answers: tuple[str, ...] = tuple(KINDS), attempt: int = 0) -> None:
        self.run_dir, self.attempt = run_dir, attempt
        self.writer = RankWriter(run_dir, attempt)
        self.writer.heartbeat(step=STEP, state="training", requests=list(answers))
        self.writer.flush()
        self.told: list[dict[str, Any]] = []
        self.inbox = Inbox(run_dir, attempt, answers, lambda **fields: self.told.append(fields), lambda: STEP)

    @property
    def control(self) -> Path:
        return self.run_dir / "attempts" / f"{self.attempt:04d}" / "control"

    def receipt(self, name: str) -> dict[str, Any]:
        return json.loads((self.control.parent / "receipts" / f"{name}.json").read_text())

    def taken(self) -> list[str]:
        self.inbox.look()
        return [request.text for request in self.inbox.take()]


@pytest.fixture
def training(run_dir: Path) -> Training:
    made = Training(run_dir)
    until(lambda: json.loads((made.writer.folder / "heartbeat.json").read_text()).get("requests"), "a heartbeat")
    return made


def forge(training: Training, name: str = "000000", **changes: Any) -> Path:
    """A request as ``ask`` writes it, with other values; a value of None leaves the key out."""
    now = time.time()
    record: dict[str, Any] = {
        "id": name, "attempt": 0, "do": "pause", "created": now, "expires": now + 60,
        "by": {"via": "page", "host": "elsewhere", "pid": 7}, "nonce": name + "-" * 10, **changes,
    }  # fmt: skip
    path = training.control / f"{name}.json"
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    return path


def test_a_request_arrives_is_answered_and_is_an_event(training: Training) -> None:
    made = ask(training.run_dir, "set_lr", via="page", factor=0.5)
    assert [one.state for one in asked(training.run_dir, 0)] == ["asked"]
    training.inbox.look()
    (seen,) = asked(training.run_dir, 0)
    assert (seen.state, seen.request) == ("arrived", made)
    assert seen.receipt is not None and seen.receipt["step"] == STEP
    (request,) = training.inbox.take()
    assert request == made
    training.inbox.answer(request, "done", STEP + 2, "halved", patch={"optimizer.lr": 1e-4})
    training.inbox.answer(request, "failed", STEP + 3, "the first answer stands")
    (seen,) = asked(training.run_dir, 0)
    assert seen.state == "done" and seen.receipt is not None
    assert (seen.receipt["step"], seen.receipt["arrived_step"], seen.receipt["text"]) == (STEP + 2, STEP, "halved")
    (event,) = training.told
    assert (event["step"], event["do"], event["factor"], event["outcome"]) == (STEP + 2, "set_lr", 0.5, "done")
    assert training.taken() == []


def test_requests_are_taken_in_the_order_they_were_made(training: Training) -> None:
    for do in ("pause", "checkpoint", "continue"):
        ask(training.run_dir, do)
    assert training.taken() == ["pause", "checkpoint", "continue"]


def test_of_two_who_act_on_the_same_sight_one_wins_and_the_other_is_told(training: Training) -> None:
    seen = next_number(training.run_dir, 0)
    gate, results = threading.Barrier(8), []

    def click(via: str) -> None:
        gate.wait()
        try:
            results.append(ask(training.run_dir, "pause", via=via, seen=seen).id)
        except RunError as error:
            results.append(str(error))

    tabs = [threading.Thread(target=click, args=(f"tab {'abcdefgh'[n]}",)) for n in range(8)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert results.count("000000") == 1
    losers = [result for result in results if result != "000000"]
    assert len(losers) == 7 and all("Somebody else was first: pause" in loser for loser in losers), losers
    assert training.taken() == ["pause"]


def test_those_who_do_not_mind_all_get_a_number(training: Training) -> None:
    gate, ids = threading.Barrier(8), []

    def click() -> None:
        gate.wait()
        ids.append(ask(training.run_dir, "checkpoint").id)

    tabs = [threading.Thread(target=click) for _ in range(8)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert sorted(ids) == [f"{number:06d}" for number in range(8)]
    assert len(training.taken()) == 8


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attempt": 3}, "it is for attempt 3, and this is attempt 0"),
        ({"created": 1.6e9, "expires": 1.6e9 + 60}, "before this attempt began"),
        ({"created": 4e9, "expires": 4e9 + 60}, "in the future"),
        ({"expires": 9e9}, "to live for"),
        ({"expires": None}, "when it was made"),
        ({"created": "NaN"}, "when it was made"),
        ({"do": "rm -rf"}, "cannot be asked to 'rm -rf'"),
        ({"do": "set_lr"}, "either value"),
        ({"do": "set_lr", "value": "NaN"}, "finite number above 0"),
        ({"do": "set_lr", "value": -1.0}, "finite number above 0"),
        ({"do": "set_lr", "value": 0}, "finite number above 0"),
        ({"do": "set_lr", "value": True}, "finite number above 0"),
        ({"do": "set_lr", "value": 1e-3, "factor": 2}, "either value"),
        ({"do": "set_clip", "value": "Infinity"}, "finite number above 0"),
        ({"do": "record_dense", "steps": 10**9}, "1 to 1000"),
        ({"do": "record_dense", "steps": 1.5}, "1 to 1000"),
        ({"do": "pause", "force": True}, "it takes none"),
        ({"id": "000009"}, "its name says 000000"),
        ({"by": {"via": "<script>", "pid": 1}}, "who asks"),
        ({"by": None}, "who asks"),
        ({"nonce": None}, "nonce is missing"),
    ],
)  # fmt: skip
def test_a_forged_or_stale_request_is_refused_with_its_reason(
    training: Training, changes: dict[str, Any], why: str
) -> None:
    forge(training, **changes)
    assert training.taken() == []
    receipt = training.receipt("000000")
    assert receipt["state"] == "refused" and why in receipt["text"]
    (event,) = training.told
    assert event["outcome"] == "refused" and why in event["text"]
    assert training.taken() == [] and len(training.told) == 1, "told once"


def test_one_that_is_void_when_the_training_looks_is_too_late(training: Training) -> None:
    now = time.time()
    forge(training, created=now - 50, expires=now - 10)
    assert training.taken() == []
    assert "too late" in training.receipt("000000")["text"]


def test_a_copy_is_refused(training: Training) -> None:
    forge(training, "000000")
    record = json.loads((training.control / "000000.json").read_text())
    (training.control / "000001.json").write_text(json.dumps({**record, "id": "000001"}))
    assert training.taken() == ["pause"]
    assert "copy of request 000000" in training.receipt("000001")["text"]


def test_a_large_file_a_link_a_pipe_and_a_strangers_file_are_refused(training: Training, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text(forge(training, "000001").read_text().replace("000001", "000002"))
    (training.control / "000000.json").write_text(" " * (MOST_BYTES + 1))
    (training.control / "000002.json").symlink_to(outside)
    os.mkfifo(training.control / "000003.json")
    whys = {"000000": "at most 4096", "000002": "symbolic link", "000003": "not a regular file"}
    if os.getuid() == 0:
        forge(training, "000004")
        os.chown(training.control / "000004.json", 12_345, -1)
        os.chown(training.run_dir, 0, -1)
        whys["000004"] = "who does not own the run"
    assert training.taken() == ["pause"]
    for name, why in whys.items():
        assert why in training.receipt(name)["text"], name


def test_what_is_not_named_like_a_request_is_left_alone_and_told_of_once(training: Training) -> None:
    (training.control / "do it now.json").write_text("{}")
    (training.control / "..json").write_text("{}")
    (training.control / ".000000.json.1-2.tmp").write_text("{")  # somebody is writing
    for _ in range(3):
        assert training.taken() == []
    assert len(training.told) == 2
    assert not list((training.control.parent / "receipts").iterdir())


def test_a_half_written_file_is_looked_at_again(training: Training) -> None:
    path = forge(training)
    whole = path.read_text()
    path.write_text(whole[:40])
    assert training.taken() == [] and not training.told
    path.write_text(whole)
    assert training.taken() == ["pause"]


def test_one_that_stays_torn_is_refused(training: Training) -> None:
    path = forge(training)
    path.write_text(path.read_text()[:40])
    for _ in range(control.TRIES):
        assert training.taken() == []
    assert "not JSON" in training.receipt("000000")["text"]


def test_answered_requests_are_not_answered_again_by_a_second_reader(training: Training) -> None:
    ask(training.run_dir, "pause")
    training.inbox.look()
    (request,) = training.inbox.take()
    training.inbox.answer(request, "done", STEP, "paused")
    again = Inbox(training.run_dir, 0, KINDS, lambda **fields: None, lambda: STEP)
    again.look()
    assert again.take() == []


def test_what_is_open_at_the_end_is_told_so(training: Training) -> None:
    ask(training.run_dir, "pause")
    training.inbox.look()
    ask(training.run_dir, "checkpoint")
    training.inbox.close("the training ended")
    assert [(one.state, (one.receipt or {})["text"]) for one in asked(training.run_dir, 0)] == [
        ("failed", "the training ended")
    ] * 2


def test_a_folder_of_requests_that_is_a_link_is_not_followed(training: Training, tmp_path: Path) -> None:
    training.control.rename(tmp_path / "moved")
    training.control.symlink_to(tmp_path / "moved")
    assert training.taken() == []
    with pytest.raises(RunError, match="nothing can be asked"):
        ask(training.run_dir, "pause")


def test_a_kind_that_the_loop_does_not_answer_is_refused_at_both_ends(run_dir: Path) -> None:
    training = Training(run_dir, answers=("record_dense",))
    training.writer.close()
    with pytest.raises(RunError, match="does not answer pause; it answers record_dense"):
        ask(run_dir, "pause")
    forge(training)
    assert training.taken() == []
    assert "does not answer pause" in training.receipt("000000")["text"]


def test_nothing_is_asked_of_a_run_that_has_ended_or_not_begun(run_dir: Path, training: Training) -> None:
    write_exit(run_dir, 0, outcome="crashed", step=STEP, reason="out of memory")
    with pytest.raises(RunError, match=r"is crashed \(out of memory\), so nothing takes a request"):
        ask(run_dir, "checkpoint")
    begin_attempt(run_dir, parent=0, resume_step=STEP)
    with pytest.raises(RunError, match="has not begun"):
        ask(run_dir, "checkpoint")
    with pytest.raises(RunError, match="not a run directory"):
        ask(run_dir.parent, "checkpoint")


def test_an_attempt_has_so_many_requests(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MOST_REQUESTS", 2)
    ask(training.run_dir, "pause")
    ask(training.run_dir, "continue")
    with pytest.raises(RunError, match="takes no more"):
        ask(training.run_dir, "pause")


def test_changes_are_what_an_attempt_ends_with(run_dir: Path) -> None:
    record_change(run_dir, 0, 10, {"optimizer.lr": 1e-3}, "000000")
    record_change(run_dir, 0, 20, {"clip.max_norm": None}, "000001")
    record_change(run_dir, 0, 30, {"optimizer.lr": 1e-4}, "000002")
    assert [step for step, _, _ in read_changes(run_dir, 0)] == [10, 20, 30]
    (attempt,) = open_run(run_dir).attempts
    assert attempt.overrides_at(9) == {}
    assert attempt.overrides_at(29) == {"optimizer.lr": 1e-3, "clip.max_norm": None}
    assert attempt.overrides_at() == {"optimizer.lr": 1e-4, "clip.max_norm": None}


@pytest.mark.parametrize("text", ["", "[]", '{"changes": 3}', '{"changes": [1, {"after_step": true, "values": {}}]}'])
def test_changes_that_are_none_are_left_out(run_dir: Path, text: str) -> None:
    (run_dir / "attempts" / "0000" / "changes.json").write_text(text)
    assert read_changes(run_dir, 0) == []
    assert open_run(run_dir).attempts[0].overrides_at() == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    do=st.sampled_from([*KINDS, "other"]),
    values=st.dictionaries(st.sampled_from(["value", "factor", "steps", "x"]), JSON),
)
def test_whatever_is_asked_is_refused_in_words_or_within_bounds(do: str, values: dict[str, Any]) -> None:
    try:
        taken = checked(do, values)
    except RunError:
        return
    for name, value in taken.items():
        assert (do, name, value) == ("set_clip", "value", None) or 0 < value < float("inf")  # type: ignore[operator]


@given(
    content=JSON
    | st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("id", "attempt", "do", "created", "expires", "by", "nonce", "value"), JSON)
    )
)
def test_no_content_of_a_request_raises(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(control._Refused):
        control._parsed(content, "000000")
