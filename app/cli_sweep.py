"""``gradiometer sweep``: begin, list, show, stop and resume sweeps."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app import text
from app.terminal import AsJson, RunsFolder, or_exit

if TYPE_CHECKING:
    from trainer.sweep import Sweep

sweep = typer.Typer(help="Train a configuration many times with other values in a few fields.", no_args_is_help=True)
SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Id of a sweep, see: gradiometer sweep list")]


@sweep.command()
def start(
    vary: Annotated[
        list[str],
        typer.Option(
            "--vary", metavar="NAME=VALUES", help="LOW..HIGH, LOW..HIGH:log or A,B: optimizer.lr=1e-4..1e-2:log"
        ),
    ],
    trials: Annotated[int, typer.Option(help="Trainings in all.")] = 20,
    parallel: Annotated[int, typer.Option(help="Trainings at the same time.")] = 1,
    sampler: Annotated[str, typer.Option(help="random, or of Optuna: tpe, gp, qmc, cmaes, nsgaii.")] = "random",
    pruner: Annotated[str, typer.Option(help="none, or of Optuna: median, percentile, halving, hyperband.")] = "none",
    metric: Annotated[str, typer.Option(help="Scalar of the run that judges a trial.")] = "val_loss",
    maximise: Annotated[bool, typer.Option("--maximise", help="The larger the better.")] = False,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    keep_diverged: Annotated[
        bool, typer.Option("--keep-diverged", help="Do not end trials that the rules find diverged.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="TOML or YAML file.", metavar="FILE")] = None,
    preset: Annotated[str | None, typer.Option(help="Starting point: quick, charmlp, long, ...")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field for all trials.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep.")] = None,
    runs: RunsFolder = Path("runs"),
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
) -> None:
    """Begin a sweep; it goes on when this terminal is closed."""
    from trainer.config import load_config
    from trainer.sweep import begin, make_plan

    def action() -> Sweep:
        base = load_config(config, set_ or [], preset=preset)
        plan = make_plan(
            base, vary, name=name, trials=trials, parallel=parallel, sampler=sampler, pruner=pruner, metric=metric,
            goal="maximise" if maximise else "minimise", seed=seed, stop_diverged=not keep_diverged,
        )  # fmt: skip
        return begin(plan, runs)

    begun = or_exit(action)
    print(f"sweep {begun.id} in {begun.runs_dir}")
    print(f"  watch it:  gradiometer app --runs {begun.runs_dir}    or    gradiometer sweep show {begun.id}")
    if wait:
        _wait(begun)


@sweep.command("list")
def list_(runs: RunsFolder = Path("runs"), as_json: AsJson = False) -> None:
    """The sweeps of a runs folder, the newest first."""
    from trainer.sweep import list_sweeps

    found = list_sweeps(runs)
    if as_json:
        print(json.dumps([_record(one) for one in found], indent=2, allow_nan=False))
        return
    if not found:
        print(
            f"no sweeps in {runs.resolve()}. Begin one with: gradiometer sweep start --vary optimizer.lr=1e-4..1e-2:log"
        )
        return
    table = Table(box=None, header_style="bold")
    for title in ("state", "trials", "best", "metric", "id"):
        table.add_column(title)
    for one in found:
        ended = sum(trial.ended for trial in one.trials)
        best = text.number(one.best.value) if one.best else "–"
        cells = (one.state, f"{ended}/{one.planned}", best, text.plain(one.record.get("metric"), 40), one.id)
        table.add_row(*map(Text, cells))
    Console().print(table)


@sweep.command()
def show(sweep_id: SweepArgument, runs: RunsFolder = Path("runs"), as_json: AsJson = False) -> None:
    """The trials of a sweep, the best first."""
    from trainer.sweep import open_sweep

    one = or_exit(lambda: open_sweep(runs, sweep_id))
    if as_json:
        print(json.dumps(_record(one) | {"trials": [_trial(trial) for trial in one.trials]}, indent=2, allow_nan=False))
        return
    _print(one)


@sweep.command()
def stop(sweep_id: SweepArgument, runs: RunsFolder = Path("runs")) -> None:
    """No new trials; the running ones save a checkpoint and end."""
    from trainer.sweep import ask_to_stop, open_sweep

    print(or_exit(lambda: ask_to_stop(open_sweep(runs, sweep_id))))


@sweep.command()
def resume(
    sweep_id: SweepArgument,
    task: Annotated[str | None, typer.Option(help="The task, when it is one of your own.")] = None,
    runs: RunsFolder = Path("runs"),
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
) -> None:
    """Go on with a sweep that was stopped or that nobody looks after any more."""
    from trainer.sweep import go_on, open_sweep

    one = or_exit(lambda: go_on(open_sweep(runs, sweep_id), task))
    print(f"sweep {one.id} goes on: {len(one.trials)} of {one.planned} trials have begun")
    if wait:
        _wait(one)


def _wait(one: Sweep) -> None:
    from trainer.sweep import open_sweep

    while one.state in ("running", "stopping"):
        time.sleep(1.0)
        one = open_sweep(one.runs_dir, one.id)
    _print(one)


def _print(one: Sweep) -> None:
    ended = sum(trial.ended for trial in one.trials)
    print(f"sweep {one.id}: {one.state}, {ended} of {one.planned} trials ended")
    table = Table(box=None, header_style="bold")
    names = list(one.trials[0].params) if one.trials else []
    for title in ("trial", "state", text.plain(one.record.get("metric"), 40), *names, "why it ended"):
        table.add_column(Text(text.plain(title, 60)))
    sign = 1 if one.minimise else -1
    known = [trial for trial in one.trials if trial.value is not None and trial.value == trial.value]
    others = [trial for trial in one.trials if trial not in known]
    for trial in [*sorted(known, key=lambda trial: (trial.state != "complete", sign * (trial.value or 0.0))), *others]:
        values = [text.number(v) if isinstance(v, float) else str(v) for v in (trial.params.get(n) for n in names)]
        cells = (str(trial.number), trial.state, text.number(trial.value), *values, text.plain(trial.reason, 80))
        table.add_row(*map(Text, cells))
    Console().print(table)
    if one.problem:
        print(one.problem)


def _record(one: Sweep) -> dict[str, Any]:
    best = one.best
    return {
        "id": one.id,
        "state": one.state,
        "name": text.plain(one.record.get("name")),
        "metric": text.plain(one.record.get("metric")),
        "goal": text.plain(one.record.get("goal")),
        "planned": one.planned,
        "ended": sum(trial.ended for trial in one.trials),
        "best": None if best is None else _trial(best),
    }


def _trial(trial: Any) -> dict[str, Any]:
    from monitor.runfile.format import spell_number

    value = None if trial.value is None else spell_number(trial.value)
    return {
        "trial": trial.number, "run": trial.run_id, "state": trial.state, "value": value,
        "params": dict(trial.params), "reason": trial.reason,
    }  # fmt: skip
