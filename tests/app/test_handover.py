"""`gradiometer train --engine`: handed over, and it returns."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.handover import hand_over
from monitor.errors import RunError
from tests.waiting import until
from trainer import launch


def test_training_is_handed_over_and_lives_on(tmp_path: Path) -> None:
    said = hand_over(None, "charmlp", ["steps=5", "name=mine"], tmp_path, "local")
    assert said is not None
    (run_dir,) = tmp_path.iterdir()
    assert said.startswith(f"run {run_dir.name} in {tmp_path}") and f"gradiometer stop {run_dir}" in said
    launch.stop(run_dir)
    until(lambda: not launch.is_running(run_dir), "the end of the training")


def test_configuration_file_may_name_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, runs = tmp_path / "mine.toml", tmp_path / "runs"
    file.write_text("steps = 5\n")
    assert hand_over(file, None, [], runs, None) is None  # one for the terminal
    file.write_text('steps = 5\n[launch]\nengine = "slurm"\n')
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RunError, match="sbatch is not on the PATH"):
        hand_over(file, None, [], runs, None)
    assert not runs.exists()
