"""A rule misses nothing because the run was thinned, and does not claim a step that nobody kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.report import Report
from monitor.runfile import thinning
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.diagnosis.controls import LAYERS, gradient, spread

STEPS = 1200
AT = 1001
"""Step of the planted event."""
LAYER = 5


def recorded(folder: Path, layers: np.ndarray, budget: int, **scalars: np.ndarray) -> Report:
    """The report on a run of ``layers`` float32[T, L] and the scalars, written under a budget."""
    run = create_run(folder)
    begin_attempt(run)
    writer = RankWriter(run, 0, rows_per_batch=16, layer_budget_bytes=budget)
    writer.define_layers(LAYERS, [(1,)] * len(LAYERS))
    for row in range(len(layers)):
        writer.scalars(row + 1, float(row), {name: float(value[row]) for name, value in scalars.items()})
        writer.layers(row + 1, float(row), {"grad_norm_preclip": layers[row]})
        if row + 1 in (AT - 2, AT + 1):  # an interval ends here, so that the event lies inside the next one
            assert writer.flush(60)
    writer.close()
    write_exit(run, 0, outcome="finished", step=STEPS, reason="done")
    return diagnose(open_run(run))


@pytest.fixture
def healthy() -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
    """Layers and scalars of a run that has nothing wrong."""
    rng = np.random.default_rng(3)
    norm = gradient(rng, STEPS)
    loss = 2 + 2 * np.exp(-np.arange(STEPS) / 100) + rng.normal(0, 0.01, STEPS)
    return spread(rng, norm), {"train_loss": loss, "grad_norm_preclip": norm}


@pytest.fixture(params=["told at once", "left out"])
def told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the row of the event is written out of turn, or known only by the interval that it lies in."""
    at_once = request.param == "told at once"
    if not at_once:
        monkeypatch.setattr(thinning, "TELLING_AT_ONCE", 0.0)
        monkeypatch.setattr(thinning, "TELLING_PER_REGULAR", 0.0)
    return at_once


FULL, THIN = 1 << 30, 30_000


def test_a_healthy_run_stays_healthy_when_it_is_thinned(tmp_path: Path, healthy: tuple) -> None:
    layers, scalars = healthy
    for budget in (FULL, THIN, 1):
        report = recorded(tmp_path / str(budget), layers, budget, **scalars)
        assert not report.at_least("info"), [finding.summary for finding in report.findings]


def test_an_explosion_in_a_step_left_out_is_found_in_its_layer(tmp_path: Path, healthy: tuple, told: bool) -> None:
    layers, scalars = healthy
    layers[AT - 1, LAYER] *= 300
    norm = scalars["grad_norm_preclip"]
    norm[AT - 1] = np.linalg.norm(layers[AT - 1])
    for budget in (FULL, THIN):
        report = recorded(tmp_path / str(budget), layers, budget, **scalars)
        (found,) = [finding for finding in report.findings if finding.id == "gradient-explosion"]
        assert (found.layer, found.onset_step) == (LAYERS[LAYER], AT), found.summary
        assert found.first_step == AT


def test_a_jump_that_only_its_layer_shows_is_named_with_its_interval(
    tmp_path: Path, healthy: tuple, told: bool
) -> None:
    layers, scalars = healthy
    layers[:, LAYER] /= 1000
    layers[AT - 1, LAYER] *= 1000 * 0.8
    (full,) = recorded(tmp_path / "full", layers, FULL, **scalars).findings
    assert (full.layer, full.onset_step, full.first_step) == (LAYERS[LAYER], AT, AT)
    (thin,) = recorded(tmp_path / "thin", layers, THIN, **scalars).findings
    assert (thin.id, thin.layer) == (full.id, full.layer)
    if told:
        assert (thin.onset_step, thin.first_step) == (AT, AT)
        assert f"at step {AT}" in thin.summary
    else:
        assert (thin.onset_step, thin.first_step) == (AT - 1, AT + 1)
        assert f"between steps {AT - 1} and {AT + 1}" in thin.summary
        assert thin.evidence["layer_step_from"] == AT - 1


@pytest.mark.parametrize("seen_by_the_norm", [True, False])
def test_a_nan_in_a_step_left_out_is_found_once_in_its_layer(
    tmp_path: Path, healthy: tuple, told: bool, seen_by_the_norm: bool
) -> None:
    layers, scalars = healthy
    layers[AT - 1, LAYER] = np.nan
    if seen_by_the_norm:
        scalars["grad_norm_preclip"][AT - 1] = np.nan
    (found,) = recorded(tmp_path, layers, THIN, **scalars).findings
    assert (found.id, found.layer) == ("non-finite", LAYERS[LAYER])
    if told or seen_by_the_norm:
        assert (found.onset_step, found.first_step, found.last_step) == (AT, AT, AT)
        assert f"at step {AT}" in found.summary
    else:
        assert (found.onset_step, found.first_step) == (AT - 1, AT + 1)
        assert f"between steps {AT - 1} and {AT + 1}" in found.summary
