"""What the commands share: their usual arguments, and how one ends that cannot be carried out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from monitor.errors import GradiometerError

Answer = TypeVar("Answer")

UNREADABLE = 2
"""Exit status for input that cannot be read or a command that cannot be carried out."""

RunsFolder = Annotated[
    Path, typer.Option("--runs", envvar="GRADIOMETER_RUNS", help="Folder of the runs.", show_default="./runs")
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory, or the id of a run in the runs folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def or_exit(action: Callable[[], Answer]) -> Answer:
    """What ``action`` gives back; a mistake of the user's ends the command with its message and exit status 2."""
    try:
        return action()
    except GradiometerError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the command with ``message`` on stderr and exit status 2."""
    print(f"gradiometer: {message}", file=sys.stderr)
    raise typer.Exit(UNREADABLE)
