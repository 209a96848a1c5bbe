"""What the doctor says of the sample runs, against the truth about the fault that each was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.data import SAMPLE_SWEEP
from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.view import Signals
from monitor.runfile.reader import open_run
from monitor.runfile.store import list_runs
from trainer.sweep import list_sweeps

SAMPLES = Path(__file__).resolve().parents[1] / "sample_runs"
RUNS = sorted(path.parent for path in SAMPLES.glob("*/expected.json"))
SEVERITIES = ("info", "warning", "critical")

each_run = pytest.mark.parametrize("run_dir", RUNS, ids=lambda path: path.name)


def _expected(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "expected.json").read_text())


def _answers(finding: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a finding is the one that was wanted."""
    low, high = wanted["onset_step"]
    return (
        finding["id"] == wanted["id"]
        and SEVERITIES.index(finding["severity"]) >= SEVERITIES.index(wanted["severity_at_least"])
        and low <= finding["onset_step"] <= high
        and (not wanted["layers"] or finding["layer"] in wanted["layers"])
    )


def test_there_is_a_healthy_run_an_explosion_and_a_spike() -> None:
    names = {"gpt-healthy", "gpt-gradient-explosion", "gpt-one-batch-spike", "gpt-replicas-apart"}
    assert {path.name for path in RUNS} == names | {"mlp-edge-of-stability"}
    verdicts = {path.name: _expected(path)["verdict"] for path in RUNS}
    assert verdicts["gpt-healthy"] == "healthy"
    assert {verdicts["gpt-gradient-explosion"], verdicts["gpt-one-batch-spike"]} == {"incident"}


@each_run
def test_doctor_says_what_was_done_to_the_run(run_dir: Path) -> None:
    report = json.loads(json.dumps(diagnose(run_dir).to_dict(), allow_nan=False))
    expected = _expected(run_dir)
    found = [(one["id"], one["severity"], one["onset_step"], one["layer"]) for one in report["findings"]]
    assert report["verdict"] == expected["verdict"], found
    for wanted in expected["must"]:
        right = [finding for finding in report["findings"] if _answers(finding, wanted)]
        assert right, f"{wanted} is not among {found}"
        causes = [cause["id"] for finding in right for cause in finding["causes"]]
        accepted = expected["causes_any_of"]
        assert not accepted or set(accepted) & set(causes), f"causes {causes}, none of {accepted}"
    said = {finding["id"] for finding in report["findings"] if finding["severity"] != "info"}
    assert not said & set(expected["must_not"])


@each_run
def test_no_look_at_a_run_in_progress_raises_an_alarm_before_anything_happened(run_dir: Path) -> None:
    """What a page that is open from the start tells, through warm-up and first evaluation."""
    signals = Signals.from_run(open_run(run_dir), kept={})
    onsets = [wanted["onset_step"][0] for wanted in _expected(run_dir)["must"]]
    for step in range(20, min(onsets, default=signals.last_step + 20), 20):
        told = [finding.summary for finding in diagnose(signals, until_step=step).at_least("warning")]
        assert not told, f"at step {step}"


@each_run
def test_run_is_whole_and_says_nothing_about_this_machine(run_dir: Path) -> None:
    run = open_run(run_dir)
    assert run.problems == ()
    assert run.id == run_dir.name and run.state.word == "finished"
    loss = run.series("train_loss")
    assert len(loss) == run.planned_steps == run.last_step
    assert run.layers("grad_norm_preclip").names
    assert len(run.system()) > 0 and run.log_tail()
    assert run.landscape() or len(run.ranks(0)) > 1, "it is sampled where one process holds the model and the batch"
    assert np.isfinite(run.series("val_loss").value[0])
    (attempt,) = run.attempts
    assert attempt.host is None
    assert run.config is not None and "fault" not in run.config
    assert not naming_this_machine(run_dir)


def naming_this_machine(folder: Path) -> list[Path]:
    names = (b"/work/", b"/home/", b"/root", b"/tmp", b"/Users/")
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files for name in names if name in file.read_bytes()]


def test_the_sweep_is_whole() -> None:
    (sweep,) = list_sweeps(SAMPLES / SAMPLE_SWEEP)
    assert sweep.state == "finished" and len(sweep.trials) == sweep.planned and sweep.problem is None
    assert not naming_this_machine(SAMPLES / SAMPLE_SWEEP)
    for trial in sweep.trials:
        run = open_run(SAMPLES / SAMPLE_SWEEP / trial.run_id)
        assert run.problems == () and run.state.word == "finished"
        measured = run.series("val_loss").value
        assert trial.value == pytest.approx(float(measured[-1]), rel=1e-6, nan_ok=True)


def test_full_batch_descent_sharpens_up_to_two_over_the_learning_rate_and_hovers_there() -> None:
    run = open_run(SAMPLES / "mlp-edge-of-stability")
    assert run.config is not None
    limit = 2 / run.config["optimizer"]["lr"]
    sharpness = run.series("sharpness")
    assert np.allclose(run.series("sharpness_limit").value, limit)
    assert (sharpness.between(None, 30).value < 0.1 * limit).all()
    hovering = sharpness.between(100, None).value
    assert 0.8 < np.median(hovering) / limit < 1.2 and hovering.max() < 2 * limit
    loss = run.series("train_loss").value
    assert loss[-1] < 0.2 * loss[0], "and it learns all the while"


def test_samples_are_small_and_listed() -> None:
    size = sum(file.stat().st_size for file in SAMPLES.rglob("*") if file.is_file())
    assert size < 10e6
    rows = {row.path.name: row for row in list_runs(SAMPLES)}
    assert set(rows) == {run_dir.name for run_dir in RUNS}
    for run_dir in RUNS:
        assert rows[run_dir.name].problem is None
        assert rows[run_dir.name].state.word == "finished"
