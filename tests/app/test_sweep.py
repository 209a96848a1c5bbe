"""The page of sweeps and ``gradiometer sweep``: every state, hostile contents, and what would be started."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app import control, data
from app.charts.sweep import best_so_far, parallel_figure, progress_figure
from tests.app.conftest import Open, words
from tests.app.test_cli import gradiometer
from trainer.config import TrainConfig
from trainer.sweep import Sweep, list_sweeps, make_plan, open_sweep
from trainer.sweep.plan import Plan
from trainer.sweep.space import read_space

HOSTILE = "<b>x</b> ![](http://evil.example/p.png) :red[y] $z$"


def sweep_with(runs: Path, count: int = 14, **plan: object) -> Sweep:
    """Trials whose value grows with the rate; the third is dead, the fourth still runs."""
    folder = runs / ".sweeps" / "s"
    folder.mkdir(parents=True)
    vary = ["optimizer.lr=1e-4..1e-2:log", "model.n_layer=1..4", "clip.max_norm=none,1"]
    (folder / "sweep.json").write_text(json.dumps(make_plan(TrainConfig(), vary, trials=count).record() | plan))
    draws = np.random.default_rng(0)
    with (folder / "trials.jsonl").open("w") as file:
        for number in range(count):
            params = {"optimizer.lr": float(10 ** draws.uniform(-4, -2)), "model.n_layer": int(draws.integers(1, 5))}
            params |= {"clip.max_norm": [None, 1.0][number % 2]}  # type: ignore[dict-item]
            begin = {"kind": "begin", "trial": number, "run": f"s-{number:04d}", "params": params, "time": 10.0}
            value: float | str = "NaN" if number == 2 else 2.0 + 100 * params["optimizer.lr"]
            state = "dead" if number == 2 else "complete"
            end = {"kind": "end", "trial": number, "state": state, "value": value, "reason": HOSTILE, "time": 30.0}
            file.write(json.dumps(begin) + "\n" + (json.dumps(end) + "\n" if number != 3 else ""))
    return open_sweep(runs, "s")


def test_without_sweeps_the_page_says_what_one_is_and_the_command(no_runs: Path, open_page: Open) -> None:
    page = open_page("sweep")
    assert not page.exception
    assert "gradiometer sweep start" in words(page)
    assert not page.button(key="begin_sweep").disabled


def test_the_sample_is_there_from_the_first_start_and_its_trials_have_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_page: Open
) -> None:
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path / "runs"))
    (sweep,) = list_sweeps(data.SAMPLES / data.SAMPLE_SWEEP)
    assert sweep.best is not None
    listed = open_page("sweep")
    assert not listed.exception and "no sweeps of your own" in words(listed)
    assert listed.dataframe[0].value["Sweep"].tolist() == [f"{sweep.record['name']} (sample)"]
    page = open_page("sweep", sweep=sweep.id)
    assert not page.exception and "finished" in words(page) and f"in trial {sweep.best.number}" in words(page)
    trial = open_page("run", run=sweep.best.run_id)
    assert not trial.exception and {metric.label for metric in trial.metric} >= {"Train loss", "Validation loss"}


def test_a_sweep_shows_its_trials_best_first_and_what_decides(no_runs: Path, open_page: Open) -> None:
    sweep = sweep_with(no_runs, name=HOSTILE)
    page = open_page("sweep", sweep="s")
    assert not page.exception
    (table,) = page.dataframe
    values = [trial.value for trial in sweep.trials if trial.result is not None]
    assert table.value["Value"].tolist()[0] == f"{min(values):.3f}"
    assert set(table.value["State"].tolist()[-2:]) == {"dead", "running"}
    said = words(page)
    assert "12 complete" in said and "1 dead" in said and "PED" in said
    assert "interrupted" in said and not page.button(key="resume_sweep").disabled
    assert "![](" not in said, "other people's words are escaped"


def test_an_unknown_or_broken_sweep_is_one_message(no_runs: Path, open_page: Open) -> None:
    assert "no sweep" in words(open_page("sweep", sweep="gone"))
    assert "cannot name a directory" in words(open_page("sweep", sweep="../../etc"))
    sweep_with(no_runs, space={"a": 7})
    page = open_page("sweep", sweep="s")
    assert not page.exception and "varied" in words(page)


def test_the_form_refuses_nonsense_in_words_and_begins_what_is_right(
    no_runs: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Plan] = []
    monkeypatch.setattr(control, "begin_sweep", lambda plan: begun.append(plan) or "s")
    page = open_page("sweep")
    page.text_area(key="sweep_vary").set_value("optimizer.lr=fast..slow").run()
    assert page.button(key="begin_sweep").disabled and "is no number" in page.error[0].value
    page.text_area(key="sweep_vary").set_value("optimizer.lr=1e-3..1e-1:log\nmodel.n_layer=1,2")
    page.text_area(key="sweep_set").set_value("steps=30").run()
    page.button(key="begin_sweep").click().run()
    (plan,) = begun
    assert (plan.base.steps, list(plan.space), plan.trials) == (30, ["optimizer.lr", "model.n_layer"], 10)


def test_a_second_click_on_begin_opens_the_same_sweep(
    no_runs: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    monkeypatch.setattr(control, "begin_sweep", lambda plan: begun.append(plan) or f"sweep-{len(begun)}")
    page = open_page("sweep").button(key="begin_sweep").click().run()
    assert page.session_state["sweep_begun"] == "sweep-1"
    again = open_page("sweep")
    again.session_state["sweep_begun"] = "sweep-1"  # the form was not drawn between the two clicks
    again.button(key="begin_sweep").click().run()
    assert len(begun) == 1 and again.query_params["sweep"] == "sweep-1"


def test_a_server_that_listens_beyond_this_machine_begins_nothing(
    no_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monitor.errors import RunError

    monkeypatch.setattr(control, "read_only_reason", lambda: "Read-only")
    plan = make_plan(TrainConfig(), ["optimizer.lr=1e-3..1e-1"])
    for act in (
        lambda: control.begin_sweep(plan),
        lambda: control.stop_sweep("s"),
        lambda: control.go_on_with_sweep("s"),
    ):
        with pytest.raises(RunError, match="Read-only"):
            act()
    assert not (no_runs / ".sweeps").exists()


def test_every_trial_is_drawn_and_one_without_a_value_at_the_edge(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path)
    figure = progress_figure(sweep)
    drawn = {trace.name: list(trace.x) for trace in figure.data if trace.name != "best so far"}
    assert sorted(number for numbers in drawn.values() for number in numbers) == list(range(14))
    highest = max(trial.value for trial in sweep.trials if trial.result is not None and trial.value is not None)
    (dead,) = [trace for trace in figure.data if trace.name == "dead"]
    assert dead.y[0] > highest
    numbers, best = best_so_far(sweep)
    expected = np.minimum.accumulate([trial.value for trial in sweep.trials if trial.result is not None])
    assert best == expected.tolist() and 2 not in numbers
    assert "<b>" not in "".join(dead.text), "a reason is no markup"


def test_parallel_axes_hold_the_values_on_the_scale_they_were_drawn_from(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path)
    figure = parallel_figure(sweep, read_space(sweep.record["space"]))
    assert figure is not None
    rate, layers, clip, metric = figure.data[0].dimensions
    trials = [trial for trial in sweep.trials if trial.result is not None]
    assert np.allclose(10.0 ** np.array(rate.values), [trial.params["optimizer.lr"] for trial in trials])
    assert list(layers.values) == [trial.params["model.n_layer"] for trial in trials]
    assert [clip.ticktext[place] for place in clip.values] == [
        "none" if trial.params["clip.max_norm"] is None else "1.000" for trial in trials
    ]
    assert np.allclose(metric.values, [trial.value for trial in trials])


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_lists_shows_and_refuses_in_one_line(tmp_path: Path) -> None:
    assert "no sweeps in" in gradiometer("sweep", "list", "--runs", str(tmp_path)).stdout
    sweep = sweep_with(tmp_path)
    listed = json.loads(gradiometer("sweep", "list", "--runs", str(tmp_path), "--json").stdout)
    assert sweep.best is not None
    assert (listed[0]["id"], listed[0]["best"]["trial"], listed[0]["ended"]) == ("s", sweep.best.number, 13)
    shown = gradiometer("sweep", "show", "s", "--runs", str(tmp_path)).stdout
    assert "interrupted, 13 of 14 trials ended" in shown
    for arguments, said in (
        (["show", "gone"], "no sweep"),
        (["stop", "s"], "nobody looks after"),
        (["start", "--vary", "optimizer.lr=1"], "different values"),
        (["start", "--vary", "optimizer.lr=1..2", "--sampler", "magic"], "Choose from"),
    ):
        refused = gradiometer("sweep", *arguments, "--runs", str(tmp_path))
        assert refused.returncode == 2 and said in refused.stderr and "Traceback" not in refused.stderr
