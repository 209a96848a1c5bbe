"""Events added to a run later: seen by who has it open, counted while their step stands, and never trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monitor.errors import RunError
from monitor.runfile import afterwards
from monitor.runfile.afterwards import MOST_BYTES, add_afterwards
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter


def test_an_event_is_seen_by_who_has_the_run_open_while_its_writer_goes_on(run_dir: Path, writer: RankWriter) -> None:
    run = open_run(run_dir)
    writer.scalars(1, 1.0, {"train_loss": 1.0})
    writer.event("note", 1, text="of its own")
    writer.sync()
    places = [add_afterwards(run_dir, "replay", step=1, attempt=0, text=f"number {n}") for n in range(2)]
    assert [place.name for place in places] == ["000000.json", "000001.json"]
    assert run.refresh() and not run.refresh()
    assert [event.fields["text"] for event in run.events()] == ["of its own", "number 0", "number 1"]
    assert run.events("replay")[0].step == 1 and run.problems == ()
    assert run.attempt_of(1) == 0 and run.attempt_of(None) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "a JSON object is expected"),
        (b'{"kind": "replay", "time": 1.0, "step": 1}', "without time, kind, step or attempt"),
        (b'{"kind": "replay", "time": 1.0, "step": true, "attempt": 0}', "without time, kind, step or attempt"),
        (b'{"kind": "replay", "time": 1.0, "step": -1, "attempt": 0}', "without time, kind, step or attempt"),
        (b'{"a": "' + b"x" * MOST_BYTES + b'"}', "bytes; at most"),
    ],
)
def test_what_is_no_event_is_left_out_with_one_message(run_dir: Path, content: bytes, words: str) -> None:
    add_afterwards(run_dir, "replay", step=1, attempt=0)
    (run_dir / "afterwards" / "000001.json").write_bytes(content)
    add_afterwards(run_dir, "replay", step=2, attempt=0)
    run = open_run(run_dir)
    assert [event.step for event in run.events()] == [1, 2]
    (problem,) = run.problems
    assert "000001.json" in problem and words in problem


def test_no_link_is_followed_to_read_or_to_write(run_dir: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = json.dumps({"kind": "replay", "time": 1.0, "step": 1, "attempt": 0, "secret": "x"})
    (outside / "000000.json").write_text(secret)
    (run_dir / "afterwards").symlink_to(outside)
    assert open_run(run_dir).events() == []
    with pytest.raises(RunError, match="a symbolic link, which is not followed; nothing was written"):
        add_afterwards(run_dir, "replay", step=1, attempt=0)
    assert [path.name for path in outside.iterdir()] == ["000000.json"]
    (run_dir / "afterwards").unlink()
    (run_dir / "afterwards").mkdir()
    (run_dir / "afterwards" / "000000.json").symlink_to(outside / "000000.json")
    assert open_run(run_dir).events() == []


def test_what_is_added_has_a_bound(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afterwards, "MOST_FILES", 2)
    for step in (1, 2):
        add_afterwards(run_dir, "replay", step=step, attempt=0)
    with pytest.raises(RunError, match="holds 2 events already"):
        add_afterwards(run_dir, "replay", step=3, attempt=0)
    (run_dir / "afterwards" / "000002.json").write_text((run_dir / "afterwards" / "000000.json").read_text())
    assert len(open_run(run_dir).events()) == 2
