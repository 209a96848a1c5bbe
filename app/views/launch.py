"""Launch: a form made from the configuration's own schema, checked field by field, and the same as a command."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from app import control, data, text
from app.dry_run import DRY_RUNS
from app.followed import followed
from app.views.common import refused
from monitor.errors import ConfigError, GradiometerError
from trainer import launch
from trainer.config import PRESETS, FormField, TrainConfig, describe, form_fields, load_config, with_values

SECTION_TITLES = {
    "": "Run",
    "task": "Task and data",
    "model": "Model",
    "adapter": "Adapter (LoRA, prefix, bottleneck)",
    "curriculum": "Sequence length over the steps",
    "adversarial": "Adversarial training",
    "optimizer": "Optimizer",
    "schedule": "Learning-rate schedule",
    "clip": "Gradient clipping",
    "ema": "Running mean of the weights (EMA)",
    "compile": "torch.compile",
    "precision": "Precision",
    "parallel": "Processes",
    "launch": "Where it runs: this machine, Slurm, Ray",
    "evaluation": "Evaluation",
    "checkpoint": "Checkpoints",
    "skip": "Batches left out",
    "monitor": "Monitor",
    "alerts": "Alerts",
}
# What a person changes first; the others start closed. A comment, not a string beneath: Streamlit may print those.
OPEN_SECTIONS = ("", "task", "model", "optimizer", "schedule")


def page() -> None:
    """Preset, fields, command, start."""
    if run_id := st.session_state.pop("run_to_open", None):
        st.switch_page("views/run.py", query_params={"run": run_id})
    st.session_state.pop("launched", None)  # the form is seen again: another click means another training
    st.title("Launch")
    preset = st.segmented_control(
        "Preset",
        list(PRESETS),
        default="default",
        required=True,
        key="preset",
        bind="query-params",
        on_change=forget_values,
    )
    preset = preset or "default"
    st.caption(text.markdown(PRESETS[preset][0], 300))
    base = load_config(None, [], preset=preset)
    top = st.container(border=True)  # filled last, and shown first: the button is in sight without scrolling
    given = fields(base, preset)
    config, problem, bad = resolve(base, given)
    show_field_errors(bad)
    with top:
        summary(config, problem, bad)


def forget_values() -> None:
    """A new preset starts from its own values."""
    for key in [key for key in st.session_state if str(key).startswith("field.")]:
        del st.session_state[key]


# ---- fields -------------------------------------------------------------------------------------------------------


def fields(base: TrainConfig, preset: str) -> dict[str, Any]:
    """Every field as a widget; returns what was changed from ``base``, by dotted name."""
    st.session_state["field_errors"] = {}
    sections: dict[str, list[FormField]] = {}
    for field in form_fields():
        sections.setdefault(field.name.rpartition(".")[0], []).append(field)
    record = base.record()
    given: dict[str, Any] = {}
    for section, members in sections.items():
        title = SECTION_TITLES.get(section, section.replace("_", " ").capitalize())
        with st.expander(title, expanded=section in OPEN_SECTIONS):
            if section == "launch":
                tell_engines()
            grid = st.grid(min_column_width=165)
            for field in members:
                with grid.cell():
                    before = value_at(record, field.name)
                    value = widget(field, before, preset)
                    st.session_state["field_errors"][field.name] = st.empty()
                if value != before:
                    given[field.name] = value
    return given


@st.cache_data(ttl=10, show_spinner=False)
def engines() -> dict[str, str | None]:
    """Where a training can be launched, and why not: asked anew after 10 s, since a cluster may take its time."""
    return control.engines()


def tell_engines() -> None:
    """Which engines cannot be chosen, and why."""
    for name, reason in engines().items():
        if reason is not None:
            st.caption(f"{name} cannot be chosen: {text.markdown(reason, 300)}")


def value_at(record: dict[str, Any], name: str) -> Any:
    """The value at a dotted name."""
    value: Any = record
    for part in name.split("."):
        value = value[part]
    return value


def widget(field: FormField, before: Any, preset: str) -> Any:
    """The input of one field; numbers are typed as text, so that a bad one is refused in words, not bent silently."""
    label = text.markdown(field.name.rpartition(".")[2])
    explained = text.markdown(f"{field.description} {accepted(field)}", 500)
    key = f"field.{preset}.{field.name}"
    if field.kind == "bool":
        return st.toggle(label, value=bool(before), key=key, help=explained)
    if field.choices:
        options = [*field.choices, *(["none"] if field.optional else [])]
        if field.name == "launch.engine":
            options = [name for name in options if engines()[name] is None]
        options += [before] if before is not None and before not in options else []
        index = options.index("none" if before is None else before)
        chosen = st.selectbox(
            label, options, index=index, key=key, help=explained, accept_new_options=field.open_choices
        )
        return None if field.optional and chosen == "none" else chosen
    shown = "" if before is None else spelled(before)
    typed = st.text_input(label, value=shown, key=key, help=explained, placeholder="none" if field.optional else None)
    return parse(field, typed or "")


def accepted(field: FormField) -> str:
    """The bounds in words: ``At least 1, at most 256.``"""
    parts = []
    if field.minimum is not None:
        parts.append(f"{'more than' if field.exclusive_minimum else 'at least'} {field.minimum:g}")
    if field.maximum is not None:
        parts.append(f"{'less than' if field.exclusive_maximum else 'at most'} {field.maximum:g}")
    words = ", ".join(parts)
    off = "Empty for none." if field.optional else ""
    return f"{words.capitalize()}. {off}".strip() if words else off


def spelled(value: Any) -> str:
    """A number as a person writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse(field: FormField, typed: str) -> Any:
    """The typed text as what the field wants; text that is no number stays text, for the validation to refuse."""
    typed = typed.strip()
    if not typed or typed.lower() == "none":
        return None if field.optional else typed
    try:
        return {"int": int, "float": float}.get(field.kind, str)(
            typed.replace("_", "") if field.kind == "int" else typed
        )
    except ValueError:
        return typed


# ---- checking -----------------------------------------------------------------------------------------------------


def resolve(base: TrainConfig, given: dict[str, Any]) -> tuple[TrainConfig | None, str | None, dict[str, str]]:
    """The configuration, or why there is none.

    Returns:
        the configuration or None; what does not fit together; the field errors by dotted name.
    """
    bad: dict[str, str] = {}
    for name, value in given.items():
        try:
            with_values(TrainConfig(), {name: value})
        except ConfigError as error:
            if words := field_words(name, str(error)):
                bad[name] = words
    if bad:
        return None, None, bad
    try:
        return with_values(base, given), None, {}
    except ConfigError as error:
        return None, str(error), {}


def field_words(name: str, error: str) -> str | None:
    """The validation's words about ``name``; None when they are about how fields fit together: that is judged later."""
    for prefix in (f"{name} = ", f"config: {name} = ", f"{name}: "):
        if error.startswith(prefix):
            return error.removeprefix("config: ")
    return None


def show_field_errors(bad: dict[str, str]) -> None:
    """Each refused value has the validation's words beneath it."""
    for name, words in bad.items():
        st.session_state["field_errors"][name].error(text.markdown(words, 300))


# ---- summary ------------------------------------------------------------------------------------------------------


def summary(config: TrainConfig | None, problem: str | None, bad: dict[str, str]) -> None:
    """What would be trained, the button, and the command that does the same."""
    reason = control.read_only_reason()
    said, action = st.columns([5, 1], vertical_alignment="center")
    with said:
        if config is None:
            count = len(bad)
            words = (
                "One value is refused; see beneath it."
                if count == 1
                else f"{count} values are refused; see beneath them."
            )
            st.error(text.markdown(problem or words, 600))
        else:
            in_all = text.count(config.tokens_per_step * config.steps)
            st.markdown(text.markdown(describe(config), 600))
            st.caption(
                f"{text.count(config.tokens_per_step)} tokens per step, {in_all} in all. {text.markdown(reason or '')}"
            )
    off = config is None or reason is not None
    with action.container(horizontal=True, horizontal_alignment="right"):
        st.button(
            "Dry run",
            on_click=try_out,
            args=(config,),
            disabled=off,
            help="A few real steps that write nothing: parameters, memory, steps per second.",
            key="dry_run",
        )
        st.button("Start", type="primary", on_click=start, args=(config,), disabled=off, key="start")
    if config is not None:
        followed(tried_out, 1.0 if is_running(config) else None)(config)
        folder = data.launch_folder()
        st.caption(f"The same in a terminal; either way the run is written to {text.markdown(folder)}")
        st.code(shlex.join(launch.command(config, folder, config.name)), language=None, wrap_lines=True)
    if refusal := st.session_state.pop("launch_refused", None):
        refused(refusal)


def start(config: TrainConfig) -> None:
    """Start the training and open it. A second click, also one on its way while the page turns, opens the same one."""

    def begin() -> None:
        started = st.session_state.get("launched") or control.start(config)
        st.session_state["launched"] = st.session_state["run_to_open"] = started

    attempted(begin)


def try_out(config: TrainConfig) -> None:
    """Begin a dry run."""
    attempted(lambda: control.dry_run(config))


def attempted(act: Callable[[], None]) -> None:
    """Do it; a refusal is shown when the page is drawn."""
    try:
        act()
    except (GradiometerError, OSError) as error:
        st.session_state["launch_refused"] = str(error)


def is_running(config: TrainConfig) -> bool:
    """Whether it is being tried out."""
    outcome = DRY_RUNS.of(config)
    return outcome is not None and outcome.running


def tried_out(config: TrainConfig) -> None:
    """What the dry run of this configuration has found."""
    outcome = DRY_RUNS.of(config)
    if outcome is None:
        return
    if outcome.running:
        st.caption("Dry run: a few real steps are taken in a process beside the page; this takes some seconds.")
        return
    if st.session_state.get("dry_run_seen") != config.model_dump_json():
        st.session_state["dry_run_seen"] = config.model_dump_json()
        st.rerun()  # it has just ended: nothing more is asked for every second
    if outcome.problem is not None:
        st.warning(text.markdown(f"Dry run: {outcome.problem}", 600))
        return
    st.dataframe(
        pd.DataFrame(outcome.rows, columns=["What it takes", "Measured in a dry run"]),
        hide_index=True,
        width="stretch",
    )


page()
