"""Run by test_samplers.py in an interpreter that has no Optuna."""

from monitor.errors import RunError
from trainer.sweep.record import COMPLETE, Trial
from trainer.sweep.samplers import importances, make_sampler
from trainer.sweep.space import Range

SPACE = {"lr": Range(0.0, 1.0), "other": Range(0.0, 1.0)}
try:
    make_sampler("tpe", "none", SPACE, minimise=True, planned_steps=1, seed=0)
except RunError as refusal:
    print(refusal)
sampler = make_sampler("random", "none", SPACE, minimise=True, planned_steps=1, seed=0)
asked = [sampler.ask(number) for number in range(40)]
trials = [Trial(number, "r", params, COMPLETE, -params["lr"]) for number, params in enumerate(asked)]
shares, how = importances(SPACE, trials, minimise=True)
print(how, max(shares, key=lambda name: shares[name]))
