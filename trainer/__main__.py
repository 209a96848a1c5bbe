"""``python -m trainer`` and ``torchrun -m trainer``: train, resume, or say what a training would take.

    python -m trainer                                         the default: a byte-level GPT on Python's standard library
    python -m trainer --config my.toml --set optimizer.lr=3e-4 --steps 500
    python -m trainer --data my_texts/ --name mine            your own text
    python -m trainer --resume runs/20261122-103000-gpt-1a2b
    torchrun --standalone --nproc-per-node 2 -m trainer       the same training on two processes

Exit codes: 0 finished, or stopped on request; 2 a mistake that one message explains; 1 a crash.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.rank_log import print_into
from trainer.stop import StopFlag, end_with_parent

if TYPE_CHECKING:
    from trainer.config import TrainConfig
    from trainer.place import Place

CONFIG_VARIABLE = "GRADIOMETER_TRAIN_CONFIG"
"""A launcher's configuration as JSON: not in a file, so that no fault lies in the run directory."""
TRACEBACK_LINES = 40
"""Of a longer traceback the last ones are recorded, which name the cause (our judgement)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; gives back the exit code."""
    stop = StopFlag()
    stop.install()  # before anything large is imported: torch takes seconds
    print_into()
    if _under_torchrun():
        end_with_parent()
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)

    from monitor.errors import GradiometerError

    try:
        return _run(options, words, stop)
    except GradiometerError as error:
        print(f"error: {error}" if _is_first() else f"error on rank {os.environ['RANK']}: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, words: list[str], stop: StopFlag) -> int:
    from trainer.config import describe
    from trainer.place import continued_run, first_attempt, new_run, restarted_run, resumed_run
    from trainer.progress import tell

    config = _config(options)
    if options.dry_run:
        from trainer.dryrun import dry_run

        return dry_run(config, as_json=options.json)
    if config.parallel.processes > 1 and not _under_torchrun():
        from trainer.parallel.workers import run_workers

        return run_workers(config.parallel, words)
    place = None
    if _is_first():
        begun = restarted_run(options.runs, options.resume or options.run_dir)
        if begun is not None:
            config, place = continued_run(begun, tell, config.task.kind)
            tell(f"the processes were started again: going on as attempt {place.attempt}")
        elif options.resume:
            config, place = resumed_run(
                options.resume, _overrides(options), tell, attempt=options.attempt, at_step=options.at_step
            )
        elif options.run_dir:
            place = first_attempt(config, options.run_dir, options.attempt or 0, tell)
        else:
            place = new_run(config, options.runs)
        tell(f"run {place.run_dir.name} in {place.run_dir.parent}")
        tell(f"  {describe(config)}")
        tell(f"  watch it:  gradiometer app --runs {place.run_dir.parent}")
        tell(f"  ask why:   gradiometer doctor {place.run_dir}")
    return _train(config, place, stop)


def _train(config: TrainConfig, place: Place | None, stop: StopFlag) -> int:
    """Train, and leave an exit record whatever happens; the monitor, when it is there, writes a fuller one first."""
    from monitor.errors import GradiometerError

    def began(further: Place) -> None:
        nonlocal place
        place = further

    try:
        from trainer.loop import train

        outcome = train(config, place, stop, began)
    except GradiometerError as error:
        _record_exit(place, "crashed", None, str(error), returncode=2)
        raise
    except KeyboardInterrupt:
        _record_exit(place, "stopped", None, "interrupted twice, so without a checkpoint", returncode=130)
        return 130
    except BaseException as error:
        lines = "".join(traceback.format_exception(error)).splitlines()
        reason = f"{type(error).__name__}: {error}"
        _record_exit(place, "crashed", None, reason, returncode=1, traceback=lines[-TRACEBACK_LINES:])
        raise
    _record_exit(place, outcome.word, outcome.step, outcome.reason, returncode=0, signal=stop.signal)
    if place:
        from trainer.progress import tell

        tell(f"{outcome.word} at step {outcome.step}: {outcome.reason}")
        if outcome.word == "stopped" and outcome.step > 0:
            tell(f"  go on:     gradiometer resume {place.run_dir}")
    return 0


def _record_exit(place: Place | None, outcome: str, step: int | None, reason: str, **more: Any) -> None:
    from monitor.errors import RunError
    from monitor.runfile.writer import write_exit

    if place:
        try:
            write_exit(place.run_dir, place.attempt, outcome=outcome, step=step, reason=reason, **more)
        except RunError as error:  # a full disk must not turn a finished training into a failed one
            print(f"how the training ended is not recorded: {error}", file=sys.stderr)


def _config(options: argparse.Namespace) -> TrainConfig:
    """What the command line, the launcher's environment or the run to be resumed says.

    Raises:
        ConfigError, RunError: one of them is refused.
    """
    from monitor.runfile.reader import open_run
    from trainer.config import load_config
    from trainer.place import config_of_run

    if options.resume:
        return config_of_run(open_run(options.resume), _overrides(options))[0]
    if CONFIG_VARIABLE in os.environ:
        return _launched_config(os.environ[CONFIG_VARIABLE], _overrides(options))
    if options.run_dir:
        return config_of_run(open_run(options.run_dir), _overrides(options))[0]
    return load_config(options.config, _overrides(options), preset=options.preset)


def _launched_config(text: str, overrides: Sequence[str]) -> TrainConfig:
    from monitor.errors import ConfigError
    from trainer.config import from_record

    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"environment variable {CONFIG_VARIABLE} is not JSON: {error}.") from None
    return from_record(record, overrides, source=CONFIG_VARIABLE)


def _overrides(options: argparse.Namespace) -> list[str]:
    """``--set`` values, then the short options as what they stand for, then how many workers torchrun has started."""
    short = {
        "name": options.name,
        "steps": options.steps,
        "device": options.device,
        "task.kind": options.task,
        "task.data": options.data,
        "parallel.processes": _world_size() if _under_torchrun() else None,
    }
    return [*options.set, *(f"{name}={value}" for name, value in short.items() if value is not None)]


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _under_torchrun() -> bool:
    """Also alone: of two hosts one may be left."""
    return "TORCHELASTIC_RUN_ID" in os.environ or _world_size() > 1


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _parser() -> argparse.ArgumentParser:
    from trainer.place import default_runs_dir

    parser = argparse.ArgumentParser(
        prog="python -m trainer", description="Train a small model on real text, measured and kept in a run directory."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration: TOML, YAML or JSON")
    parser.add_argument("--preset", metavar="NAME", help="starting point: default, quick, charmlp, ...")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one value, such as optimizer.lr=3e-4"
    )
    parser.add_argument(
        "--runs", type=Path, default=default_runs_dir(), metavar="DIR", help="folder of runs (default: %(default)s)"
    )
    parser.add_argument("--name", metavar="NAME", help="short name of the run")
    parser.add_argument("--steps", metavar="N", help="optimizer steps in all")
    parser.add_argument("--device", metavar="WHERE", help="auto, cpu or cuda")
    parser.add_argument(
        "--task", metavar="KIND", help="what is trained: gpt, charmlp, mlp, cnn, or your own, package.module:build"
    )
    parser.add_argument("--data", metavar="PATH", help="your own text: a file or a folder")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what it would take, in parameters, memory and time, and train nothing",
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: as one JSON object")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN_DIR", help="go on with this run from its newest complete checkpoint"
    )
    parser.add_argument("--at-step", type=int, metavar="STEP", help="with --resume: from the checkpoint of this step")
    parser.add_argument(
        "--run-dir", type=Path, metavar="RUN_DIR", help="for launchers: the run that has been made for this training"
    )
    parser.add_argument("--attempt", type=int, metavar="N", help="for launchers: the attempt folder that has been made")
    return parser


if __name__ == "__main__":
    sys.exit(main())
