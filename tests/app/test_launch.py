"""The launch form's buttons: a dry run with a real trainer, one training for two clicks, nothing unchecked."""

from __future__ import annotations

import inspect
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from app import control, dry_run
from app.dry_run import DryRuns, Outcome, tried
from monitor.errors import RunError
from tests.app.conftest import Open, words
from tests.waiting import until
from trainer import launch
from trainer.config import TrainConfig, load_config

SMALL = ("model.n_layer=1", "model.n_head=1", "model.d_model=16", "task.seq_len=16", "batch_size=2", "threads=1")


@pytest.fixture
def small(tmp_path: Path) -> TrainConfig:
    (tmp_path / "text.py").write_text(inspect.getsource(textwrap) * 4)
    return load_config(None, [*SMALL, f"task.data={tmp_path / 'text.py'}"])


def test_a_dry_run_tells_parameters_memory_and_speed(small: TrainConfig, tmp_path: Path) -> None:
    outcome = tried(small.model_dump_json())
    assert outcome.problem is None
    rows = dict(outcome.rows)
    assert rows["tokens per step"] == "32" and int(rows["parameters"].replace(",", "")) > 1000
    assert any(name.startswith("memory") for name in rows)
    assert any("steps/s" in value for value in rows.values())
    assert [path.name for path in tmp_path.iterdir()] == ["text.py"], "nothing is written"


def test_a_dry_run_that_is_refused_says_why(small: TrainConfig) -> None:
    gone = small.model_copy(update={"task": small.task.model_copy(update={"data": "/nowhere/text.py"})})
    outcome = tried(gone.model_dump_json())
    assert outcome.problem is not None and "/nowhere/text.py" in outcome.problem and outcome.rows == ()


def test_one_at_a_time(small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def slow(record: str) -> Outcome:
        gate.wait(60)
        return Outcome(False, (("parameters", "1"),))

    monkeypatch.setattr(dry_run, "tried", slow)
    runs = DryRuns()
    assert runs.of(small) is None
    runs.begin(small)
    assert runs.of(small) == Outcome(running=True)
    with pytest.raises(RunError, match="going on"):
        runs.begin(TrainConfig())
    gate.set()
    until(lambda: not ((seen := runs.of(small)) and seen.running), "the end of the dry run")
    seen = runs.of(small)
    assert seen is not None and seen.rows == (("parameters", "1"),)


def test_the_form_shows_what_was_measured(open_page: Open, no_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Outcome] = {}

    class Known:
        def of(self, config: TrainConfig) -> Outcome | None:
            return known.get(config.model_dump_json())

        def begin(self, config: TrainConfig) -> None:
            known[config.model_dump_json()] = Outcome(False, (("parameters", "421,000"),))

    monkeypatch.setattr("app.dry_run.DRY_RUNS", Known())
    monkeypatch.setattr("app.control.DRY_RUNS", Known())
    page = open_page("launch")
    page.button(key="dry_run").click().run()
    assert not page.exception
    (table,) = page.dataframe
    assert table.value.values.tolist() == [["parameters", "421,000"]]
    assert not no_runs.exists()


def test_a_refused_start_says_why(open_page: Open, no_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(config: TrainConfig, runs: Path) -> Any:
        raise RunError(f"{runs} cannot be written to.")

    monkeypatch.setattr(launch, "start", start)
    page = open_page("launch").button(key="start").click().run()
    assert f"{no_runs} cannot be written to" in words(page).replace("\\", "")


def test_clicks_on_start_are_one_training_until_the_form_is_seen_again(
    open_page: Open, no_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[TrainConfig] = []
    monkeypatch.setattr(control, "start", lambda config: started.append(config) or f"run-{len(started)}")
    page = open_page("launch").button(key="start").click().run()
    assert (len(started), page.query_params["run"]) == (1, "run-1")
    page = open_page("launch")
    page.session_state["launched"] = "run-1"  # a second click was on its way while the page turned
    page.button(key="start").click().run()
    assert (len(started), page.query_params["run"]) == (1, "run-1")
    page = open_page("launch")
    page.session_state["launched"] = "run-1"
    page.run()  # turned back to
    page.button(key="start").click().run()
    assert (len(started), page.query_params["run"]) == (2, "run-2")
