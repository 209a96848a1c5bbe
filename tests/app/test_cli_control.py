"""`gradiometer control` on a training that answers, and on what cannot be asked."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from monitor.runfile.control import KINDS, Inbox
from monitor.runfile.writer import RankWriter, begin_attempt, create_run


@pytest.fixture
def training(tmp_path: Path):
    """A run whose training answers what it is asked, each as done, but for set_clip."""
    run = create_run(tmp_path / "runs", run_id="asked", task="gpt")
    begin_attempt(run, planned_steps=100)
    writer = RankWriter(run, 0)
    writer.heartbeat(step=12, state="training", requests=list(KINDS))
    writer.sync()
    writer._write_heartbeat()
    inbox, over = Inbox(run, 0, KINDS, lambda **fields: None, lambda: 12), threading.Event()

    def answer() -> None:
        while not over.wait(0.02):
            inbox.look()
            for request in inbox.take():
                failed = request.do == "set_clip"
                inbox.answer(request, "failed" if failed else "done", 13, f"{request.text}, said the training")

    thread = threading.Thread(target=answer)
    thread.start()
    yield run
    over.set()
    thread.join()
    writer.close()


def control(*words: str):
    return CliRunner().invoke(cli, ["control", *words])


@pytest.mark.parametrize(
    ("words", "text", "status"),
    [
        (("checkpoint",), "000000 checkpoint (command line", 0),
        (("pause",), ": done after step 13: pause, said the training", 0),
        (("lr", "1e-4"), "set_lr value 0.0001", 0),
        (("lr", "x0.5"), "set_lr factor 0.5", 0),
        (("dense",), "record_dense steps 64", 0),
        (("clip", "none"), "failed after step 13: set_clip value none", 4),
        (("lr",), "a value is missing", 2),
        (("lr", "fast"), "'fast' is no number", 2),
        (("lr", "-1"), "No such option", 2),
        (("lr", "0"), "a finite number above 0", 2),
        (("dense", "1e9"), "a number of steps", 2),
        (("dense", "5000"), "1 to 1000", 2),
        (("pause", "3"), "takes no value", 2),
        (("set_lr", "3"), "is not known; accepted: checkpoint, stop", 2),
    ],
)  # fmt: skip
def test_each_word(training: Path, words: tuple[str, ...], text: str, status: int) -> None:
    done = control(str(training), *words)
    assert text in done.output and done.exit_code == status, done.output


def test_without_a_word_it_lists_what_was_asked(training: Path) -> None:
    assert "nothing has been asked" in control(str(training)).output
    control(str(training), "pause")
    (training / "attempts" / "0000" / "control" / "000001.json").write_text('{"do": "\\u001b[31mred"}')
    lines = control(str(training)).output.splitlines()
    assert len(lines) == 2 and "pause" in lines[0] and "000001 no request" in lines[1]
    listed = json.loads(control(str(training), "--json").output)
    assert (listed[0]["do"], listed[0]["state"], listed[0]["receipt"]["step"]) == ("pause", "done", 13)


def test_nobody_waits_for_an_answer_that_does_not_come(tmp_path: Path) -> None:
    run = create_run(tmp_path / "runs", run_id="deaf", task="gpt")
    begin_attempt(run)
    done = control(str(run), "pause")
    assert done.exit_code == 2 and "has not begun its first step" in done.output
    writer = RankWriter(run, 0)
    writer.heartbeat(step=1, requests=["pause"])
    writer._write_heartbeat()
    done = control(str(run), "pause", "--wait", "0")
    assert (done.exit_code, "asked" in done.output) == (3, True)
    writer.close()


def test_no_run_is_a_message(tmp_path: Path) -> None:
    done = control("nowhere", "--runs", str(tmp_path))
    assert done.exit_code == 2 and "not a run directory" in done.output
