"""What the next trial tries, and whether one is worth going on with: at random, or by Optuna (extra ``sweep``).

Optuna's study lives in the memory of the one process that looks after a sweep and is made again from the sweep's own
record when that process is started again: none of Optuna's storages survives a kill in the middle of a write.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from monitor.errors import RunError
from trainer.sweep.record import FAILED, Trial
from trainer.sweep.space import Choice, Range, Space

SAMPLERS: dict[str, str] = {
    # name: class of Optuna
    "random": "RandomSampler",
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
    "cmaes": "CmaEsSampler",
    "nsgaii": "NSGAIISampler",
}
PRUNERS: dict[str, str] = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}
_NEEDED = {"gp": ("scipy", "torch"), "qmc": ("scipy",), "cmaes": ("cmaes",)}
"""What a sampler of Optuna imports beside Optuna."""
_PERCENTILE = 25.0
"""Of the trials at the same step, the share that may go on under ``percentile``."""


class Sampler(Protocol):
    """Chooses configurations; learns from what came of them."""

    def ask(self, number: int) -> dict[str, Any]:
        """The values of trial ``number``."""
        ...

    def adopt(self, trial: Trial) -> None:
        """A trial of an earlier process, ended or still going on."""
        ...

    def report(self, number: int, step: int, value: float) -> bool:
        """The metric of a running trial at a step; whether the pruner would end it."""
        ...

    def tell(self, trial: Trial) -> None:
        """What came of a trial."""
        ...


def missing(sampler: str, pruner: str) -> str | None:
    """The package that is not installed and would be needed, with what to do; None when all are there."""
    if sampler == "random" and pruner == "none":
        return None
    for package in ("optuna", *_NEEDED.get(sampler, ())):
        if importlib.util.find_spec(package) is None:
            extra = "pip install 'gradiometer[sweep]'" if package == "optuna" else f"pip install {package}"
            return (
                f"Sampler {sampler} with pruner {pruner} needs the package {package}, which is not installed. "
                f"Install it with: {extra}. Or use sampler random with pruner none, which need nothing."
            )
    return None


def require_packages(sampler: str, pruner: str) -> None:
    """Raises:
    RunError: a package is missing: which, and what to do.
    """
    if words := missing(sampler, pruner):
        raise RunError(words)


def make_sampler(sampler: str, pruner: str, space: Space, *, minimise: bool, planned_steps: int, seed: int) -> Sampler:
    """The sampler of a plan.

    Raises:
        RunError: a package is missing.
    """
    require_packages(sampler, pruner)
    if sampler == "random" and pruner == "none":
        return AtRandom(space, seed)
    return Optuna(sampler, pruner, space, minimise=minimise, planned_steps=planned_steps, seed=seed)


class AtRandom:
    """Independent draws, the same for the same seed and trial number whatever happened in between."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def ask(self, number: int) -> dict[str, Any]:
        draws = random.Random(f"{self._seed}/{number}")
        return {name: one.draw(draws) for name, one in self._space.items()}

    def adopt(self, trial: Trial) -> None:
        """Nothing is learnt."""

    def report(self, number: int, step: int, value: float) -> bool:
        return False

    def tell(self, trial: Trial) -> None:
        """Nothing is learnt."""


class Optuna:
    """One of Optuna's samplers, with one of its pruners."""

    def __init__(
        self, sampler: str, pruner: str, space: Space, *, minimise: bool, planned_steps: int, seed: int
    ) -> None:
        optuna = importlib.import_module("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._distributions = {name: _distribution(optuna, one) for name, one in space.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            chosen = getattr(optuna.samplers, SAMPLERS[sampler])(seed=seed)
        self._study = optuna.create_study(
            sampler=chosen,
            pruner=_pruner(optuna, pruner, planned_steps),
            direction="minimize" if minimise else "maximize",
        )
        self._running: dict[int, Any] = {}

    def ask(self, number: int) -> dict[str, Any]:
        trial = self._study.ask(fixed_distributions=self._distributions)
        self._running[number] = trial
        return dict(trial.params)

    def adopt(self, trial: Trial) -> None:
        if trial.ended:
            self._study.add_trial(self._frozen(trial))
            return
        self._study.enqueue_trial(dict(trial.params))
        self.ask(trial.number)
        for step, value in trial.reports:
            self.report(trial.number, step, value)

    def report(self, number: int, step: int, value: float) -> bool:
        trial = self._running.get(number)
        if trial is None:
            return False
        trial.report(value, step)
        return bool(trial.should_prune())

    def tell(self, trial: Trial) -> None:
        running = self._running.pop(trial.number, None)
        if running is None:
            return
        state = self._state(trial)
        complete = state is self._optuna.trial.TrialState.COMPLETE
        self._study.tell(running, trial.value if complete else None, state=state)

    def _state(self, trial: Trial) -> Any:
        """A diverged or pruned trial has told something, by its reports; one that crashed has not."""
        states = self._optuna.trial.TrialState
        if trial.result is not None:
            return states.COMPLETE
        return states.FAIL if trial.state == FAILED else states.PRUNED

    def _frozen(self, trial: Trial) -> Any:
        state = self._state(trial)
        complete = state is self._optuna.trial.TrialState.COMPLETE
        return self._optuna.trial.create_trial(
            state=state,
            value=trial.value if complete else None,
            params=dict(trial.params),
            distributions=self._distributions,
            intermediate_values=dict(trial.reports),
        )


def importances(space: Space, trials: Sequence[Trial], *, minimise: bool) -> tuple[Mapping[str, float], str]:
    """How much each field decides about the value, and by which method; empty when nothing can be said.

    With Optuna: PED-ANOVA (Watanabe et al. 2023), whose shares sum to 1. Without: the size of Spearman's rank
    correlation, which sees a rise or a fall only, and nothing of fields whose values have no order.
    """
    known = [trial for trial in trials if trial.result is not None]
    if len(known) < LEAST_FOR_IMPORTANCE:
        return {}, f"{len(known)} trials have a value; {LEAST_FOR_IMPORTANCE} are needed"
    if importlib.util.find_spec("optuna"):
        optuna = importlib.import_module("optuna")
        study = Optuna("random", "none", space, minimise=minimise, planned_steps=1, seed=0)
        for trial in known:
            study.adopt(trial)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return optuna.importance.get_param_importances(study._study, evaluator=evaluator), "PED-ANOVA"
    import pandas as pd

    ordered = {name for name, one in space.items() if isinstance(one, Range)}
    frame = pd.DataFrame([{name: trial.params[name] for name in ordered} | {"": trial.value} for trial in known])
    with_value = frame.corr(method="spearman")[""].drop("").abs().dropna()
    return dict(with_value.sort_values(ascending=False)), "rank correlation"


LEAST_FOR_IMPORTANCE = 10
"""Fewer trials say nothing about importance (our judgement)."""


def _distribution(optuna: Any, one: Range | Choice) -> Any:
    if isinstance(one, Choice):
        return optuna.distributions.CategoricalDistribution(one.values)
    if one.whole:
        return optuna.distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
    return optuna.distributions.FloatDistribution(one.low, one.high, log=one.log)


def _pruner(optuna: Any, name: str, planned_steps: int) -> Any:
    """The pruner, told in optimizer steps what it counts in steps."""
    least = max(1, planned_steps // 10)
    more: dict[str, dict[str, Any]] = {
        "median": {"n_warmup_steps": least},
        "percentile": {"percentile": _PERCENTILE, "n_warmup_steps": least},
        "halving": {"min_resource": least},
        "hyperband": {"min_resource": least, "max_resource": planned_steps},
    }
    return getattr(optuna.pruners, PRUNERS[name])(**more.get(name, {}))
