"""``gradiometer fix`` and ``gradiometer whatif``: from an incident to a child run that shows whether it is mended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.terminal import AsJson, RunArgument, RunsFolder, fail, or_exit
from app.text import plain

if TYPE_CHECKING:
    from app.fixes import Plan
    from monitor.diagnosis.verdict import Outcome

STATUS = {"gone": 0, "moved": 1, "came back": 1, "not decided": 3}

Incident = Annotated[
    str | None, typer.Option("--incident", metavar="ID", help="Which one, as rule@step.", show_default="the worst")
]


def fix(
    run: RunArgument,
    runs: RunsFolder = Path("runs"),
    incident: Incident = None,
    remedy: Annotated[
        str | None,
        typer.Option(metavar="K", help="What to try, by its name or number; see --list.", show_default="the first"),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only say what could be tried, and from where.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until it is decided, and print what became of it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Try the recommended change on an incident: a child run from the last checkpoint before the onset.

    Exit status with --wait: 0 the incident is gone, 1 it moved or came back, 3 the training ended before it could be
    decided. 2: refused. The child trains on to the end; where there is no checkpoint it begins anew, same seed.
    """
    from app import fixes

    path, plans = or_exit(lambda: _plans(run, runs, incident))
    if list_:
        _list(plans)
        return
    plan = plans[_place(plans, remedy)]
    child = or_exit(lambda: fixes.begin(path, plan))
    if not wait:
        print(f"{child.name}  {plain(plan.experiment.text)}, {_from(plan)}")
        return
    outcome = or_exit(lambda: fixes.wait(child))
    if as_json:
        print(json.dumps(_row(plan, child, outcome), indent=2, allow_nan=False))
    else:
        print(f"{child.name}  {plain(plan.experiment.text)}, {_from(plan)}")
        print(f"{outcome.word}: {plain(outcome.text)}")
    raise typer.Exit(STATUS[outcome.word])


def whatif(
    run: RunArgument,
    runs: RunsFolder = Path("runs"),
    incident: Incident = None,
    remedy: Annotated[
        list[str] | None, typer.Option(metavar="K", help="Only these, by name or number.", show_default="all")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=64, help="Trainings at a time.", show_default="one per 2 cores")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try several changes on an incident, each with as few steps as it takes to judge it, and rank them.

    Each is a child run, recorded in its parent. Exit status: 0 the incident is gone in at least one, 1 in none, 2
    refused.
    """
    from app import fixes

    path, plans = or_exit(lambda: _plans(run, runs, incident))
    chosen = [plans[_place(plans, one)] for one in remedy] if remedy else plans
    most = jobs or max(1, (os.cpu_count() or 1) // 2)
    say = (lambda text: None) if as_json else (lambda text: print(plain(text), flush=True))
    done = or_exit(lambda: fixes.what_if(path, chosen, jobs=most, say=say))
    if as_json:
        print(json.dumps([_row(*one) for one in done], indent=2, allow_nan=False))
    else:
        Console().print(_table(done))
    raise typer.Exit(min(STATUS[outcome.word] for _, _, outcome in done) and 1)


def _plans(run: str, runs: Path, incident: str | None) -> tuple[Path, list[Plan]]:
    from app import fixes
    from monitor.diagnosis.engine import diagnose
    from monitor.errors import RunError
    from monitor.runfile.reader import open_run

    path = Path(run) if Path(run).exists() or os.sep in run else runs / run
    opened = open_run(path)
    if reason := fixes.why_not(opened):
        raise RunError(reason)
    report = diagnose(opened).to_dict()
    return path, fixes.plans(opened, fixes.chosen_incident(report, incident), report["findings"])


def _place(plans: list[Plan], named: str | None) -> int:
    keys = [plan.experiment.key for plan in plans]
    if named is None:
        return 0
    if named in keys:
        return keys.index(named)
    if named.isdecimal() and 1 <= int(named) <= len(keys):
        return int(named) - 1
    fail(f"--remedy {named}: not one of {', '.join(keys)}, nor a number from 1 to {len(keys)}.")


def _list(plans: list[Plan]) -> None:
    for number, plan in enumerate(plans, 1):
        print(f"{number}  {plan.experiment.key}: {plain(plan.experiment.text)}, {_from(plan)}")
        for name, value in plan.experiment.patch.items():
            print(f"     {name} = {plain(value)}")


def _from(plan: Plan) -> str:
    onset = plan.trouble.onset_step
    if plan.step == 0:
        return (
            f"from the start with the same seed: no checkpoint of before step {onset} is complete and fits the change"
        )
    return f"from the checkpoint of step {plan.step}, before the onset at step {onset}"


def _row(plan: Plan, child: Path, outcome: Outcome) -> dict[str, Any]:
    from dataclasses import asdict

    from monitor.diagnosis.report import plain as as_json

    found: dict[str, Any] = as_json(
        {
            "run": child.name,
            "key": plan.experiment.key,
            "change": plan.experiment.text,
            "patch": plan.experiment.patch,
            "from_step": plan.step,
            **asdict(outcome),
        }
    )
    return found


def _table(done: list[tuple[Plan, Path, Outcome]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "change", "outcome", "loss", "why", "run"):
        table.add_column(column, justify="right" if column == "loss" else "left")
    for number, (plan, child, outcome) in enumerate(done, 1):
        words = (str(number), plan.experiment.text, outcome.word, f"{outcome.loss:.4g}", outcome.text, child.name)
        table.add_row(*(Text(plain(word)) for word in words))
    return table
