"""Sweeps: begin one, watch its trials, see which field decides, go to the run of a trial."""

from __future__ import annotations

import math
import time
from typing import Any

import pandas as pd
import streamlit as st

from app import control, data, text
from app.charts.sweep import importance_figure, parallel_figure, progress_figure
from app.followed import followed
from app.views.common import badge, refused
from monitor.errors import ConfigError, GradiometerError, RunError
from trainer.config import PRESETS, form_fields, load_config
from trainer.sweep import GOALS, PRUNERS, SAMPLERS, Plan, Sweep, Trial, list_sweeps, make_plan, open_sweep
from trainer.sweep.plan import MOST_PARALLEL, MOST_TRIALS
from trainer.sweep.samplers import importances, missing
from trainer.sweep.space import read_space

STATES: dict[str, tuple[str, str]] = {
    # word: sign, badge colour
    "running": ("▶", "blue"),
    "stopping": ("◌", "orange"),
    "finished": ("■", "green"),
    "stopped": ("■", "gray"),
    "interrupted": ("✕", "orange"),
    "elsewhere": ("?", "gray"),
}


def page() -> None:
    """The list of sweeps, or the one in the address."""
    if run_id := st.session_state.pop("run_to_open", None):
        st.switch_page("views/run.py", query_params={"run": run_id})
    named = st.query_params.get("sweep")
    st.title("Sweeps")
    if named:
        st.button("All sweeps", on_click=close, key="all_sweeps")
        try:
            sweep = find(named)
        except RunError as error:
            refused(error, "gradiometer sweep list")
            return
        live = sweep.state in ("running", "stopping")
        followed(one_sweep, 3.0 if live else None)(sweep.id)
        return
    st.session_state.pop("sweep_begun", None)  # the form is seen again: another click means another sweep
    listing()
    with st.expander("Begin a sweep", expanded=not list_sweeps(data.launch_folder())):
        form()


def find(sweep_id: str) -> Sweep:
    """The sweep of that id, one's own or the sample.

    Raises:
        RunError: there is none, or its plan cannot be read.
    """
    own, sample = data.sweep_folders()
    return open_sweep(sample if sweep_id in {one.id for one in list_sweeps(sample)} else own, sweep_id)


def close() -> None:
    """Back to the list."""
    st.query_params.pop("sweep", None)


# ---- list ---------------------------------------------------------------------------------------------------------


def listing() -> None:
    """A row for each sweep, the newest first; a click opens it."""
    own, sample = (list_sweeps(folder) for folder in data.sweep_folders())
    if not own:
        st.info(
            "There are no sweeps of your own yet. A sweep trains a configuration several times with other values in "
            "a few fields."
        )
        st.caption("Begin one below, or in a terminal:")
        st.code("gradiometer sweep start --vary optimizer.lr=1e-4..1e-2:log --trials 10", language=None)
    rows = [
        {
            "State": f"{STATES[sweep.state][0]} {sweep.state}",
            "Sweep": text.plain(sweep.record.get("name"), 80) + (" (sample)" if sweep in sample else ""),
            "Trials": f"{sum(trial.ended for trial in sweep.trials)} of {sweep.planned}",
            "Best": text.number(sweep.best.value) if sweep.best else "–",
            "Metric": text.plain(sweep.record.get("metric"), 40),
            "Id": sweep.id,
        }
        for sweep in (*own, *sample)
    ]
    if not rows:
        return
    chosen = st.dataframe(
        pd.DataFrame(rows), hide_index=True, on_select="rerun", selection_mode="single-row", key="sweeps"
    )
    if places := chosen["selection"]["rows"]:
        st.query_params["sweep"] = rows[places[0]]["Id"]
        st.rerun()


# ---- one sweep ----------------------------------------------------------------------------------------------------


def one_sweep(sweep_id: str) -> None:
    """Everything about a sweep."""
    try:
        sweep = find(sweep_id)
        space = read_space(sweep.record.get("space"))
    except GradiometerError as error:
        refused(error, "gradiometer sweep list")
        return
    header(sweep)
    if sweep.problem:
        st.warning(text.markdown(sweep.problem, 400))
    if not sweep.trials:
        st.info("No trial has begun yet.")
        return
    if any(not _is_finite(trial.value) for trial in sweep.trials):
        st.caption("Trials without a finite value, or none yet, stand at the upper edge.")
    st.plotly_chart(progress_figure(sweep), key="progress", config={"displayModeBar": False})
    figure = parallel_figure(sweep, space)
    if figure is not None:
        st.markdown("**Fields and metric** – a line is a trial; drag along an axis to keep some")
        st.plotly_chart(figure, key="parallel", config={"displayModeBar": False})
    shares, how = importances(space, sweep.trials, minimise=sweep.minimise)
    st.markdown("**Which field decides**")
    if shares:
        st.caption(f"{text.markdown(how)}, from the complete trials alone")
        st.plotly_chart(importance_figure(shares), key="importance", config={"displayModeBar": False})
    else:
        st.caption(f"Cannot tell yet: {text.markdown(how)}.")
    table(sweep)


def header(sweep: Sweep) -> None:
    """Name, state, counts, buttons."""
    left, right = st.columns([4, 1], vertical_alignment="center")
    sign, colour = STATES[sweep.state]
    ended = sum(trial.ended for trial in sweep.trials)
    with left:
        st.markdown(f"### {text.markdown(sweep.record.get('name'), 120)} {badge(f'{sign} {sweep.state}', colour)}")
        counts = [
            f"{count} {state}"
            for state in ("running", "complete", "pruned", "dead", "stopped", "failed")
            if (count := sum(trial.state == state for trial in sweep.trials))
        ]
        words = [
            f"{ended} of {sweep.planned} trials ended" + (f" ({', '.join(counts)})" if counts else ""),
            f"{sweep.record.get('goal')} {sweep.record.get('metric')}",
            f"sampler {sweep.record.get('sampler')}, pruner {sweep.record.get('pruner')}",
        ]
        if sweep.best:
            words.append(f"best {text.number(sweep.best.value)} in trial {sweep.best.number}")
        st.caption(text.markdown("; ".join(words), 500))
    reason = control.read_only_reason()
    with right.container(horizontal=True, horizontal_alignment="right"):
        if sweep.state in ("running", "stopping"):
            st.button(
                "Stop", key="stop_sweep", disabled=bool(reason) or sweep.state == "stopping",
                on_click=act, args=("stop", sweep.id),
            )  # fmt: skip
        elif sweep.state in ("stopped", "interrupted"):
            st.button("Go on", key="resume_sweep", disabled=bool(reason), on_click=act, args=("go on", sweep.id))
    st.progress(min(1.0, ended / max(1, sweep.planned)))
    if said := st.session_state.pop("sweep_said", None):
        st.info(text.markdown(said, 600))
    if reason:
        st.caption(text.markdown(reason))


def act(what: str, sweep_id: str) -> None:
    """Stop a sweep or go on with it, and keep what was said for the next run of the page."""
    try:
        said = control.stop_sweep(sweep_id) if what == "stop" else control.go_on_with_sweep(sweep_id)
    except (GradiometerError, OSError) as error:
        said = str(error)
    st.session_state["sweep_said"] = said


def table(sweep: Sweep) -> None:
    """A row for each trial, the best first; a click opens its run."""
    worst = math.inf
    sign = 1 if sweep.minimise else -1

    def place(trial: Trial) -> tuple[bool, float, int]:
        value = worst if trial.value is None or not _is_finite(trial.value) else sign * trial.value
        return trial.state != "complete", value, trial.number

    trials = sorted(sweep.trials, key=place)
    rows = [
        {"Trial": trial.number, "State": trial.state, "Value": text.number(trial.value)}
        | {text.plain(name, 60): _shown(value) for name, value in trial.params.items()}
        | {"Why it ended": text.plain(trial.reason, 200), "Took": _took(trial)}
        for trial in trials
    ]
    st.markdown("**Trials** – the best first; a click opens the run")
    chosen = st.dataframe(
        pd.DataFrame(rows), hide_index=True, on_select="rerun", selection_mode="single-row", key=f"trials-{sweep.id}"
    )
    if places := chosen["selection"]["rows"]:
        st.session_state["run_to_open"] = trials[places[0]].run_id
        st.rerun()


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _shown(value: Any) -> str:
    return text.number(value) if isinstance(value, float) else "none" if value is None else text.plain(value, 60)


def _took(trial: Trial) -> str:
    if trial.began is None:
        return "–"
    return text.duration((trial.finished or time.time()) - trial.began)


# ---- begin one ----------------------------------------------------------------------------------------------------


def form() -> None:
    """What to vary, how many trials, who chooses them; checked before anything starts."""
    preset = st.selectbox("Preset", list(PRESETS), key="sweep_preset", help="The configuration that is varied.")
    known = [field.name for field in form_fields()]
    st.text_area(
        "Vary, one field a line",
        value="optimizer.lr=1e-4..1e-2:log",
        key="sweep_vary",
        help=text.markdown(
            "LOW..HIGH, LOW..HIGH:log or A,B,C. Fields are those of the launch page, such as " + known[0]
        ),
    )
    st.text_area(
        "Change for all trials, one field a line", value="", key="sweep_set", placeholder="steps=300", height=68
    )
    grid = st.grid(min_column_width=150)
    with grid.cell():
        trials = st.number_input("Trials", 1, MOST_TRIALS, 10, key="sweep_trials")
    with grid.cell():
        parallel = st.number_input("At the same time", 1, MOST_PARALLEL, 1, key="sweep_parallel")
    with grid.cell():
        sampler = st.selectbox("Sampler", list(SAMPLERS), key="sweep_sampler")
    with grid.cell():
        pruner = st.selectbox("Pruner", list(PRUNERS), key="sweep_pruner")
    with grid.cell():
        metric = st.text_input("Metric", "val_loss", key="sweep_metric")
    with grid.cell():
        goal = st.selectbox("Goal", GOALS, key="sweep_goal")
    problem = missing(sampler, pruner)
    plan = None
    try:
        base = load_config(None, lines("sweep_set"), preset=preset)
        plan = make_plan(
            base, lines("sweep_vary"), trials=int(trials), parallel=int(parallel), sampler=sampler, pruner=pruner,
            metric=(metric or "").strip(), goal=goal,
        )  # fmt: skip
    except ConfigError as error:
        problem = str(error)
    if problem:
        st.error(text.markdown(problem, 600))
    reason = control.read_only_reason()
    if reason:
        st.caption(text.markdown(reason))
    st.button(
        "Begin", type="primary", disabled=plan is None or bool(problem or reason), key="begin_sweep",
        on_click=start, args=(plan,),
    )  # fmt: skip
    if refusal := st.session_state.pop("sweep_refused", None):
        refused(refusal)


def start(plan: Plan) -> None:
    """Begin it and open it. A second click that comes before the page has turned opens the same one."""
    try:
        begun = st.session_state.get("sweep_begun") or control.begin_sweep(plan)
    except (GradiometerError, OSError) as error:
        st.session_state["sweep_refused"] = str(error)
        return
    st.session_state["sweep_begun"] = st.query_params["sweep"] = begun


def lines(key: str) -> list[str]:
    """The lines of a text area that say something."""
    return [line.strip() for line in str(st.session_state.get(key) or "").splitlines() if line.strip()]


page()
