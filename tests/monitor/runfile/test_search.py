"""The query language: what each term finds, what is refused and how."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.runfile import search
from monitor.runfile.index import config_of
from monitor.runfile.records import RunState, RunSummary
from monitor.runfile.search import QueryError, parse
from monitor.runfile.store import list_runs
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit

MADE = {
    "calm": datetime(2026, 1, 31, 23, 59).timestamp(),
    "broken": datetime(2026, 2, 1, 0, 0).timestamp(),
    "old": datetime(2025, 6, 1, 12, 30).timestamp(),
}
NOW = datetime(2026, 2, 3, 0, 0).timestamp()


def make(folder: Path, name: str, losses: list[float], outcome: str, **more: Any) -> Path:
    made = MADE[name]
    run_dir = create_run(folder, name=name, run_id=f"id-{name}", now=lambda: made, **more)
    begin_attempt(run_dir, planned_steps=500, environment={"device": "cpu"}, now=lambda: made)
    writer = RankWriter(run_dir, 0, clock=lambda: made + 60)
    for step, loss in enumerate(losses, start=1):
        writer.scalars(step, made + step, {"train_loss": loss})
    writer.close()
    write_exit(run_dir, 0, outcome=outcome, step=len(losses), reason="done", now=lambda: made + 7200)
    return run_dir


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[RunSummary]:
    """Three real runs and a folder that is none."""
    folder = tmp_path_factory.mktemp("runs")
    config = {"optimizer": {"lr": 1e-3, "name": "adamw"}, "steps": 500, "amp": True, "seed": None, "betas": [0.9, 0.95]}
    calm = make(folder, "calm", [3.0, 2.0], "finished", task="gpt", config=config)
    calm.joinpath("meta.json").write_text(json.dumps({"tags": ["base line", "Good"], "notes": "after the fix"}))
    broken = {"optimizer": {"lr": "1e-2", "name": "sgd"}, "steps": 500}
    make(folder, "broken", [2.5, math.nan], "crashed", task="gpt", config=broken, parent={"run": "id-calm", "step": 1})
    make(folder, "old", [1.0] * 5, "stopped", task="mlp")
    (folder / "no-run").mkdir()
    return list_runs(folder, NOW)


def found(rows: list[RunSummary], query: str) -> str:
    return " ".join(sorted(row.name for row in parse(query).select(rows, NOW, config_of, lambda row: row)))


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", "broken calm no-run old"),
        ("  ", "broken calm no-run old"),
        ("calm", "calm"),
        ("CAL", "calm"),
        ("id-", "broken calm old"),
        ("good", "calm"),
        ('"base line"', "calm"),
        ("fix cpu", "calm"),
        ("-calm", "broken no-run old"),
        ("state:crashed", "broken"),
        ("-state:crashed state!=lost", "calm old"),
        ("tag:good", "calm"),
        ('tag:"base line"', "calm"),
        ("tag:base", ""),
        ("tag!=good", ""),
        ("-tag:good task:gpt", "broken"),
        ("name:al", "calm"),
        ("name=al", ""),
        ("name=Calm", "calm"),
        ("notes:FIX", "calm"),
        ("parent:id-calm", "broken"),
        ("device:cpu task:mlp", "old"),
        ("loss<2.5", "calm old"),
        ("loss<=2", "calm old"),
        ("loss!=2", "broken old"),
        ("loss:nan", "broken"),
        ("-loss=nan loss>0", "calm old"),
        ("best=2.5", "broken"),
        ("steps>2", "old"),
        ("step=5", "old"),
        ("planned:500 attempts=1", "broken calm old"),
        ("duration=2h", "broken calm old"),
        ("duration>7200", ""),
        ("duration>119min", "broken calm old"),
        ("age<2d", ""),
        ("age<=2d", "broken"),
        ("age<7d", "broken calm"),
        ("created>2026-01-31", "broken"),
        ("created>=2026-01-31", "broken calm"),
        ("created=2026", "broken calm"),
        ("created:2026-01", "calm"),
        ("created<2026", "old"),
        ("created<=2026-01", "calm old"),
        ("created=2025-06-01T12:30", "old"),
        ("created!=2026", "old"),
        ("lr=0.001", "calm"),
        ("optimizer.lr=1e-3", "calm"),
        ("lr>1e-3", "broken"),
        ("lr!=0.001", "broken"),
        ("-lr=0.001", "broken no-run old"),
        ("optimizer.name=AdamW", "calm"),
        ("config.name=sgd", "broken"),
        ("config.steps=500 steps=2", "broken calm"),
        ("amp=true seed=null", "calm"),
        ("betas=[0.9,0.95]", "calm"),
        ("imizer.lr=0.001", ""),
        ("nothing.like>0", ""),
        ('"state:crashed"', ""),
        ("-", "broken calm no-run old"),
    ],
)
def test_a_query_finds(rows: list[RunSummary], query: str, names: str) -> None:
    assert found(rows, query) == names


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("state:runing", "starting, running"),
        ("stat:running", "Choose from: age, attempts"),
        ("tag:", "nothing follows tag:"),
        ("loss<low", "compared with a number, found 'low'"),
        ("loss>", "nothing follows loss>"),
        ("tag<x", "has no order"),
        ("created>7d", "age<7d"),
        ("created>2026-02-30", "is no date"),
        ("created>0000", "is no date"),
        ("created<9999", "is no date"),
        ("age<week", "90s, 15min"),
        ("lr>high", "compares numbers, found 'high'"),
        ('tag:"a b', "is not closed"),
        ("x " * 41, "at most 40"),
        ("x" * 1001, "at most 1000"),
    ],
)
def test_an_ill_formed_query_is_one_message_with_what_is_accepted(query: str, says: str) -> None:
    with pytest.raises(QueryError) as refused:
        parse(query)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_what_the_caller_knows_can_be_asked_for(rows: list[RunSummary]) -> None:
    query = parse("health:critical -sample", more=("health",))
    assert query.asks_for("health") and not query.asks_for("state")
    more = {"health": "Critical", "words": "sample"}
    assert not query.matches(rows[0], NOW, config_of, more)
    assert query.matches(rows[0], NOW, config_of, {"health": "critical"})
    assert not query.matches(rows[0], NOW, config_of)
    with pytest.raises(QueryError, match="nothing is called health"):
        parse("health:critical")


def test_names_that_no_configuration_has_are_told(rows: list[RunSummary]) -> None:
    query = parse("optimizer.lrr>0 lr>0 -momentum=1 calm")
    assert query.unknown_keys(rows, config_of) == ["momentum", "optimizer.lrr"]


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.sampled_from('ab:=<>!-." 1e5nT/\x00ü\ud800'), max_size=30))
def test_any_text_is_a_query_or_refused_with_a_message(text: str) -> None:
    row = _row(last_step=10**400, last_loss=-math.inf, tags=("a",), created=0.0)
    try:
        query = parse(text)
    except QueryError:
        return
    query.matches(row, NOW, lambda summary: {"a.b": "1e5", "e": 10**400, "n": None})


@settings(max_examples=150, deadline=None)
@given(
    value=st.none() | st.floats(),
    sign=st.sampled_from(["<", "<=", ">", ">=", "=", "!="]),
    wanted=st.floats(),
)
def test_comparisons_are_those_of_floats_and_not_is_the_complement(
    value: float | None, sign: str, wanted: float
) -> None:
    row = _row(last_loss=value)
    term = f"loss{sign}{wanted!r}"
    same = value is not None and (
        (math.isnan(value) and math.isnan(wanted)) or math.isclose(value, wanted, rel_tol=1e-9)
    )
    expected = value is not None and {
        "<": value < wanted, "<=": value <= wanted, ">": value > wanted, ">=": value >= wanted,
        "=": same, "!=": not same,
    }[sign]  # fmt: skip
    assert parse(term).matches(row, NOW, config_of) == expected
    assert parse(f"-{term}").matches(row, NOW, config_of) != expected
    in_config = parse(f"x{sign}{wanted!r}").matches(row, NOW, lambda summary: {} if value is None else {"a.x": value})
    assert in_config == expected


def test_every_field_is_in_the_description() -> None:
    fields = {*search._WHOLE, *search._PART, *search._NUMBERS, "created"} - {"steps"}
    assert all(field in (search.__doc__ or "") for field in fields)


def _row(**more: Any) -> RunSummary:
    state = RunState("finished", "", None, None, None)
    given = {
        "id": "r", "name": "r", "path": Path("r"), "state": state, "created": 1.0, "last_step": 1,
        "planned_steps": None, "last_loss": None, "best_loss": None, "duration_s": None, "task": None, "device": None,
        "tags": (), "problem": None,
        **more,
    }  # fmt: skip
    return RunSummary(**given)
