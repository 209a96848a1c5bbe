"""Going back in a training and trying what would mend it, for the command line and the page. Without Streamlit.

    tried = try_fix(path, incident, findings)     a child run from before the onset, with the recommended change
    outcome_of(tried)                             gone, moved, came back, or not decided yet, from rows alone
    settle(tried)                                 ... and written into the parent once it is decided

What was tried lies in the parent as events: ``fix`` when a child was started, ``fix_outcome`` when it was decided.
"""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from app.incident import config_diff, incident_key
from app.text import plain
from monitor.diagnosis.experiments import Experiment, experiments
from monitor.diagnosis.report import plain as as_json
from monitor.diagnosis.verdict import Outcome, Trouble, continued, judge, ranked, steps_needed
from monitor.diagnosis.view import Signals
from monitor.errors import RunError
from monitor.runfile.afterwards import add_afterwards
from monitor.runfile.format import as_number, check_run_id
from monitor.runfile.reader import Run, open_run

Fields = Mapping[str, Any]
ANOTHER_MODEL = ("model.", "adapter.", "task.", "optimizer.kind")
"""Beginnings of fields whose change makes other weights, other moments or other data."""
POLL_S = 0.5
MOST_SHARE = 0.2
"""Of the time that judging a child may take while it trains. Our judgement."""


# ---- going back ---------------------------------------------------------------------------------------------------


def rewound(
    path: str | os.PathLike[str], step: int, changes: Sequence[str], skip_batches: int = 0, *, as_child: bool
) -> str:
    """Rewind the run at ``path`` to the checkpoint of ``step``, or fork a child there; what was started, in words.

    Raises:
        RunError, ConfigError: it was refused.
    """
    from trainer import launch

    overrides = [*changes, *launch.skipping(step, skip_batches)]
    if as_child:
        launched = launch.fork(path, step, overrides)
        child = open_run(launched.run_dir)
        head = f"{child.id} started as a child of {Path(path).name} after step {step}"
        return told(head, changes_of(child), open_run(path))
    launched = launch.resume(path, overrides, at_step=step)
    head = f"{launched.run_id} goes on after step {step} as attempt {launched.attempt}"
    return "\n".join([head, *(f"+ {override}" for override in overrides)])


def changes_of(child: Run) -> dict[str, object]:
    """What a forked run's configuration says differently from its parent's, by dotted name."""
    changes = (child.parent or {}).get("changes")
    return changes if isinstance(changes, dict) else {}


def told(head: str, changes: dict[str, object], parent: Run) -> str:
    """``head`` with the changes beneath it as a diff against the parent's configuration."""
    return plain(head) + (f"\n{config_diff(parent.config or {}, changes)}" if changes else ", nothing changed")


# ---- trying -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """One change that can be tried on an incident, and from where."""

    experiment: Experiment
    trouble: Trouble
    step: int
    """The last healthy checkpoint's; 0, from the start with the same seed, where there is none or the change makes
    another model."""
    attempt: int
    """Whose configuration is changed."""


def why_not(run: Run) -> str | None:
    """Why nothing can be tried on ``run``; None when it can."""
    if run.config is None or not {"optimizer", "task", "checkpoint"} <= run.config.keys():
        return "Not made by this trainer, so that its steps cannot be repeated here: change your own loop as shown."
    return None


def plans(run: Run, incident: Fields, findings: Sequence[Fields]) -> list[Plan]:
    """What can be tried on ``incident``, of the doctor's JSON; the recommended change first."""
    from trainer import launch

    step, attempt = launch.healthy_before(run.path, incident["onset_step"])
    trouble = Trouble.of(incident, findings)
    return [
        Plan(one, trouble, 0 if _is_another_model(one) else step, attempt)
        for one in experiments(incident, run.config or {})
    ]


def _is_another_model(experiment: Experiment) -> bool:
    """Whether the state of a checkpoint does not fit the change, which then has to be there from the start."""
    return any(name.startswith(ANOTHER_MODEL) for name in experiment.patch)


def begin(path: Path, plan: Plan, *, budget: bool = False, **more: Any) -> Path:
    """Start a child run that tries ``plan``, and say so in the parent; gives back the child's directory.

    Args:
        budget: end the child when it can be judged, and not at the parent's last step.
        more: as ``trainer.launch.fork`` takes it.

    Raises:
        RunError, ConfigError: it was refused, or no process could be started.
    """
    from trainer import launch

    run = open_run(path)
    if reason := why_not(run):
        raise RunError(reason)
    overrides = [f"{name}={_spelled(value)}" for name, value in plan.experiment.patch.items()]
    if budget:
        overrides.append(f"stop_after={max(plan.step, plan.trouble.onset_step) + steps_needed(plan.trouble)}")
    fix = {"key": plan.experiment.key, "text": plan.experiment.text, "incident": plan.trouble.record()}
    name = f"{run.name[:60]}-{plan.experiment.key}"
    launched = launch.fork(run.path, plan.step, overrides, attempt=plan.attempt, name=name, fix=fix, **more)
    told_step, attempt = plan.trouble.onset_step, run.attempt_of(plan.trouble.onset_step) or 0
    tried: dict[str, Any] = {
        **fix,
        "run": launched.run_id,
        "from_step": plan.step,
        "patch": dict(plan.experiment.patch),
    }
    add_afterwards(run.path, "fix", step=told_step, attempt=attempt, **tried)
    return launched.run_dir


def _spelled(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---- judging ------------------------------------------------------------------------------------------------------


def parent_of(child: Run) -> Run:
    """The run that ``child`` was forked from, which lies beside it.

    Raises:
        RunError: it was not forked, or its parent is gone.
    """
    name = (child.parent or {}).get("run")
    if child.forked_after is None or not isinstance(name, str):
        raise RunError(f"run {child.id} was not forked from another one, so there is nothing to hold it against.")
    try:
        return open_run(child.path.parent / check_run_id(name))
    except RunError as error:
        raise RunError(
            f"the parent of {child.id} cannot be read, so what became of its incident cannot be told: {error} "
            "The child itself is whole. If the parent was thrown away, take it back: gradiometer restore "
            + shlex.quote(name)
        ) from None


def trouble_of(child: Run) -> Trouble:
    """The incident that ``child`` was started for.

    Raises:
        RunError: for none.
    """
    fix = (child.parent or {}).get("fix")
    incident = fix.get("incident") if isinstance(fix, dict) else None
    if not isinstance(incident, dict):
        raise RunError(f"run {child.id} was not started to try a fix.")
    try:
        return Trouble.read(incident)
    except ValueError as error:
        raise RunError(
            f"{child.path / 'run.json'}: the incident that it was started for is damaged: {error}."
        ) from None


def outcome_of(child: Run, parent: Run | None = None) -> Outcome:
    """What became of the incident that ``child`` was started for, from what both runs have recorded.

    Raises:
        RunError: it was started for none, or its parent is gone.
    """
    trouble, fork = trouble_of(child), child.forked_after or 0
    broken = Signals.from_run(parent or parent_of(child))
    signals = continued(broken, Signals.from_run(child), fork)
    return judge(trouble, signals, fork, before=broken, ended=child.state.ended)


def settle(path: Path) -> Outcome:
    """:func:`outcome_of` the child at ``path``, written into its parent when it is decided and not there yet.

    Raises:
        RunError: as there, or the parent cannot be written.
    """
    child = open_run(path)
    parent = parent_of(child)
    outcome = outcome_of(child, parent)
    if outcome.decided and outcome_told(parent, child.id) != outcome.word:
        at = trouble_of(child).onset_step
        record = {
            "run": child.id, "word": outcome.word, "text": outcome.text,
            "trained_to": outcome.step, "past": outcome.past,
            "loss": outcome.loss, "loss_before": outcome.loss_before, "loss_broken": outcome.loss_broken,
            "again_at": outcome.onset_step,
        }  # fmt: skip
        add_afterwards(parent.path, "fix_outcome", step=at, attempt=parent.attempt_of(at) or 0, **as_json(record))
    return outcome


def outcome_told(parent: Run, child: str) -> str | None:
    """The latest outcome that ``parent`` has of its child."""
    told = [event.fields.get("word") for event in parent.events("fix_outcome") if event.fields.get("run") == child]
    return str(told[-1]) if told else None


@dataclass(frozen=True, slots=True)
class Tried:
    """One fix that was tried, as the parent recorded it."""

    run: str
    key: str
    text: str
    step: int
    """Where it was forked."""
    patch: Fields
    onset_step: int
    outcome: Fields
    """Of the latest ``fix_outcome``; empty while it is not decided."""


def tried(parent: Run, onset_step: int | None = None) -> list[Tried]:
    """The fixes that were tried on ``parent``, oldest first; those for the incident of ``onset_step`` where given."""
    outcomes = {str(event.fields.get("run")): event.fields for event in parent.events("fix_outcome")}
    found = []
    for event in parent.events("fix"):
        fields, step = event.fields, as_number(event.fields.get("from_step"))
        name, patch = fields.get("run"), fields.get("patch")
        if not _is_run_id(name) or step is None or not math.isfinite(step) or event.step is None:
            continue
        if onset_step in (None, event.step):
            patch = patch if isinstance(patch, dict) else {}
            words = str(fields.get("key")), str(fields.get("text"))
            found.append(Tried(name, *words, int(step), patch, event.step, outcomes.get(name) or {}))
    return found


def _is_run_id(name: object) -> TypeGuard[str]:
    """Whether ``name``, which lies in a run directory, leads nowhere but beside it."""
    try:
        return isinstance(name, str) and check_run_id(name) == name
    except RunError:
        return False


def wait(path: Path, say: Callable[[Outcome], None] = lambda outcome: None) -> Outcome:
    """Follow the child at ``path`` until it is decided what became of the incident, or until it has ended."""
    child, seen = open_run(path), -1
    while True:
        ended = child.state.ended
        began = time.monotonic()
        if ended or (child.last_step or 0) > seen:
            seen = child.last_step or 0
            outcome = settle(path)
            say(outcome)
            if outcome.decided or ended:
                return outcome
        time.sleep(max(POLL_S, (time.monotonic() - began) / MOST_SHARE))
        child.refresh()


def what_if(
    path: Path, chosen: Sequence[Plan], *, jobs: int, say: Callable[[str], None], **more: Any
) -> list[tuple[Plan, Path, Outcome]]:
    """Try several changes with as few steps as it takes to judge them, ``jobs`` at a time; the best first.

    Raises:
        RunError, ConfigError: one was refused; those before it have been tried.
    """
    waiting, running = list(chosen), dict[Path, Plan]()
    done: list[tuple[Plan, Path, Outcome]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            plan = waiting.pop(0)
            child = begin(path, plan, budget=True, **more)
            running[child] = plan
            say(f"{child.name}: {plan.experiment.text}, from step {plan.step}")
        time.sleep(POLL_S)
        for child in [one for one in running if open_run(one).state.ended]:
            outcome = settle(child)
            done.append((running.pop(child), child, outcome))
            say(f"{child.name}: {outcome.word}; {outcome.text}")
    return [done[place] for place in ranked([outcome for _, _, outcome in done])]


def chosen_incident(report: Fields, key: str | None) -> Fields:
    """The incident called ``key`` in the doctor's JSON, the worst one without a key.

    Raises:
        RunError: there is none.
    """
    keys = {incident_key(one): one for one in report["incidents"]}
    if not keys:
        raise RunError("the rules find no incident in this run, so there is nothing to mend.")
    if key is None:
        return next(iter(keys.values()))
    if key not in keys:
        raise RunError(f"the run has no incident {key}. It has: {', '.join(keys)}.")
    return keys[key]
