"""The ``gradiometer`` command. What only reads starts without torch; ``train`` hands over to ``python -m trainer``."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from app import cli_fix
from app.cli_sweep import sweep
from app.engine_state import ENGINE_STATES
from app.terminal import AsJson, RunArgument, RunsFolder, fail, or_exit
from app.text import plain
from monitor.errors import GradiometerError, RunError

if TYPE_CHECKING:
    from app.foreign import Read
    from monitor.alerts import Alerts
    from monitor.diagnosis.report import Report
    from monitor.runfile.store import RunSummary

ROOT = Path(__file__).resolve().parents[1]

ALERT_S = 60.0
"""How long the doctor waits for the webhook."""
ENGINES_S = 10.0
"""How long a list waits for a cluster to say which of its runs are queued."""
TABLE_ROWS = 50
"""Runs that a table shows unless told otherwise; each is diagnosed."""
PROBLEMS_TOLD = 8
"""Parts of a run that could not be read, on the terminal; the report names all."""

cli = typer.Typer(
    name="gradiometer",
    help="Training monitor and diagnostics for PyTorch: what happened, which layer moved first, why, and what to do.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


cli.add_typer(sweep, name="sweep")


class Level(StrEnum):
    """How serious a finding is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class TableFormat(StrEnum):
    """What a run can be exported to."""

    PARQUET = "parquet"
    CSV = "csv"


class Engine(StrEnum):
    """What holds a training that does not run in this terminal."""

    LOCAL = "local"
    SLURM = "slurm"
    RAY = "ray"


class Device(StrEnum):
    """Where a training runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@cli.command(context_settings={"allow_extra_args": False})
def train(
    config: Annotated[Path | None, typer.Option(help="TOML or YAML file.", metavar="FILE")] = None,
    preset: Annotated[str | None, typer.Option(help="Starting point: quick, charmlp, long, ...")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field: optimizer.lr=3e-4")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What is trained: gpt, charmlp, mlp, cnn, or your own, package.module:build.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Text to train on: a file or a folder. Default: Python's own source.")
    ] = None,
    runs: RunsFolder = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    device: Annotated[Device | None, typer.Option(help="Where to train.")] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(help="Hand it over and return: local (this machine, in the background), slurm, ray."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take; a few real steps, nothing written.")
    ] = False,
) -> None:
    """Train a GPT on real text, or another task, with the monitor attached; follow it with `gradiometer app`."""
    from app.handover import hand_over

    short = {"name": name, "steps": steps, "device": device, "task.kind": task, "task.data": data}
    overrides = [*(set_ or []), *(f"{field}={value}" for field, value in short.items() if value is not None)]
    if not dry_run and (engine or config or any(one.startswith("launch.") for one in overrides)):
        said = or_exit(lambda: hand_over(config, preset, overrides, runs, engine))
        if said is not None:
            print(said)
            return
    words = [sys.executable, "-m", "trainer", "--runs", str(runs)]
    words += ["--config", str(config)] if config else []
    words += ["--preset", preset] if preset else []
    words += ["--name", name] if name else []
    words += ["--steps", str(steps)] if steps is not None else []
    words += ["--device", device.value] if device else []
    words += ["--task", task] if task else []
    words += ["--data", str(data)] if data else []
    for override in set_ or []:
        words += ["--set", override]
    words += ["--dry-run"] if dry_run else []
    os.execve(sys.executable, words, _environment())


@cli.command()
def doctor(
    path: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run directory, the id of a run, or a log of another tool (see `import`)."
        ),
    ],
    runs: RunsFolder = Path("runs"),
    as_json: AsJson = False,
    fail_on: Annotated[Level, typer.Option(help="Lowest severity that makes the exit status 1.")] = Level.WARNING,
    alert: Annotated[
        str | None,
        typer.Option(metavar="VARIABLE", help="Tell the webhook whose address is in this environment variable, too."),
    ] = None,
) -> None:
    """Say what went wrong in a run, which layer moved first, why, and what to do.

    Exit status: 0 no finding at or above --fail-on, 1 there is one, 2 the run cannot be read. Damage in the run's files
    is told on standard error; the report is about what could be read.
    """
    from app.foreign import diagnose_foreign, is_foreign
    from monitor.alerts import alerts_from
    from monitor.diagnosis.engine import diagnose
    from monitor.runfile.reader import open_run

    place = _run_path(path, runs)
    alerts = None if alert is None else or_exit(partial(alerts_from, alert, level=fail_on.value, every_s=0))
    if is_foreign(place):
        found = or_exit(lambda: diagnose_foreign(place))
        _print_foreign(found, as_json)
        if alerts is not None:
            _alert(alerts, [(str(one.report.run.get("name") or place.name), one.report) for one in found])
        raise typer.Exit(1 if any(one.report.at_least(fail_on.value) for one in found) else 0)
    run = or_exit(lambda: open_run(place))
    report = or_exit(lambda: diagnose(run))
    _say_not_read(run.problems)
    if as_json:
        print(_as_json([report.to_dict()]), end="")
    else:
        print(report.to_text())
    if alerts is not None:
        _alert(alerts, [(run.id, report)])
    raise typer.Exit(1 if report.at_least(fail_on.value) else 0)


def _alert(alerts: Alerts, reports: list[tuple[str, Report]]) -> None:
    """Tell the webhook of each incident at or above its level of these trainings; what it did not take is told here."""
    alerts.tell = lambda outcome: None if outcome["delivered"] else print(outcome["text"], file=sys.stderr)
    held_back = 0
    for name, report in reports:
        for number, one in enumerate(report.incidents):
            rule = one.findings[0].id
            told = {"run": name, "onset_step": one.onset_step}
            sent = alerts.send(f"{name}/{rule}/{number}", one.severity, f"{name}: {rule}", one.summary, **told)
            held_back += not sent and one.severity.at_least(alerts.level)
    alerts.close(ALERT_S)
    if held_back:
        print(f"{alerts.host} was not told of {held_back} more: the first are enough to look here.", file=sys.stderr)


def _say_not_read(problems: Sequence[str]) -> None:
    """The first of what could not be read, each once; the report has them all."""
    once = [plain(problem) for problem in dict.fromkeys(problems)]
    for problem in once[:PROBLEMS_TOLD]:
        print(f"not read: {problem}", file=sys.stderr)
    if len(once) > PROBLEMS_TOLD:
        print(f"not read: and {len(once) - PROBLEMS_TOLD} more; `gradiometer report PATH` names them", file=sys.stderr)


def _print_foreign(found: list[Read], as_json: bool) -> None:
    """Each training's report; as JSON one object, or several under ``runs``."""
    from app.foreign import told

    for one in found:
        _say_not_read(one.problems)
    if as_json:
        print(_as_json([one.to_dict() for one in found]), end="")
    else:
        shown = None
        for one in found:
            if one.taken is not shown:
                print(told(one.taken))
            shown = one.taken
            print(f"\n{one.report.to_text()}")


@cli.command()
def report(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A run directory, the id of a run, or a log of another tool.")
    ],
    runs: RunsFolder = Path("runs"),
    html: Annotated[str | None, typer.Option(metavar="FILE", help="One self-contained HTML file.")] = None,
    md: Annotated[str | None, typer.Option(metavar="FILE", help="Markdown.")] = None,
    as_json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="The doctor's JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is no report.")] = False,
) -> None:
    """Write a report to keep or to send: what happened, the curves around it, why, and what to do.

    Without an option: Markdown on the terminal. FILE may be - for standard output. A file that is there is written over
    if it is an older report; any other only with --force. Exit status: 0 written, 2 the run cannot be read or a file
    not written.
    """
    from app.foreign import is_foreign
    from app.report import page, words
    from app.report.content import content_of_run, contents_of_log
    from app.report.files import put

    asked = {"html": html, "md": md, "json": as_json}
    wanted = {kind: place for kind, place in asked.items() if place is not None} or {"md": "-"}
    if list(wanted.values()).count("-") > 1:
        fail("only one of --html, --md and --json can go to standard output; name a file for the others.")
    place = _run_path(path, runs)
    contents = or_exit(lambda: contents_of_log(place) if is_foreign(place) else [content_of_run(place)])
    render: dict[str, Callable[[], str]] = {
        "html": lambda: page.render(contents),
        "md": lambda: words.render(contents),
        "json": lambda: _as_json([one.json for one in contents]),
    }
    _say_not_read([problem for one in contents for problem in one.problems])
    for kind, file in wanted.items():
        done = or_exit(partial(put, render[kind](), file, force))
        if done:
            print(done, file=sys.stderr)


def _as_json(reports: list[dict[str, Any]]) -> str:
    """One object, or several under ``runs``."""
    answer = reports[0] if len(reports) == 1 else {"version": reports[0]["version"], "runs": reports}
    return json.dumps(answer, indent=2, allow_nan=False) + "\n"


@cli.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A file or folder that another tool wrote.")],
    runs: RunsFolder = Path("runs"),
) -> None:
    """Make runs of other tools' logs: TensorBoard, Hugging Face, Lightning, Keras, YOLO, W&B, Trackio, CSV, text.

    What a file is shows by its content; a folder is searched. Importing again adds what is new.
    """
    from app.foreign import told
    from monitor.importers import import_path

    for taken in or_exit(lambda: import_path(source, runs)):
        print(told(taken))
        for run in taken.runs:
            print(f"  run: {run}")
        print(f"  {taken.rows:,} rows written" if taken.rows else "  nothing new since it was imported")


@cli.command()
def rules(
    rule: Annotated[str | None, typer.Argument(metavar="[RULE]", help="One rule, explained in full.")] = None,
) -> None:
    """List the rules of the doctor, or explain one: what it sees, when it stays silent, thresholds, source."""
    from app.rulebook import handbook, rule_table
    from monitor.diagnosis.rules import RULES
    from monitor.diagnosis.settings import rule_named

    if rule is None:
        Console().print(rule_table(RULES))
    else:
        print(handbook(or_exit(lambda: rule_named(rule, RULES))))


@cli.command()
def backtest(
    place: Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs, or one run directory.")],
    rule: Annotated[str, typer.Option("--rule", help="The rule to try; see `gradiometer rules`.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=NUMBER", help="A threshold; may be given several times.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what other thresholds of a rule would have raised on runs that are there already."""
    from app.rulebook import backtest_json, backtest_summary, backtest_table, parse_thresholds, runs_to_test
    from monitor.diagnosis.backtest import backtest as compare
    from monitor.diagnosis.rules import RULES
    from monitor.diagnosis.settings import rule_named

    chosen, values = or_exit(lambda: rule_named(rule, RULES)), or_exit(lambda: parse_thresholds(set_ or []))
    result = or_exit(lambda: compare(runs_to_test(place), chosen, values))
    if as_json:
        print(json.dumps(backtest_json(result), indent=2, allow_nan=False))
        return
    if any(run.changed for run in result.runs):
        Console().print(backtest_table(result))
    print(backtest_summary(result))


class RunsCommand(TyperCommand):
    """Its help ends with the query language, which is described where it is read."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from monitor.runfile import search

        print(search.__doc__)


@cli.command("runs", cls=RunsCommand)
def list_(
    runs: RunsFolder = Path("runs"),
    search: Annotated[
        str,
        typer.Option(
            "--search",
            "-s",
            metavar="QUERY",
            help="Only those that match: 'state:crashed loss<2.5'; see below.",
            show_default=False,
        ),
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Only the newest N; 0 for all.", show_default=f"{TABLE_ROWS}; all with --json"
        ),
    ] = None,
    incidents: Annotated[
        bool, typer.Option("--incidents/--no-incidents", help="Diagnose each run that is shown; takes a moment each.")
    ] = True,
    as_json: AsJson = False,
    tree: Annotated[bool, typer.Option("--tree", help="Attempts under their run, forks under their parent.")] = False,
) -> None:
    """List the runs of a folder, newest first, with their state and number of incidents."""
    if tree:
        if search or limit is not None:
            fail("--tree shows all runs; leave out --search and --limit.")
        _print_tree(runs, as_json)
        return
    from monitor.runfile.index import RunIndex
    from monitor.runfile.search import parse

    query = or_exit(lambda: parse(search))
    index = RunIndex(runs)
    gc.disable()  # a list makes many objects and no cycles; looking for some takes a fifth of the command's time
    listed = index.read()
    gc.freeze()
    gc.enable()
    rows = ENGINE_STATES.rows(listed.rows, ENGINES_S) if query.asks_for("state") else listed.rows
    found = query.select(rows, time.time(), index.config_of, lambda row: row)
    limit = limit if limit is not None else 0 if as_json else TABLE_ROWS
    shown = ENGINE_STATES.rows(found[:limit] if limit else found, ENGINES_S)
    notes = list(listed.notes)
    if len(shown) < len(found):
        notes.append(f"{len(shown)} of {len(found)} runs shown, the newest; --limit 0 shows all.")
    if not found and listed.rows:
        missing = query.unknown_keys(listed.rows, index.config_of)
        notes.append(
            f"none of {len(listed.rows)} runs matches {search!r}{_unknown(missing)}. See gradiometer runs --help"
        )
    if as_json:
        print(json.dumps([_run_row(summary, incidents) for summary in shown], indent=2, allow_nan=False))
    elif not listed.rows:
        print(f"no runs in {runs.resolve()}. Start one with: gradiometer train --runs {runs}")
    elif shown:
        Console().print(_runs_table(shown, incidents))
    for note in notes:
        print(note, file=sys.stderr)


@cli.command()
def resume(
    run: RunArgument,
    runs: RunsFolder = Path("runs"),
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field.")] = None,
) -> None:
    """Go on from a run's last complete checkpoint, as a new attempt of the same run, in this terminal.

    After its first steps it says whether the training is the same as before: bit for bit where they can be compared.
    """
    path = or_exit(lambda: _run_path(run, runs))
    words = [sys.executable, "-m", "trainer", "--resume", str(path)]
    for override in set_ or []:
        words += ["--set", override]
    os.execve(sys.executable, words, _environment())


@cli.command()
def rewind(
    run: RunArgument,
    to: Annotated[
        int, typer.Option("--to", min=0, metavar="STEP", help="The checkpoint's step; 0 with --as-child: anew.")
    ],
    runs: RunsFolder = Path("runs"),
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field.")] = None,
    skip_batches: Annotated[
        int, typer.Option(min=0, metavar="N", help="Leave out the next N batches of the data after STEP.")
    ] = 0,
    as_child: Annotated[
        bool, typer.Option("--as-child", help="As a run of its own; this one is only read and may go on.")
    ] = False,
) -> None:
    """Go on from an earlier checkpoint with changes, in the background: a new attempt of the run, or a child of it.

    A child holds the checkpoint by hard links and does not need its parent any more. Without changes it is the parent's
    training again, bit for bit; what its first steps came to is in its log and on its page.
    """
    from app.fixes import rewound

    path = or_exit(lambda: _run_path(run, runs))
    print(or_exit(lambda: rewound(path, to, set_ or [], skip_batches, as_child=as_child)))


cli.command()(cli_fix.fix)
cli.command()(cli_fix.whatif)


@cli.command()
def replay(
    run: RunArgument,
    step: Annotated[int, typer.Option("--step", metavar="N", help="The step whose loss is in question.")],
    runs: RunsFolder = Path("runs"),
    others: Annotated[int, typer.Option(min=4, max=256, metavar="K", help="Batches to hold it against.")] = 16,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Also train the steps from the last checkpoint on again and compare.")
    ] = False,
    task: Annotated[str | None, typer.Option(help="Your own task, as the run names it: package.module:build.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="task.data, device or threads.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the batch of a step or the state of the model raised its loss, from checkpoints before it.

    The verdict is added to the run, and the doctor weighs causes with it.
    """
    path = or_exit(lambda: _run_path(run, runs))
    words = [sys.executable, "-m", "trainer.replay", str(path), "--step", str(step), "--others", str(others)]
    words += ["--rerun"] if rerun else []
    words += ["--task", task] if task else []
    for override in set_ or []:
        words += ["--set", override]
    words += ["--json"] if as_json else []
    os.execve(sys.executable, words, _environment())


@cli.command()
def landscape(
    run: RunArgument,
    runs: RunsFolder = Path("runs"),
    checkpoint: Annotated[
        int | None, typer.Option(metavar="N", help="Step of the checkpoint.", show_default="the newest")
    ] = None,
    kind: Annotated[str, typer.Option(help="line, plane, connect (a line between checkpoints) or curvature.")] = "line",
    direction: Annotated[str, typer.Option(help="random, update (the last), gradient or pca (of a plane).")] = "random",
    points: Annotated[int, typer.Option(metavar="P", help="Along each axis; odd.")] = 51,
    other: Annotated[int | None, typer.Option(metavar="M", help="The other checkpoint of connect.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Stop after 60s, 5m or 1h.")] = None,
    device: Annotated[Device | None, typer.Option(help="Where to compute.", show_default="that of the run")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME=VALUE", help="radius, examples, data, seed, eigenvalues, trace or task."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at the loss around a checkpoint: slices, planes with the trajectory, barriers, curvature against its limit.

    Coarse first. What is found is kept in the run, and the same command goes on where it was stopped.
    """
    path = or_exit(lambda: _run_path(run, runs))
    given = {"checkpoint": checkpoint, "other": other, "budget": budget, "device": device and device.value}
    words = [sys.executable, "-m", "trainer.landscape", str(path), "--kind", kind, "--direction", direction]
    words += ["--points", str(points)]
    words += [f"--{name}={value}" for name, value in given.items() if value is not None]
    words += [f"--{option}" for option in options or []]
    words += ["--json"] if as_json else []
    os.execve(sys.executable, words, _environment())


@cli.command()
def stop(run: RunArgument, runs: RunsFolder = Path("runs")) -> None:
    """Ask a running training to write a checkpoint and stop."""
    from trainer.launch import stop as stop_run

    result = or_exit(lambda: stop_run(_run_path(run, runs)))
    print(result.message)


@cli.command()
def control(
    run: RunArgument,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHAT]",
            help="checkpoint, stop, pause, continue, lr, clip or dense; without it: what was asked, and what became of "
            "it.",
        ),
    ] = None,
    value: Annotated[
        str | None,
        typer.Argument(
            metavar="[VALUE]", help="lr 1e-4, lr x0.5 (times the rate as it is), clip 0.5, clip none, dense 64."
        ),
    ] = None,
    runs: RunsFolder = Path("runs"),
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Wait so long for the answer.")] = 15.0,
    as_json: AsJson = False,
) -> None:
    """Ask a running training for a checkpoint, a pause, another learning rate, ... through its run directory.

    Works wherever that can be seen, over a shared folder too.

    Exit status 0: done; 3: no answer yet; 4: refused or failed.
    """
    from app import cli_control

    path = or_exit(lambda: _run_path(run, runs))
    if what is None:
        found = or_exit(lambda: cli_control.listed(path))
        if as_json:
            print(cli_control.as_json(found))
        else:
            print("\n".join(map(cli_control.line, found)) or f"nothing has been asked of run {path.name}.")
        return
    one = or_exit(lambda: cli_control.request(path, what, value, wait))
    print(cli_control.as_json([one]) if as_json else cli_control.line(one))
    raise typer.Exit(cli_control.status_of(one))


@cli.command()
def compact(
    run: RunArgument,
    runs: RunsFolder = Path("runs"),
    remove: Annotated[
        bool, typer.Option("--remove", help="Delete the segments that were merged and read back.")
    ] = False,
) -> None:
    """Merge the segments of an ended run into one file per stream: the same numbers, faster to open."""
    from monitor.runfile.compact import compact_run

    path = or_exit(lambda: _run_path(run, runs))
    merged = or_exit(lambda: compact_run(path, remove=remove))
    for one in merged:
        print(
            f"attempt {one.attempt} rank {one.rank} {one.stream}: {one.segments} segments, {one.rows} rows, "
            f"{one.bytes_before / 2**20:.2f} MiB -> {one.bytes_after / 2**20:.2f} MiB"
        )
    if not merged:
        print(f"{path}: nothing was left to merge.")


@cli.command()
def export(
    run: RunArgument,
    to: Annotated[TableFormat, typer.Option(help="Format of the tables.")],
    runs: RunsFolder = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for the files.", show_default="./RUN-FORMAT")
    ] = None,
) -> None:
    """Write a run as tables for other tools: scalars, layer statistics, system samples, events."""
    from monitor.runfile.export import export_run

    path = or_exit(lambda: _run_path(run, runs))
    folder = out if out is not None else Path(f"{path.resolve().name}-{to.value}")
    for file in or_exit(lambda: export_run(path, folder, to.value)):
        print(file)


@cli.command()
def trash(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run to throw away; without one: the list.")
    ] = None,
    runs: RunsFolder = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Throw a run away, so that it can be taken back with `restore`; without RUN, list what was thrown away."""
    from monitor.runfile.trash import list_trash, trash_run

    if run is not None:
        name = or_exit(lambda: _run_id(run, runs))
        place = or_exit(lambda: trash_run(runs, name))
        print(f"{name} is in the trash ({place}). Take it back with: gradiometer restore {name} --runs {runs}")
        return
    thrown = list_trash(runs)
    if as_json:
        rows = [{"id": one.id, "name": one.name, "path": str(one.path), "trashed": one.trashed} for one in thrown]
        print(json.dumps(rows, indent=2, allow_nan=False))
        return
    for one in thrown:
        print(f"{one.id}  thrown away {_age(time.time() - one.trashed)} ago")
    if not thrown:
        print(f"no run of {runs.resolve()} is in the trash.")


@cli.command()
def restore(run: RunArgument, runs: RunsFolder = Path("runs")) -> None:
    """Take a run back out of the trash."""
    from monitor.runfile.trash import restore_run

    print(or_exit(lambda: restore_run(runs, _run_id(run, runs))))


@cli.command()
def delete(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run in the trash.")] = None,
    runs: RunsFolder = Path("runs"),
    everything: Annotated[bool, typer.Option("--all", help="Empty the trash.")] = False,
) -> None:
    """Delete a run for good. Only what is in the trash can be deleted: `gradiometer trash RUN` first."""
    from monitor.runfile.trash import delete_run, empty_trash

    if (run is None) != everything:
        fail("give either one run that is in the trash, or --all for everything in it.")
    if run is None:
        gone = or_exit(lambda: empty_trash(runs))
    else:
        gone = [or_exit(lambda: _run_id(run, runs))]
        or_exit(lambda: delete_run(runs, gone[0]))
    print("\n".join(f"{name} is deleted." for name in gone) or f"no run of {runs.resolve()} is in the trash.")


@cli.command()
def app(
    runs: RunsFolder = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8501,
    browser: Annotated[bool, typer.Option(help="Open a browser window when there is a display.")] = True,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Where to listen; beyond this machine (0.0.0.0) with a token."),
    ] = "127.0.0.1",
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="HOST", help="Another name that this machine is reached by, in the address."),
    ] = None,
    token: Annotated[
        bool, typer.Option(help="Ask for a token beyond this machine; without one the page only shows.")
    ] = True,
    read_only: Annotated[bool, typer.Option("--read-only", help="Only show; start and stop nothing.")] = False,
) -> None:
    """Open the app on http://127.0.0.1:8501.

    With --host the address with its token is printed once; a token of your own comes from GRADIOMETER_TOKEN.
    """
    from app import serve

    plan = or_exit(lambda: serve.plan(host, port, names=name or [], with_token=token, read_only=read_only))
    words = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py"), *plan.options]
    words += [] if browser else ["--server.headless", "true"]
    environment = _environment() | {"GRADIOMETER_RUNS": str(runs.resolve())} | plan.environment
    print(f"Gradiometer: {plan.address}   runs: {runs.resolve()}   stop with Ctrl-C", flush=True)
    with subprocess.Popen(words, env=environment) as server:
        try:
            status = server.wait()
        except KeyboardInterrupt:
            status = server.wait()
    raise typer.Exit(status)


def _print_tree(runs: Path, as_json: bool) -> None:
    from monitor.runfile.tree import run_tree, tree_lines, tree_rows

    nodes = run_tree(runs)
    if as_json:
        print(json.dumps(tree_rows(nodes), indent=2, allow_nan=False))
    else:
        print("\n".join(tree_lines(nodes)) or f"no runs in {runs.resolve()}.")


def _incidents(summary: RunSummary) -> int | None:
    """Number of incidents; None when the run cannot be read."""
    from monitor.diagnosis.engine import diagnose

    if summary.problem:
        return None
    try:
        return len(diagnose(summary.path).incidents)
    except GradiometerError:
        return None


def _unknown(keys: list[str]) -> str:
    return f"; no configuration here has {', '.join(keys)}" if keys else ""


def _run_row(summary: RunSummary, incidents: bool) -> dict[str, Any]:
    """One run as plain JSON; a non-finite loss is the string "NaN", "Infinity" or "-Infinity"."""
    return {
        "id": summary.id,
        "name": summary.name,
        "path": str(summary.path),
        "state": summary.state.word,
        "state_reason": summary.state.reason,
        "created": summary.created,
        "last_step": summary.last_step,
        "planned_steps": summary.planned_steps,
        "last_loss": _json_number(summary.last_loss),
        "best_loss": _json_number(summary.best_loss),
        "incidents": _incidents(summary) if incidents else None,
        "duration_s": _json_number(summary.duration_s),
        "task": summary.task,
        "device": summary.device,
        "tags": list(summary.tags),
        "problem": summary.problem,
    }


def _json_number(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _runs_table(summaries: list[RunSummary], diagnosed: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "state"):
        table.add_column(column, no_wrap=column == "run")
    for column in ("step", "loss", "incidents", "age"):
        table.add_column(column, justify="right")
    for summary in summaries:
        incidents = _incidents(summary) if diagnosed else None
        planned = f"/{summary.planned_steps}" if summary.planned_steps else ""
        table.add_row(
            Text(
                plain(summary.id)
            ),  # Text, not str: a name from outside is never markup, nor a terminal's control code
            Text(plain(summary.problem or summary.state.word)),
            f"{summary.last_step}{planned}" if summary.last_step is not None else "",
            f"{summary.last_loss:.4g}" if summary.last_loss is not None else "",
            "" if incidents is None else str(incidents),
            _age(time.time() - summary.created) if summary.created else "",
        )
    return table


def _age(seconds: float) -> str:
    """Seconds in the largest unit that gives a number of at least 1."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _environment() -> dict[str, str]:
    """The environment for a process of ours: it finds our packages even when they are not installed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _run_path(run: str, runs: Path) -> Path:
    """The directory meant by ``run``: a path if there is one, else an id or a unique name in the runs folder."""
    path = Path(run)
    if path.exists() or os.sep in run:
        return path
    return runs / run


def _run_id(run: str, runs: Path) -> str:
    """The id of a run of the folder ``runs``, which may be given by its path as well.

    Raises:
        RunError: the path leads elsewhere; nothing outside the runs folder is moved or deleted.
    """
    path = Path(run)
    if os.sep not in run:
        return run
    if path.parent.resolve() not in (runs.resolve(), runs.resolve() / ".trash"):
        raise RunError(f"{run} is not in the runs folder {runs.resolve()}. Name its folder: --runs {path.parent}")
    return path.name


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="gradiometer")


if __name__ == "__main__":
    main()
