"""What a sweep is to do: written once, never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.errors import ConfigError
from trainer.config import TrainConfig, from_record
from trainer.sweep.samplers import PRUNERS, SAMPLERS
from trainer.sweep.space import Choice, Range, parse_space, read_space

GOALS = ("minimise", "maximise")
MOST_TRIALS = 10_000
MOST_PARALLEL = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration, what is varied in it, and how the trials are chosen and judged."""

    name: str
    base: TrainConfig
    space: Mapping[str, Range | Choice]
    trials: int = 20
    parallel: int = 1
    """Trials that train at the same time."""
    sampler: str = "random"
    pruner: str = "none"
    metric: str = "val_loss"
    """A scalar of the run; the trial's value is the median of its last twentieth."""
    goal: str = "minimise"
    seed: int = 0
    """Of the sampler. The trainings have that of ``base`` unless it is varied."""
    stop_diverged: bool = True
    """Whether a trial that the rules find diverged is ended."""

    def record(self) -> dict[str, Any]:
        """As ``sweep.json`` keeps it; :func:`read_plan` reads it."""
        return {
            "name": self.name,
            "base": self.base.record(),
            "space": {name: one.record() for name, one in self.space.items()},
            "trials": self.trials,
            "parallel": self.parallel,
            "sampler": self.sampler,
            "pruner": self.pruner,
            "metric": self.metric,
            "goal": self.goal,
            "seed": self.seed,
            "stop_diverged": self.stop_diverged,
        }


def make_plan(base: TrainConfig, vary: Sequence[str], *, name: str | None = None, **more: Any) -> Plan:
    """A plan, checked.

    Args:
        vary: ``optimizer.lr=1e-4..1e-2:log`` and the like, see ``space``.
        more: the other fields of :class:`Plan`.

    Raises:
        ConfigError: a value is refused: which, what was found, what is accepted.
    """
    if base.fault:
        raise ConfigError("A sweep does not train deliberate faults: leave `fault` out of the configuration.")
    space = parse_space(vary, base)
    return _checked(Plan(name or "-".join(field.rpartition(".")[2] for field in space), base, space, **more))


def read_plan(record: Mapping[str, Any], source: str) -> Plan:
    """The plan in a file, which may come from anyone.

    Raises:
        ConfigError: it is refused, and why.
    """
    base = record.get("base")
    if not isinstance(base, dict):
        raise ConfigError(f"{source}: there is no configuration in it, so it is no plan of a sweep.")
    words: dict[str, Any] = {key: str(record.get(key)) for key in ("sampler", "pruner", "metric", "goal")}
    numbers: dict[str, Any] = {key: record.get(key) for key in ("trials", "parallel", "seed")}
    if not all(type(number) is int for number in numbers.values()):
        raise ConfigError(f"{source}: trials, parallel and seed must be whole numbers.")
    plan = Plan(
        name=str(record.get("name"))[:200],
        base=from_record(base, source=source),
        space=read_space(record.get("space")),
        stop_diverged=record.get("stop_diverged") is not False,
        **{**words, **numbers},
    )
    return _checked(plan)


def _checked(plan: Plan) -> Plan:
    for field, most in (("trials", MOST_TRIALS), ("parallel", MOST_PARALLEL)):
        value = getattr(plan, field)
        if not 1 <= value <= most:
            raise ConfigError(f"{field} = {value}: must be 1 to {most}.")
    for field, known in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("goal", GOALS)):
        value = getattr(plan, field)
        if value not in known:
            raise ConfigError(f"{field} = {value!r}: unknown. Choose from: {', '.join(known)}.")
    if not plan.metric or len(plan.metric) > 200:
        raise ConfigError(f"metric = {plan.metric[:40]!r}: must be the name of a scalar of the run, such as val_loss.")
    return plan
