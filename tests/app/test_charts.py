"""Which charts a run has, and the still figures."""

from __future__ import annotations

import numpy as np

from app.charts.measures import LAYER_MEASURES, MODULE_MEASURES, Choice, matrix_of
from app.charts.still import window_figure
from app.charts.story import landscape_charts, story_charts, story_marks, system_charts
from app.facts import facts_of
from app.incident import incident_key
from monitor.runfile.afterwards import add_afterwards
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from monitor.signals import LAYER_CATALOGUE, MODULE_CATALOGUE, Signal
from tests.app import runs_for_tests as made
from tests.app.conftest import Runs


def by_id(charts):
    return {chart.id: chart for chart in charts}


def test_a_full_run_has_the_story_in_reading_order(all_runs: Runs):
    charts = story_charts(open_run(all_runs.folder / all_runs.healthy))
    shown = [chart.id for chart in charts if not chart.section]
    assert shown == ["events", "loss", "grad_norm", "heat", "lr", "throughput", "step_time"]
    assert [trace.name for trace in by_id(charts)["loss"].traces] == ["train", "validation"]
    assert [trace.role for trace in by_id(charts)["grad_norm"].traces] == ["line", "line", "limit"]


def test_a_signal_that_was_never_recorded_has_no_chart(all_runs: Runs):
    charts = story_charts(open_run(all_runs.folder / all_runs.spike))
    assert [chart.id for chart in charts if not chart.section] == ["events", "loss", "grad_norm"]
    assert story_charts(open_run(all_runs.folder / all_runs.half))[1:] == []


def test_superseded_steps_are_faded_and_lie_beneath(all_runs: Runs):
    run = open_run(all_runs.folder / all_runs.resumed)
    faded, current = by_id(story_charts(run))["loss"].traces
    assert (faded.role, current.role) == ("faded", "line")
    assert (faded.signal.step[0], faded.signal.step[-1]) == (151, 200)
    assert len(current.signal) == 300
    marks = story_marks(run, [])
    assert [(mark.kind, mark.step) for mark in marks] == [("resume", 150)]


def test_a_layer_gets_its_curve_and_an_unknown_one_does_not(all_runs: Runs):
    run = open_run(all_runs.folder / all_runs.healthy)
    charts = by_id(story_charts(run, layer="blocks.1.mlp.up.weight"))
    column = made.LAYERS.index("blocks.1.mlp.up.weight")
    expected = run.layers("grad_norm_preclip").value[:, column]
    assert np.array_equal(charts["layer"].traces[0].signal.value, expected.astype(float))
    assert "layer" not in by_id(story_charts(run, layer="no such layer"))


def test_own_values_get_a_chart_each_under_any_name(tmp_path):
    run = made.Recorded(tmp_path, "own")
    for step in range(1, 5):
        run.row(step, 3.0, **{"train/acc": 0.1 * step, "<b>x</b>": 1.0, "lr/1": 1e-4})
    charts = story_charts(open_run(run.end(step=4)))
    own = [chart for chart in charts if chart.id.startswith("own.")]
    assert [chart.title for chart in own] == ["<b>x</b>", "train/acc"]
    assert all(set(chart.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-") for chart in charts)
    assert [trace.name for trace in by_id(charts)["lr"].traces] == ["group 0", "group 1"]


def test_incidents_are_marks_with_their_extent():
    incident = {
        "id": "loss-spike",
        "onset_step": 40,
        "first_step": 41,
        "last_step": 55,
        "severity": "warning",
        "summary": "Loss rose",
    }
    run = type("Empty", (), {"attempts": (), "events": lambda self, kind=None: []})()
    (mark,) = story_marks(run, [incident])
    assert (mark.step, mark.last_step, mark.severity, mark.key) == (40, 55, "warning", "loss-spike@40")
    assert incident_key(incident) == "loss-spike@40"


def test_what_was_found_while_training_is_a_mark_until_an_incident_covers_it(tmp_path):
    run = made.Recorded(tmp_path, "found")
    for step in range(1, 61):
        run.row(step, 3.0)
    run.writer.event("finding", 45, id="loss-spike", severity="critical", text="Loss rose", onset_step=40)
    opened = open_run(run.end(step=60))
    (mark,) = story_marks(opened, [])
    assert (mark.step, mark.severity, mark.text) == (45, "critical", "found while training: Loss rose")
    incident = {"id": "loss-spike", "onset_step": 40, "first_step": 41, "last_step": 50, "severity": "critical"}
    assert [mark.kind for mark in story_marks(opened, [incident])] == ["incident"]
    elsewhere = {**incident, "onset_step": 10, "last_step": 20}
    assert [mark.kind for mark in story_marks(opened, [elsewhere])] == ["incident", "finding"]


def test_what_people_and_code_changed_is_marked_and_told_in_words(tmp_path):
    run = made.Recorded(tmp_path, "changed")
    for step in range(1, 61):
        run.row(step, 3.0)
    tell = run.writer.event
    tell("optimizer_change", 10, group=1, name="weight_decay", before=0.1, after=0.0)
    tell("lr_change", 11, name="lr", before=1e-3, after=5e-4)
    tell("request", 12, id="000001", do="pause", by="page", outcome="refused", text="not while it saves")
    tell("alert", 13, delivered=False, text="hooks.example was not told: it answered 404", level="critical")
    tell("rewind_outcome", 14, word="came back", text="after 40 steps", to_step=2, onset_step=9)
    path = run.end(step=60)
    add_afterwards(path, "fix", step=9, attempt=0, run="child", key="lower-lr", text="half the learning rate", patch={})
    add_afterwards(path, "fix_outcome", step=9, attempt=0, run="child", word="gone", text="60 steps past it")
    marks = {mark.kind: mark for mark in story_marks(open_run(path), [])}
    assert {kind: (mark.step, mark.text, mark.severity) for kind, mark in marks.items()} == {
        "optimizer_change": (10, "optimizer changed: weight_decay of group 1 from 0.1 to 0", "info"),
        "lr_change": (11, "learning rate changed: lr from 0.001 to 0.0005", "info"),
        "request": (12, "request: pause refused, not while it saves", "warning"),
        "alert": (13, "alert: hooks.example was not told: it answered 404", "warning"),
        "rewind_outcome": (14, "what came of going back: came back, after 40 steps", "warning"),
        "fix": (9, "fix tried in child: half the learning rate", "info"),
        "fix_outcome": (9, "what came of the fix in child: gone, 60 steps past it", "info"),
    }


def test_what_the_probes_measure_has_few_charts_and_identities_have_none(all_runs: Runs):
    charts = story_charts(open_run(all_runs.folder / all_runs.measured))
    in_sight = [chart.id for chart in charts if not chart.section]
    assert in_sight == [
        *("events", "loss", "grad_norm", "update_ratio", "heat", "lr"),
        *("grad_cosine", "log_z", "throughput", "step_time"),
    ]
    assert [(chart.section, chart.id) for chart in charts if chart.section] == [
        ("Stability of the loss", "loss_deviation"),
        ("Stability of the loss", "loss_spike_share"),
        ("Weights and output", "sizes"),
        ("Weights and output", "output_softmax_share"),
        ("Input", "input_values"),
    ]
    drawn = {trace.signal.name for chart in charts for trace in chart.traces}
    assert not drawn & {"input_hash", "batch_id", "parameter_checksum"}
    log_z = by_id(charts)["log_z"]
    assert [(trace.role, trace.signal.name) for trace in log_z.traces] == [
        ("points", "log_z_mean"),
        ("limit", "log_classes"),
    ]
    assert by_id(charts)["grad_cosine"].log is False and by_id(charts)["update_ratio"].log is True


def test_a_statistic_of_modules_has_its_scale_and_a_module_its_curve(all_runs: Runs):
    run = open_run(all_runs.folder / all_runs.measured)
    charts = by_id(story_charts(run, stat="modules.activation_mean", layer="blocks.0.attn"))
    heat, curve = charts["heat"], charts["layer"]
    assert (heat.scale, heat.keep) == ("signed", "farthest") and "module by step" in heat.title
    assert not curve.log and curve.traces[0].role == "points"
    expected = run.modules("activation_mean").value[:, made.MODULES.index("blocks.0.attn")]
    assert np.array_equal(curve.traces[0].signal.value, expected.astype(float))
    entropy = by_id(story_charts(run, stat="modules.attention_entropy_min"))["heat"]
    assert (entropy.scale, entropy.keep) == ("linear", "smallest")
    assert entropy.matrix().names == tuple(name for name in made.MODULES if ".attn" in name)


def test_statistics_of_modules_are_read_only_when_shown(all_runs: Runs, monkeypatch):
    run = open_run(all_runs.folder / all_runs.measured)
    asked = []
    peaks = type(run).peaks

    def noted(self, stat, *, stream="layers", **more):
        asked.append(stream)
        return peaks(self, stat, stream=stream, **more)

    monkeypatch.setattr(type(run), "peaks", noted)
    story_charts(run)
    assert set(asked) == {"layers"}
    story_charts(run, stat="modules.activation_mean")
    assert asked[-1] == "modules"


def test_every_statistic_of_the_catalogues_has_words_and_no_two_the_same():
    every = [Choice("layers", stat) for stat in LAYER_CATALOGUE] + [
        Choice("modules", stat) for stat in MODULE_CATALOGUE
    ]
    assert set(LAYER_CATALOGUE) <= set(LAYER_MEASURES) and set(MODULE_CATALOGUE) <= set(MODULE_MEASURES)
    assert len({choice.label for choice in every}) == len({choice.key for choice in every}) == len(every)
    for choice in every:
        assert choice.explained.startswith(choice.spec.meaning)
        if choice.stat.endswith("_share"):
            assert choice.measure.scale == "linear"
    signed = {choice.stat for choice in every if choice.measure.scale == "signed"}
    assert signed == {"grad_cosine", "update_cosine", "activation_mean"}


def test_of_a_thinned_signed_statistic_the_dip_is_kept(tmp_path):
    path = create_run(tmp_path, name="thinned", now=lambda: made.START)
    writer = RankWriter(path, begin_attempt(path), rows_per_batch=8, layer_budget_bytes=6_000)
    writer.define_layers(["a", "b"], [(2,), (2,)])
    for step in range(1, 2_001):
        dip = -0.9 if step == 1_601 else 0.1
        writer.layers(step, made.START + step, {"grad_cosine": np.array([dip, 0.2], np.float32)})
        if step % 50 == 0:
            writer.flush(30)
    writer.close()
    run = open_run(path)
    choice = Choice("layers", "grad_cosine")
    matrix = matrix_of(run, choice)
    assert matrix.since is not None and len(matrix.step) < 1_500
    (row,) = np.flatnonzero(matrix.value[:, 0] < 0)
    assert matrix.value[row, 0] == np.float32(-0.9) and matrix.since[row] <= 1_601 <= matrix.step[row]
    assert matrix.value[:, 1].min() == np.float32(0.2)


def test_what_the_monitor_tells_is_a_mark_with_words(all_runs: Runs):
    marks = {mark.kind: mark for mark in story_marks(open_run(all_runs.folder / all_runs.measured), [])}
    assert (marks["nonfinite"].step, marks["nonfinite"].severity) == (300, "critical")
    assert "blocks.2.mlp" in marks["nonfinite"].text
    assert "activations measured every 100 steps instead of every 50" in marks["cadence"].text
    assert "3.1%" in marks["cadence"].text and "layers thinned" in marks["thinning"].text
    assert "attention_map" not in marks


def test_landscape_and_system_views_follow_what_was_recorded(all_runs: Runs):
    healthy = open_run(all_runs.folder / all_runs.healthy)
    assert [chart.id for chart in landscape_charts(healthy)] == ["landscape_mean", "landscape_variance"]
    assert [chart.id for chart in system_charts(healthy)] == ["cpu", "memory", "ram"]
    half = open_run(all_runs.folder / all_runs.half)
    assert landscape_charts(half) == [] and system_charts(half) == []


def test_the_window_round_an_incident_draws_each_sample_and_marks_the_non_finite():
    value = np.full(200, 2.0)
    value[100:105] = [50.0, np.nan, np.inf, -np.inf, 3.0]
    signal = Signal("train_loss", np.arange(1, 201), value)
    figure = window_figure([("Loss <b>", signal)], 101, before=20, after=30)
    line, bad = figure.data
    assert len(line.x) == 51 - 3 and max(line.y) == 50.0
    assert list(bad.text) == ["NaN", "∞", "−∞"] and list(bad.x) == [102, 103, 104]
    assert "<b>" not in figure.layout.annotations[0].text
    assert figure.layout.shapes[0].line.color


def test_facts_say_what_is_known_and_leave_out_the_rest(all_runs: Runs):
    facts = facts_of(open_run(all_runs.folder / all_runs.nan))
    assert facts.state.word == "crashed" and not facts.live
    assert np.isnan(facts.loss) and facts.best_loss > 1
    assert dict(facts.nonfinite)["train_loss"] == 91 and dict(facts.nonfinite)["grad_norm_preclip"] == 92
    assert facts.share == 1.0 and facts.seconds_left is None and facts.val_loss is None
    nothing = facts_of(open_run(all_runs.folder / all_runs.half))
    assert nothing.step is None and nothing.loss is None and nothing.share is None
