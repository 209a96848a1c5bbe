"""Every model by every way to train it: each number is the slow twin's, and says at which stage it was taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.runfile.reader import Run, open_run
from monitor.signals import CATALOGUE, LAYER_CATALOGUE
from tests.monitor.hook.matrix import ALONE, CLIPPED_STEPS, MAX_NORM, SPREAD, STEPS, Kind, measured
from tests.monitor.hook.problems import PROBLEMS
from tests.monitor.hook.torchrun import run_ranks
from tests.monitor.hook.twin import total

Found = list[dict[str, Any]]
"""What each rank found in one training."""

STAGES = {
    "grad_norm_preclip": ("unscaled", "before clipping", "reduced"),
    "grad_norm_postclip": ("unscaled", "after clipping", "reduced"),
    "grad_norm_local": ("unscaled", "before clipping", "local"),
    "grad_abs_max": ("unscaled", "before clipping", "reduced"),
    "grad_zero_share": ("before unscaling and clipping",),
    "adam_rms": ("after the optimizer step", "unscaled and clipped"),
    "weight_norm": ("after the optimizer step",),
    "update_norm": ("optimizer step",),
}


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("matrix")
    run_ranks(folder, Path(__file__).with_name("matrix.py").read_text(), 2, str(folder))
    return [torch.load(folder / f"matrix-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(
    scope="module",
    params=[(problem, kind) for problem in PROBLEMS for kind in (*ALONE, *SPREAD)],
    ids=lambda pair: f"{pair[0].name}-{pair[1].name}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Found]:
    problem, kind = request.param
    if kind.ranks is None:
        torch.set_num_threads(1)
        return kind, [measured(problem, kind, tmp_path_factory.mktemp("alone"))]
    of_ranks = request.getfixturevalue("spread")
    return kind, [found[f"{problem.name}-{kind.name}"] for found in of_ranks]


def _same(run: Run, rank: int, stat: str, expected: list[list[float]], rel: float, scalar: bool = True) -> None:
    """The statistic of every layer and, where there is one, that of the whole."""
    matrix = run.layers(stat, rank=rank)
    assert matrix.step.tolist() == list(range(1, STEPS + 1)), stat
    assert matrix.present.all(), stat
    whole = [total(row) for row in expected]
    floor = rel * np.array(whole)[:, None] * 0.1  # of a gradient that is rounding only, as a key's bias
    assert (np.abs(matrix.value - np.array(expected)) <= rel * np.abs(expected) + floor).all(), stat
    if scalar:
        np.testing.assert_allclose(run.series(stat, rank=rank).value, whole, rtol=rel, err_msg=stat)


def test_every_number_is_the_slow_twins(case: tuple[Kind, Found]) -> None:
    kind, found = case
    run = open_run(found[0]["run"])
    for rank, of_rank in enumerate(found):
        truth = {name: [row[name] for row in of_rank["truth"]] for name in of_rank["truth"][0]}
        _same(run, rank, "grad_norm_preclip", truth["preclip"], 1e-5)
        if kind.precision is None:
            _same(run, rank, "grad_norm_preclip", truth["by_autograd"], 2e-4)
        whole = [total(row) for row in truth["preclip"]]
        after = run.series("grad_norm_postclip", rank=rank).value
        np.testing.assert_allclose(after, [total(row) for row in truth["postclip"]], rtol=1e-5)
        coef = [min(1.0, MAX_NORM / (norm + 1e-6)) for norm in whole[:CLIPPED_STEPS]]
        np.testing.assert_allclose(run.series("clip_coef", rank=rank).value, [*coef, 1.0], rtol=1e-5)
        assert max(coef) < 1  # else clipping did nothing, and both stages could be mixed up
        limits = run.series("clip_max_norm", rank=rank)
        assert (limits.step.tolist(), set(limits.value)) == (list(range(1, CLIPPED_STEPS + 1)), {MAX_NORM})
        _same(run, rank, "weight_norm", truth["weight"], 1e-5)
        _same(run, rank, "update_norm", truth["update"], 1e-4)  # the truth is a difference of rounded weights
        ratio = np.array(truth["update"]) / np.array(truth["weight"])
        np.testing.assert_allclose(run.layers("update_to_weight_ratio", rank=rank).value, ratio, rtol=1e-3)
        _same(run, rank, "adam_rms", truth["rms"], 1e-5, scalar=False)
        _same(run, rank, "grad_abs_max", truth["abs_max"], 1e-5, scalar=False)
        peaks = [max(row) for row in truth["abs_max"]]
        np.testing.assert_allclose(run.series("grad_abs_max", rank=rank).value, peaks, rtol=1e-5)
        np.testing.assert_allclose(run.layers("grad_zero_share", rank=rank).value, truth["zero_share"], atol=1e-6)
        assert not [event.fields["text"] for event in run.events("warning")]


def test_each_rank_tells_its_own_gradient_from_the_reduced_one(case: tuple[Kind, Found]) -> None:
    kind, found = case
    run = open_run(found[0]["run"])
    if kind.ranks in (None, "tensor"):
        assert "grad_norm_local" not in {*run.names, *run.layer_stats}
        return
    for rank, of_rank in enumerate(found):
        local = [row["local"] for row in of_rank["truth"]]
        np.testing.assert_allclose(
            run.series("grad_norm_local", rank=rank).value, [total(row) for row in local], rtol=2e-4
        )
        if kind.ranks == "ddp":
            _same(run, rank, "grad_norm_local", local, 2e-4)
    first, second = (run.series("grad_norm_local", rank=rank).value for rank in (0, 1))
    assert (np.abs(first - second) > 1e-3 * first).all()  # else a reduced norm would have passed for a local one


def test_every_number_says_its_stage(case: tuple[Kind, Found]) -> None:
    _, found = case
    run = open_run(found[0]["run"])
    for stat in {*run.layer_stats, *run.names} & STAGES.keys():
        for catalogue, there in ((CATALOGUE, run.names), (LAYER_CATALOGUE, run.layer_stats)):
            if stat in there:
                assert all(word in catalogue[stat].stage for word in STAGES[stat]), stat
