"""The catalogue is whole, and FORMAT.md shows it as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

import monitor.runfile
from monitor.signals import CATALOGUE, COSTS, LAYER_CATALOGUE, MODULE_CATALOGUE, TIME_PARTS, SignalSpec

FORMAT = Path(monitor.runfile.__file__).parent / "FORMAT.md"
BEGIN, END = "<!-- signals -->\n", "<!-- end of signals -->"
ALL = [spec for table in (CATALOGUE, LAYER_CATALOGUE, MODULE_CATALOGUE) for spec in table.values()]


def as_table(specs: list[SignalSpec]) -> str:
    """The catalogue as FORMAT.md has it."""
    cells = [(f"`{s.name}`", s.stream, s.unit, s.stage, s.cost, s.cadence, s.meaning) for s in specs]
    rows = [f"| {' | '.join(row)} |" for row in cells]
    head = "| name | stream | unit | stage | cost | cadence | meaning |\n|---|---|---|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def test_the_specification_has_the_catalogue() -> None:
    shown = FORMAT.read_text().partition(BEGIN)[2].partition(END)[0]
    assert shown == as_table(ALL), "to bring FORMAT.md up to date: python -m tests.monitor.test_signals"


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: f"{spec.stream}-{spec.name}")
def test_every_signal_says_what_it_is_where_it_is_taken_how_often_and_at_what_cost(spec: SignalSpec) -> None:
    assert spec.cost in COSTS and (spec.cost == "derived") == (spec.stream == "derived")
    assert spec.stream in ("scalars", "layers", "modules", "system", "landscape", "derived")
    assert spec.meaning.endswith(".") and spec.unit and spec.stage and spec.cadence
    assert "|" not in as_table([spec]).splitlines()[2].replace(" | ", "")[2:-2]
    assert spec.meaning in spec.explained and "when armed" not in spec.explained


def test_the_parts_of_a_step_are_in_the_catalogue() -> None:
    assert {CATALOGUE[part].unit for part in TIME_PARTS} == {"s"}


if __name__ == "__main__":
    text = FORMAT.read_text()
    FORMAT.write_text(text.partition(BEGIN)[0] + BEGIN + as_table(ALL) + END + text.partition(END)[2])
