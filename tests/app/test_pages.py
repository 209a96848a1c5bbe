"""Every page in every state: its own words, the next command, and never a traceback."""

from __future__ import annotations

import math

import pytest

from app import data
from app.incident import incident_key
from monitor.errors import ConfigError, RunError
from tests.app import runs_for_tests as made
from tests.app.conftest import Open, Runs, listed, words
from trainer.config import TrainConfig, form_fields, load_config, with_values

SECTIONS = ["Story", "Incidents", "Layers", "Landscape", "System", "Config", "Log", "Checkpoints"]


def test_an_empty_folder_shows_the_two_commands(no_runs, open_page: Open):
    page = open_page("runs")
    said = words(page)
    assert not page.exception
    assert "gradiometer train" in said and "monitor.attach" in said
    assert any(button.label == "Start a real training" for button in page.button)


def test_an_empty_folder_shows_the_sample_runs(tmp_path, open_page: Open, monkeypatch):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path / "runs"))
    samples = tmp_path / "samples"
    made.healthy_run(samples, steps=60, run_id="gpt-healthy")
    monkeypatch.setattr("app.data.SAMPLES", samples)
    page = open_page("runs")
    assert not page.exception
    (row,) = listed(page)
    assert row["sample"] is True and row["name"] == "healthy"
    assert "No runs of your own yet" in words(page)


def test_the_list_has_a_row_for_each_run_also_for_those_it_cannot_read(runs: Runs, open_page: Open, monkeypatch):
    monkeypatch.setattr("app.data.SAMPLES", runs.folder / "none")
    page = open_page("runs")
    assert not page.exception
    table = {row["name"]: row for row in listed(page)}
    assert len(table) == 8
    assert table["goes to NaN"]["loss"] == "NaN"
    assert table["healthy"]["step"] == "400 of 400" and "finished" in table["healthy"]["state"]
    assert "unreadable" in table["from-the-future"]["health"] and "99" in table["from-the-future"]["notes"]
    assert table["half written"]["step"] == "–"


def test_a_run_whose_heartbeat_is_torn_has_no_known_step_in_the_list(tmp_path, monkeypatch, open_page: Open):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    monkeypatch.setattr("app.data.SAMPLES", tmp_path / "none")
    torn = made.healthy_run(tmp_path, steps=20)
    heartbeat = next(torn.glob("attempts/*/rank-*/heartbeat.json"))
    heartbeat.write_bytes(heartbeat.read_bytes()[:10])
    next(torn.glob("attempts/*/exit.json")).unlink()  # which tells the last step too
    (row,) = listed(open_page("runs"))
    assert row["step"] == "– of 20"


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("healthy", {"healthy"}),
        ("state:crashed", {"goes to NaN"}),
        ("gpt spike", {"one step spike"}),
        ("loss:nan steps>100", {"goes to NaN"}),
        ("lr>1e-3 planned:300 -resumed", {"goes to NaN"}),
        ("health:unreadable", {"from-the-future"}),
    ],
)
def test_the_search_narrows_the_list(runs: Runs, open_page: Open, monkeypatch, search, names):
    monkeypatch.setattr("app.data.SAMPLES", runs.folder / "none")
    page = open_page("runs", search=search)
    assert {row["name"] for row in listed(page)} == names


def test_a_search_without_a_match_says_so_and_is_no_empty_page(runs: Runs, open_page: Open):
    page = open_page("runs", search="zzz_nothing")
    assert not page.exception and not listed(page)
    assert "No run matches" in page.info[0].value


def test_a_query_that_is_not_understood_says_what_is_accepted(runs: Runs, open_page: Open):
    page = open_page("runs", search="state:runing")
    assert not page.exception and not listed(page)
    assert "starting, running" in page.warning[0].value.replace("\\", "")
    page = open_page("runs", search="lrr>1")
    assert "No configuration here has lrr" in page.info[0].value


def test_a_long_list_has_pages_which_the_address_names(tmp_path, monkeypatch, open_page: Open):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    monkeypatch.setattr("app.data.SAMPLES", tmp_path / "none")
    for number in range(205):
        made.create_run(tmp_path, name=f"run {number}", run_id=f"run-{number}", now=lambda at=number: made.START + at)
    worked_on: list[int] = []
    overviews = data.overviews
    monkeypatch.setattr("app.data.overviews", lambda rows: worked_on.append(len(rows := list(rows))) or overviews(rows))
    page = open_page("runs", page="2")
    assert not page.exception
    assert [row["name"] for row in listed(page)] == [f"run {number}" for number in range(104, 4, -1)]
    assert "101 to 200 of 205 runs shown" in words(page)
    assert max(worked_on) == 100
    page = open_page("runs", page="3", search="run")
    assert [row["name"] for row in listed(page)] == [f"run {number}" for number in range(4, -1, -1)]
    page.text_input(key="search").set_value('"run 20"').run()  # 20 and 200 to 204
    assert not page.exception and len(listed(page)) == 6
    page = open_page("runs", page="2", search="run")
    page.text_input(key="search").set_value("state:lost").run()
    assert listed(page)[0]["name"] == "run 204", "another search begins at its newest run"
    page = open_page("runs", sort="name")
    assert [row["name"] for row in listed(page)][:3] == ["run 0", "run 1", "run 10"], "sorted over all pages"
    assert not open_page("runs", page="99").exception and not open_page("runs", page="x").exception


@pytest.mark.parametrize("state", ["healthy", "nan", "resumed", "half", "torn", "spike", "measured"])
def test_no_section_of_any_run_shows_a_traceback(runs: Runs, open_page: Open, state):
    page = open_page("run", run=getattr(runs, state))
    for section in page.segmented_control(key="section").options:
        page.segmented_control(key="section").set_value(section).run()
        assert not page.exception, (section, page.exception)
        assert not page.error


def test_the_header_tells_state_progress_and_non_finite_values(runs: Runs, open_page: Open):
    page = open_page("run", run=runs.nan)
    metrics = {metric.label: metric.value for metric in page.metric}
    assert metrics["Train loss"] == "NaN"
    assert metrics["Non-finite"] == "274"
    assert "crashed" in words(page) and "the loss is NaN" in words(page)


def test_a_run_without_points_says_so(runs: Runs, open_page: Open):
    said = words(open_page("run", run=runs.half))
    assert "No step yet" in said and "has no points" in said and "gradiometer train" in said


def test_parts_that_cannot_be_read_are_named_and_the_rest_is_shown(runs: Runs, open_page: Open):
    page = open_page("run", run=runs.torn)
    assert page.expander and "could not be read" in page.expander[0].label
    assert {metric.label: metric.value for metric in page.metric}["Train loss"] != "–"


@pytest.mark.parametrize("run", ["nothing-here", "../../etc", "<script>", "a b"])
def test_an_unknown_run_in_the_address_gets_words_and_a_command(runs: Runs, open_page: Open, run):
    page = open_page("run", run=run)
    assert not page.exception
    said = words(page)
    assert "This cannot be shown" in said and "gradiometer runs" in said


def test_no_run_in_the_address_gets_words_too(runs: Runs, open_page: Open):
    assert "No run was named" in words(open_page("run"))


def test_a_run_of_a_newer_format_shows_the_readers_words(runs: Runs, open_page: Open):
    page = open_page("run", run=runs.newer)
    with pytest.raises(RunError) as refused:
        data.READERS.reading(runs.folder / runs.newer).__enter__()
    assert page.text[0].value == str(refused.value)


def test_an_incident_shows_what_moved_causes_remedy_and_its_findings(runs: Runs, open_page: Open):
    path = runs.folder / runs.nan
    with data.READERS.reading(path) as run:
        report = data.DIAGNOSES.of(path, run.version, wait=60).value
    for incident in ("", "garbage", "non-finite@209", "layer-explosion@209"):
        page = open_page("run", run=runs.nan, section="Incidents", **({"incident": incident} if incident else {}))
        assert not page.exception
        assert "non-finite@209" in page.query_params["incident"]
    (found,) = report["incidents"]
    said = words(page).replace("\\", "").replace("\u2060", "")
    assert found["summary"] in said and "Likely causes" in said and "What to do" in said
    assert all(report["findings"][place]["summary"] in said for place in found["findings"])
    assert len(page.get("plotly_chart")) == 1
    moved, *evidence = (table.value for table in page.dataframe)
    assert moved["step"].is_monotonic_increasing and moved["step"].tolist() == [m["step"] for m in found["timeline"]]
    assert evidence and all(table["value"].tolist() for table in evidence)


def test_incidents_are_listed_worst_first_and_an_address_names_one_or_a_finding_of_it(
    tmp_path, open_page: Open, monkeypatch
):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    broken = made.Recorded(tmp_path, "two incidents")
    for step, loss in enumerate(made.curve(600), start=1):
        raised = 40.0 if step in (200, 201) else 1.0
        broken.row(step, math.nan if step >= 500 else float(loss) * raised, norm=0.8 * raised)
    path = broken.end(step=600)
    with data.READERS.reading(path) as run:
        report = data.DIAGNOSES.of(path, run.version, wait=60).value
    first, second = report["incidents"]
    assert (first["severity"], first["onset_step"], second["onset_step"]) == ("critical", 500, 200)
    keys = [incident_key(one) for one in (first, second)]
    inner = incident_key(report["findings"][second["findings"][-1]])
    for named, opened in (("", keys[0]), (keys[1], keys[1]), (inner, keys[1])):
        page = open_page("run", run=path.name, section="Incidents", **({"incident": named} if named else {}))
        assert not page.exception
        assert page.radio[0].value == opened and len(page.radio[0].options) == 2


def test_a_healthy_run_says_that_nothing_was_found(runs: Runs, open_page: Open):
    path = runs.folder / runs.healthy
    with data.READERS.reading(path) as run:
        assert data.DIAGNOSES.of(path, run.version, wait=60).value is not None
    page = open_page("run", run=runs.healthy, section="Incidents")
    assert "Nothing found in 400 steps" in page.success[0].value


def test_the_story_is_one_component_with_the_zoom_of_the_address(runs: Runs, open_page: Open):
    grid = mounted(open_page("run", run=runs.healthy, x0="100", x1="200", layer=made.LAYERS[0], pins="lr,loss"))
    assert grid["run"] == runs.healthy and grid["span"] == [100.0, 200.0] and grid["layer"] == made.LAYERS[0]
    assert grid["pins"] == ["lr", "loss"]


@pytest.mark.parametrize(
    "zoom", [{"x0": "nan", "x1": "5"}, {"x0": "9", "x1": "1"}, {"x0": "<b>", "x1": "2"}, {"x0": "1"}]
)
def test_a_broken_zoom_in_the_address_is_no_zoom(runs: Runs, open_page: Open, zoom):
    page = open_page("run", run=runs.healthy, **zoom)
    assert not page.exception


@pytest.mark.parametrize("name", made.HOSTILE)
def test_hostile_names_are_escaped_in_the_title(tmp_path, monkeypatch, open_page: Open, name):
    from app.text import markdown

    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    path = made.create_run(tmp_path, name=name, run_id="hostile")
    page = open_page("run", run=path.name)
    assert not page.exception
    assert f"## {markdown(name, 120)} " in page.markdown[0].value


def test_the_selector_names_statistics_of_layers_and_modules_and_the_address_keeps_one(runs: Runs, open_page: Open):
    page = open_page("run", run=runs.measured)
    selector = page.selectbox(key="stat")
    assert selector.options == [
        "Gradients: Gradient norm before clipping",
        "Activations: Mean of the output",
        "Attention: Entropy of the most concentrated head",
    ]
    assert mounted(page)["stat"] == "grad_norm_preclip"
    page.selectbox(key="stat").set_value("modules.activation_mean").run()
    assert mounted(page)["stat"] == "modules.activation_mean"
    assert "Measured by default: the first 10 steps, every 50" in page.selectbox(key="stat").help.replace("\\", "")
    label = selector.options[1]
    assert mounted(open_page("run", run=runs.measured, stat=label))["stat"] == "modules.activation_mean"
    assert mounted(open_page("run", run=runs.measured, stat="no such"))["stat"] == "grad_norm_preclip"
    assert not open_page("run", run=runs.healthy).selectbox


def mounted(page) -> dict:
    """What the page gave to its live charts."""
    import json

    (grid,) = [found for one in page.get("bidi_component") if "view" in (found := json.loads(one.proto.json))]
    return grid


def test_attention_maps_have_a_section_only_where_there_are_some(runs: Runs, open_page: Open):
    page = open_page("run", run=runs.healthy, section="Attention")
    assert not page.exception
    assert page.segmented_control(key="section").options == SECTIONS
    assert page.segmented_control(key="section").value == "Story"
    page = open_page("run", run=runs.measured, section="Attention")
    assert not page.exception
    assert page.selectbox(key="map_step").options == ["100", "10"]
    assert page.selectbox(key="map_module").options == ["blocks.0.attn", "blocks.3.attn"]
    assert len(page.get("plotly_chart")) == 2
    assert page.code[0].value == "def␣f():"
    assert not page.warning or all("maps" not in warning.value for warning in page.warning)


def test_maps_of_fixed_samples_are_chosen_beside_those_of_the_batch(tmp_path, monkeypatch, open_page: Open):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    run = made.Recorded(tmp_path, "samples")
    run.row(1, 3.0)
    words = [f"word{at}" for at in range(64)]
    for fields in (made.map_fields("attn"), {**made.map_fields("look"), "sample": 1, "labels": words}):
        run.writer.event("attention_map", 1, **fields)
    page = open_page("run", run=run.end(step=1).name, section="Attention")
    assert page.selectbox(key="map_sample").options == ["batch", "sample 1"]
    assert page.selectbox(key="map_module").options == ["attn"]
    page.selectbox(key="map_sample").set_value("sample 1").run()
    assert not page.exception and page.selectbox(key="map_module").options == ["look"]
    assert page.code[0].value.startswith("word0 word1")


def test_maps_that_are_none_are_left_out_with_one_message(tmp_path, monkeypatch, open_page: Open):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    run = made.Recorded(tmp_path, "hostile maps")
    run.row(1, 3.0)
    run.writer.event("attention_map", 1, **made.map_fields("attn"))
    for broken in ({"shape": [10**9] * 3}, {"weights": "!"}, {"module": 7}):
        run.writer.event("attention_map", 1, **{**made.map_fields("other"), **broken})
    page = open_page("run", run=run.end(step=1).name, section="Attention")
    assert not page.exception
    (said,) = [warning.value for warning in page.warning]
    assert said.startswith("3 of the attention maps") and page.selectbox(key="map_module").options == ["attn"]


def test_what_the_monitor_found_out_is_warned_of_on_the_page(runs: Runs, open_page: Open):
    page = open_page("run", run=runs.measured)
    said = [warning.value.replace("\\", "") for warning in page.warning]
    assert said == ["head.weight does not train"]


# ---- launch -------------------------------------------------------------------------------------------------------


def test_the_form_has_a_field_for_each_value_of_the_configuration(open_page: Open, no_runs):
    page = open_page("launch")
    assert not page.exception
    assert len(page.text_input) + len(page.selectbox) + len(page.toggle) == len(form_fields())
    assert "python -m trainer" in page.code[0].value
    assert not start_button(page).disabled


def test_a_bad_value_is_refused_beside_the_field_in_the_validations_words(open_page: Open, no_runs):
    page = open_page("launch")
    field(page, "optimizer.lr").set_value("fast").run()
    assert not page.exception
    for value, typed in (("fast", "fast"), (-1.0, "-1")):
        field(page, "optimizer.lr").set_value(typed).run()
        with pytest.raises(ConfigError) as refused:
            with_values(TrainConfig(), {"optimizer.lr": value})
        said = [error.value.replace("\\", "").replace("\u2060", "") for error in page.error]
        assert str(refused.value).removeprefix("config: ") in said
        assert start_button(page).disabled
    field(page, "optimizer.lr").set_value("1e-3").run()
    assert not page.error and "--set optimizer.lr=0.001" in page.code[0].value


def test_values_that_do_not_fit_each_other_are_refused(open_page: Open, no_runs):
    page = open_page("launch")
    field(page, "model.n_head").set_value("3").run()
    assert any("multiple of" in error.value for error in page.error)
    assert start_button(page).disabled


def test_choices_can_be_switched_off_and_a_task_of_ones_own_can_be_typed(open_page: Open, no_runs):
    page = open_page("launch")
    assert field(page, "adapter.kind").options == ["lora", "prefix", "bottleneck", "none"]
    field(page, "adapter.kind").set_value("lora").run()
    assert not page.exception and "--set adapter.kind=lora" in page.code[0].value
    field(page, "adapter.kind").set_value("none").run()
    assert "adapter" not in page.code[0].value
    for typed in ("my_tasks:build", "gtp"):
        kinds = field(page, "task.kind")
        kinds.options.append(typed)  # AppTest knows of no new options, as a browser does
        kinds.set_value(typed).run()
        assert not page.exception
        assert start_button(page).disabled == (typed == "gtp")
    assert any("unknown" in error.value for error in page.error)


def test_a_preset_changes_the_fields_and_the_command(open_page: Open, no_runs):
    page = open_page("launch", preset="quick")
    assert not page.exception
    assert field(page, "steps", "quick").value == str(load_config(None, [], preset="quick").steps)
    assert "--set" in page.code[0].value


def test_nothing_can_be_started_from_a_server_that_listens_beyond_this_machine(open_page: Open, no_runs):
    import streamlit

    from app import control

    open_page("launch")
    streamlit.config.set_option("server.address", "0.0.0.0")
    with pytest.raises(RunError, match="Read-only"):
        control.start(TrainConfig())
    assert not no_runs.exists()


def field(page, name: str, preset: str = "default"):
    key = f"field.{preset}.{name}"
    return next(widget for widget in (*page.text_input, *page.selectbox, *page.toggle) if widget.key == key)


def start_button(page):
    return next(button for button in page.button if button.key == "start")
