"""A chart as CSV against what was recorded: every value of the window, names as text, absent fields empty."""

from __future__ import annotations

import csv
import io
import json
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

from app import csv_export
from app.charts.layers import layer_charts, measured_at
from app.charts.look import Look, looked_at
from app.charts.story import story_charts, system_charts
from app.csv_export import lines, table_of
from app.frame import Window
from monitor.runfile.reader import open_run
from tests.app import runs_for_tests as made
from tests.app.bulk_run import bulk_run
from tests.app.conftest import Ask, Open, Runs
from tests.app.test_pages import mounted


def asked(http: Ask, run: str, **query: object) -> list[dict[str, str]]:
    answer = http(f"/api/csv?{urllib.parse.urlencode({'run': run, **query}, doseq=True)}")
    assert answer.status == 200, answer.body
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    return list(csv.DictReader(io.StringIO(answer.body.decode())))


def test_a_window_of_curves_has_every_recorded_value_and_nothing_where_there_was_none(runs: Runs, http: Ask):
    rows = asked(http, runs.healthy, chart="loss", x0=95, x1=205)
    run = open_run(runs.folder / runs.healthy)
    loss, val = run.series("train_loss").between(95, 205), run.series("val_loss").between(95, 205)
    assert [int(row["step"]) for row in rows] == loss.step.tolist()
    assert [float(row["train"]) for row in rows] == loss.value.tolist()
    assert {int(row["step"]): float(row["validation"]) for row in rows if row["validation"]} == dict(
        zip(val.step.tolist(), val.value.tolist(), strict=True)
    )


def test_what_is_not_finite_is_said_so(runs: Runs, http: Ask):
    rows = asked(http, runs.nan, chart="grad_norm", x0=208, x1=211)
    assert [row["before clipping"] for row in rows] == ["0.8", "inf", "NaN", "NaN"]
    heat = asked(http, runs.nan, chart="heat", x0=209, x1=210)
    assert heat[0][made.LAYERS[9]] == "inf" and heat[1][made.LAYERS[0]] == "NaN"


def test_runs_over_each_other_share_a_file(runs: Runs, http: Ask):
    rows = asked(http, [runs.healthy, runs.nan], view="compare", chart="train_loss")
    assert set(rows[0]) == {"step", "healthy", "goes to NaN"}
    assert rows[399]["goes to NaN"] == "" and rows[399]["healthy"]


@pytest.mark.parametrize("chart", ["", "nothing", "events", "../x"])
def test_a_chart_without_values_is_refused_with_those_that_have_some(runs: Runs, http: Ask, chart):
    answer = http(f"/api/csv?run={runs.nan}&chart={chart}")
    assert answer.status == 400 and "accepted in this view: loss, grad_norm" in json.loads(answer.body)["error"]


def test_a_long_run_is_written_in_full_from_its_compact_files_and_in_bounds(tmp_path: Path, monkeypatch):
    steps = 30_000
    loss, layers = np.sin(np.arange(steps)), np.arange(2.0 * steps, dtype=np.float32).reshape(steps, 2)
    path = bulk_run(tmp_path, {"train_loss": loss}, "grad_norm_preclip", layers, ("a", "b"), run_id="long", start=1e9)
    charts = story_charts(open_run(path))
    text = "".join(lines(table_of(charts, "loss", Window())))
    assert [float(row["train"]) for row in csv.DictReader(io.StringIO(text))] == loss.tolist()
    text = "".join(lines(table_of(charts, "heat", Window(start=29_000))))
    assert [float(row["b"]) for row in csv.DictReader(io.StringIO(text))] == layers[28_999:, 1].tolist()
    assert not list(csv.DictReader(io.StringIO("".join(lines(table_of(charts, "heat", Window(start=40_000)))))))
    monkeypatch.setattr(csv_export, "MOST_CELLS", 1000)
    with pytest.raises(ValueError, match="at most 1000 are accepted"):
        table_of(charts, "heat", Window())


def test_a_name_never_becomes_a_formula(tmp_path: Path):
    run = made.Recorded(tmp_path, "x")
    name = '=HYPERLINK("http://evil.invalid")'
    run.row(1, 2.0, **{name: 1.0, "a,b\nc": 2.0})
    charts = story_charts(open_run(run.end(step=1)))
    for title, head in ((name, f"'{name}"), ("a,b\nc", "a,b\nc")):
        chart = next(chart for chart in charts if chart.title == title)
        heads = next(csv.reader(io.StringIO("".join(lines(table_of(charts, chart.id, Window()))))))
        assert heads == ["step", head]


def test_other_axes_and_profiles_have_columns_of_their_own(runs: Runs):
    run = open_run(runs.folder / runs.resumed)
    charts = looked_at(story_charts(run), run, Look(axis="relative time"))
    heads, first = list(csv.reader(io.StringIO("".join(lines(table_of(charts, "loss", Window()))))))[:2]
    assert heads == ["step", "time since the first step, pauses included", "train, superseded", "train"]
    assert first[:3] == ["1", "0.0", ""]
    seconds = list(csv.reader(io.StringIO("".join(lines(table_of(system_charts(run), "cpu", Window()))))))
    assert seconds[0][0] == "seconds since the first sample"
    profile = list(
        csv.DictReader(io.StringIO("".join(lines(table_of(layer_charts(run), "profile.grad_norm_preclip", Window())))))
    )
    assert [row["layer"] for row in profile] == list(made.LAYERS)
    assert float(profile[3]["step 300"]) == float(run.layers("grad_norm_preclip").value[-1, 3])


# ---- layers ---------------------------------------------------------------------------------------------------------


def test_the_layers_of_a_run_have_profiles_tables_and_curves_of_their_own(runs: Runs, open_page: Open):
    page = open_page("run", run=runs.measured, section="Layers", at="120", layer="blocks.1.attn.qkv.weight")
    assert not page.exception
    assert (mounted(page)["at"], mounted(page)["layer"]) == ("120", "blocks.1.attn.qkv.weight")
    layers, modules = (table.value for table in page.dataframe)
    assert layers["name"].tolist() == list(made.LAYERS)
    run = open_run(runs.folder / runs.measured)
    own = run.layers("grad_norm_preclip")
    np.testing.assert_allclose(layers["Gradient norm before clipping"], own.value[119], rtol=1e-6)
    entropy = modules.set_index("name")["Entropy of the most concentrated head"]
    assert entropy.notna().sum() == sum(made.ATTENDS)
    assert measured_at(run, "modules", (120, 120)).steps["Mean of the output"] == 100

    charts = layer_charts(run, (120, 120), "blocks.1.attn.qkv.weight")
    assert [chart.id for chart in charts] == [
        "curve.grad_norm_preclip", "curve.modules.activation_mean", "curve.modules.attention_entropy_min",
        "profile.grad_norm_preclip", "profile.modules.attention_entropy_min",
    ]  # fmt: skip
    assert charts[1].traces[0].name == "blocks.1.attn", "the module that the parameter is in"
    assert charts[4].names == tuple(name for name in made.MODULES if ".attn" in name)
    assert layer_charts(run, None, "no such layer")[0].id == "profile.grad_norm_preclip"
    assert "Layers" not in open_page("run", run=runs.half).segmented_control(key="section").options
