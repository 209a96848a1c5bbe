"""The supervisor's files against those that the rest of the project writes and reads."""

from __future__ import annotations

import json
from pathlib import Path

from monitor.runfile.writer import create_run, write_exit
from trainer.launch.records import create_json, exit_record, last_step, replace_json


def test_exit_record_is_the_one_that_the_run_format_has(tmp_path: Path) -> None:
    run_dir = create_run(tmp_path, run_id="a")
    folder = run_dir / "attempts" / "0000"
    folder.mkdir()
    ours = exit_record("crashed", "why", time=5.0, step=3, signal=9, returncode=-9, traceback=["line"])
    write_exit(
        run_dir,
        0,
        outcome="crashed",
        step=3,
        reason="why",
        signal=9,
        returncode=-9,
        traceback=["line"],
        now=lambda: 5.0,
    )
    assert json.loads((folder / "exit.json").read_text()) == ours


def test_first_record_stands(tmp_path: Path) -> None:
    path = tmp_path / "exit.json"
    assert create_json(path, {"reason": "first"})
    assert not create_json(path, {"reason": "second"})
    assert json.loads(path.read_text()) == {"reason": "first"}
    replace_json(path, {"reason": "third"})
    assert json.loads(path.read_text()) == {"reason": "third"}
    assert [file.name for file in tmp_path.iterdir()] == ["exit.json"]


def test_last_step_of_a_broken_heartbeat_is_unknown(tmp_path: Path) -> None:
    folder = tmp_path / "rank-00000"
    folder.mkdir()
    assert last_step(tmp_path) is None
    for text in ("{", "[]", '{"step": null}', '{"step": "7"}', '{"step": true}', "\x00"):
        (folder / "heartbeat.json").write_text(text)
        assert last_step(tmp_path) is None
    (folder / "heartbeat.json").write_text('{"step": 7}')
    assert last_step(tmp_path) == 7
