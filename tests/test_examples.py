"""The examples run as they stand: real trainings, in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from monitor.runfile.reader import Run, open_run

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "sample_runs"


def _run_python(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def _the_run(runs: Path) -> Run:
    (folder,) = (path for path in runs.iterdir() if (path / "run.json").is_file())
    return open_run(folder)


def test_the_plain_loop_trains_and_is_healthy(tmp_path: Path) -> None:
    output = _run_python(tmp_path, str(EXAMPLES / "plain_loop.py"), "--steps", "40", "--runs", str(tmp_path / "runs"))
    run = _the_run(tmp_path / "runs")
    told = json.loads(output.splitlines()[-1])
    loss = run.series("train_loss")
    assert told == {"run": str(run.path), "loss": loss.value[-1]} and len(loss) == 40
    assert loss.value[-1] < 0.8 * loss.value[0]
    assert run.series("val_loss").step.tolist() == [20, 40]
    assert len(run.series("tflops_per_s")) == 40
    labels = {tuple(event.fields["labels"]) for event in run.events("attention_map") if "sample" in event.fields}
    assert labels == {tuple("def main(steps):")}


def test_the_notebook_is_whole_has_no_outputs_and_runs(tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    # One namespace, cell after cell, as a kernel does.
    script = (
        "import json, sys\nspace = {'__name__': '__main__'}\nfor cell in json.loads(sys.argv[1]): exec(cell, space)"
    )
    output = _run_python(tmp_path, "-c", script, json.dumps(["".join(cell["source"]) for cell in code]))
    run = _the_run(tmp_path / "runs")
    loss = run.series("train_loss")
    assert len(loss) == 150 and loss.value[-1] < loss.value[0]
    assert "150 steps" in output and run.landscape() and run.attempts[0].exit["outcome"] == "finished"
