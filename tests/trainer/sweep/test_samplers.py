"""Samplers find what they are to find, forget nothing over a restart, and say which package they lack."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest

from trainer.sweep.record import COMPLETE, DEAD, FAILED, PRUNED, Trial
from trainer.sweep.samplers import importances, make_sampler
from trainer.sweep.space import Choice, Range

optuna = pytest.importorskip("optuna")

SPACE = {"lr": Range(1e-4, 1.0, log=True), "layers": Range(1, 6, whole=True), "kind": Choice(("a", "b", None))}


def value_of(params: dict[str, Any]) -> float:
    """Best at lr 0.01; the kind matters little, the layers not at all."""
    import math

    return (math.log10(params["lr"]) + 2) ** 2 + 0.1 * (params["kind"] != "b")


def run(sampler: str, count: int, *, restart_at: int | None = None, space: Any = SPACE) -> list[Trial]:
    def fresh() -> Any:
        return make_sampler(sampler, "none", space, minimise=True, planned_steps=100, seed=3)

    one, trials = fresh(), []
    for number in range(count):
        if number == restart_at:
            one = fresh()
            for trial in trials:
                one.adopt(trial)
        params = one.ask(number)
        trials.append(Trial(number, f"r{number}", params, COMPLETE, value_of(params)))
        one.tell(trials[-1])
    return trials


def test_random_draws_are_the_same_after_a_restart() -> None:
    assert run("random", 8) == run("random", 8, restart_at=5)
    assert len({trial.params["lr"] for trial in run("random", 8)}) == 8


@pytest.mark.parametrize("sampler", ["tpe", "gp", "qmc", "nsgaii"])
def test_each_sampler_of_optuna_asks_inside_the_space_also_after_a_restart(sampler: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trials = run(sampler, 14, restart_at=12)
    for trial in trials:
        assert 1e-4 <= trial.params["lr"] <= 1.0
        assert trial.params["layers"] in range(1, 7)
        assert trial.params["kind"] in ("a", "b", None)


def test_tpe_learns_over_a_restart() -> None:
    trials = run("tpe", 40, restart_at=20)
    first, last = trials[:10], trials[30:]
    assert sum(value_of(dict(t.params)) for t in last) < sum(value_of(dict(t.params)) for t in first) / 2


def test_the_pruner_ends_what_is_worse_than_the_median_and_remembers_reports_over_a_restart() -> None:
    def fresh() -> Any:
        return make_sampler("random", "median", SPACE, minimise=True, planned_steps=100, seed=0)

    one = fresh()
    done = []
    for number in range(6):
        params = one.ask(number)
        assert not one.report(number, 50, 1.0 + number / 10) or number > 4
        done.append(Trial(number, f"r{number}", params, COMPLETE, 1.0, reports=((50, 1.0 + number / 10),)))
        one.tell(done[-1])
    half_way = Trial(6, "r6", one.ask(6), reports=((40, 5.0),))
    again = fresh()
    for trial in [*done, half_way]:
        again.adopt(trial)
    for sampler in (one, again):
        assert sampler.report(6, 50, 9.0)
        assert not sampler.report(99, 50, 9.0), "a trial that nobody asked for is none of its business"


def test_how_a_trial_ended_reaches_the_study() -> None:
    one: Any = make_sampler("tpe", "none", SPACE, minimise=True, planned_steps=100, seed=0)
    for number, (state, value) in enumerate([(COMPLETE, 1.0), (DEAD, float("nan")), (PRUNED, 2.0), (FAILED, None)]):
        one.tell(Trial(number, "r", one.ask(number), state, value))
    assert [trial.state.name for trial in one._study.trials] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL"]


def test_importance_names_the_field_that_decides() -> None:
    trials = run("random", 60)
    shares, how = importances(SPACE, trials, minimise=True)
    assert how == "PED-ANOVA"
    assert max(shares, key=lambda name: shares[name]) == "lr"
    assert importances(SPACE, trials[:3], minimise=True) == ({}, "3 trials have a value; 10 are needed")


def test_without_optuna_random_works_and_the_rest_says_what_to_install() -> None:
    program = (
        "import sys, importlib.abc\n"
        "class No(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'optuna': raise ImportError(name)\n"
        "import importlib.util; real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'optuna' else real(name, *a)\n"
        "sys.meta_path.insert(0, No())\n"
        "from tests.trainer.sweep import without_optuna\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "pip install 'gradiometer[sweep]'" in done.stdout
    assert "rank correlation lr" in done.stdout
