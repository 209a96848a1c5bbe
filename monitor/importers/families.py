"""Event folders that belong to one training: Keras' ``train`` and ``validation``, an Estimator's ``eval``, and those
that PyTorch's ``add_scalars`` makes, one for each curve of a chart."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from monitor.importers.rows import MAX_NAME, Account, Row
from monitor.importers.tensorboard import read_events

_TRAINING = ("train", "training", "Train")
_VALIDATION = frozenset(("validation", "valid", "val", "eval", "eval_0", "test"))

Member = tuple[list[Path], Callable[[str], str]]
"""Files, and what their tags are called in the family."""


def families(events: Mapping[Path, list[Path]]) -> dict[Path, list[Member]]:
    """The folders that stand for a training, each with its own files first.

    Args:
        events: event files by folder, in the order to read them.
    """
    heads: dict[Path, Path] = {}
    names: dict[Path, Callable[[str], str]] = {}
    for place, files in events.items():
        siblings = [place.parent / name for name in _TRAINING if place.parent / name in events]
        if place.name.lower() in _VALIDATION and (siblings or place.parent in events):
            heads[place] = siblings[0] if siblings else place.parent
            prefix = "test" if place.name.lower() == "test" else "val"
            names[place] = f"{prefix}/{{}}".format
        elif place.parent in events and (curve := _curve(place, files)):
            heads[place] = place.parent
            names[place] = partial("{1}/{0}".format, curve)
    found: dict[Path, list[Member]] = {place: [(files, str)] for place, files in events.items() if place not in heads}
    for place, head in heads.items():
        found[_root(head, heads)].append((events[place], names[place]))
    return found


def _root(place: Path, heads: Mapping[Path, Path]) -> Path:
    while place in heads:
        place = heads[place]
    return place


def _curve(place: Path, files: list[Path]) -> str:
    """``train`` of the folder ``Loss_train`` with the tag ``Loss``; empty for a folder that is a run of its own."""
    row = next(read_events(files[:1], Account()), None)
    tags = list(row.values) if row is not None else []
    start = f"{tags[0].replace('/', '_')}_" if len(tags) == 1 else ""
    return place.name.removeprefix(start) if start and place.name.startswith(start) else ""


def read_family(members: list[Member], account: Account) -> Iterator[Row]:
    """The rows of all by their steps."""
    streams = [_named(files, name, account) for files, name in members]
    return heapq.merge(*streams, key=lambda row: row.step or 0) if len(streams) > 1 else streams[0]


def _named(files: list[Path], name: Callable[[str], str], account: Account) -> Iterator[Row]:
    for row in read_events(files, account):
        row.values = {name(tag)[:MAX_NAME]: value for tag, value in row.values.items()}
        yield row
