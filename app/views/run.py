"""Run: one training from its state to its causes; the address reproduces what is shown."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import control, data, text
from app.charts import measures
from app.charts.attention import AttentionMap, attention_maps, head_figure
from app.charts.still import slice_figure, window_figure
from app.data import DIAGNOSES, READERS, incidents_of
from app.facts import Facts, attempt_rows, facts_of
from app.incident import (
    as_lines,
    cannot_tell,
    cause_title,
    config_diff,
    evidence,
    findings_in,
    incident_key,
    moved,
    notes,
    onset_of,
    rule_title,
    span_of,
    where,
)
from app.live_grid import live_grid
from app.views import ranks
from app.views.common import HEALTH, badge, bullets, health_badge, keep_range, refused, state_badge, zoomed
from monitor.diagnosis.report import set_words
from monitor.errors import GradiometerError, RunError
from monitor.runfile.reader import Event, Run

SECTIONS = ("Story", "Incidents", "Attention", "Landscape", "System", "Ranks", "Config", "Log")
LIST_COMMAND = "gradiometer runs"
# How long opening a run may wait for its diagnosis; after that the page says that it is being made. A comment, not a
# string beneath: this file is run as a script, and Streamlit may print a bare string into the page.
DIAGNOSIS_WAIT_S = 0.8
WARNINGS_SHOWN = 3


def page() -> None:
    """The header, and the section that the address names."""
    run_id = st.query_params.get("run")
    if not run_id:
        refused("No run was named in the address. Open one from the list of runs.", LIST_COMMAND)
        st.page_link("views/runs.py", label="To the list of runs")
        return
    path = None
    try:
        path = data.find_run(run_id)
        with READERS.reading(path) as run:
            facts, name, version = facts_of(run), run.name, run.version
            absent = set() if run.events("attention_map") else {"Attention"}
            absent |= set() if ranks.has_several(run) else {"Ranks"}
    except RunError as error:
        refused(error, None if path else LIST_COMMAND)  # an unreadable run says by itself what to do
        st.page_link("views/runs.py", label="To the list of runs")
        return
    if st.session_state.get("waited_for") != run_id:
        st.session_state["waited_for"] = run_id
        DIAGNOSES.of(path, version, wait=DIAGNOSIS_WAIT_S)
    st.fragment(header, run_every=1.0 if facts.live else 3.0)(path, name, facts.live)
    section = st.segmented_control(
        "Section",
        [section for section in SECTIONS if section not in absent],
        default="Story",
        required=True,
        key="section",
        bind="query-params",
        label_visibility="collapsed",
    )
    SHOW[section or "Story"](path, facts)


# ---- header -------------------------------------------------------------------------------------------------------


def header(path: Path, name: str, was_live: bool) -> None:
    """State, health, progress and the latest numbers; runs by itself every second while the training does."""
    with READERS.reading(path) as run:
        facts, version, created = facts_of(run), run.version, run.created
    if facts.live != was_live:
        st.rerun()  # it has ended or was resumed: the other parts follow it at another pace from now on
    made = DIAGNOSES.of(path, version)
    title, actions = st.columns([3, 2], vertical_alignment="center")
    badges = [state_badge(facts.state), health_badge(made), badge("sample", "gray") if data.is_sample(path) else ""]
    title.markdown(f"## {text.markdown(name, 120)} {' '.join(badges)}")
    with actions.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center"):
        buttons(path, facts)
    progress(facts, created)
    numbers(facts)
    receipt(path)
    troubles(facts)


def progress(facts: Facts, created: float) -> None:
    """The step of the planned steps, with the time left."""
    heard = f"updated {text.ago(facts.state.updated)}" if facts.state.updated else f"made {text.ago(created)}"
    if facts.step is None:
        reason = f" {text.markdown(facts.state.reason)}" if facts.live else ""
        st.caption(f"No step yet, {heard}.{reason}")
        return
    if facts.share is None or not facts.live:
        planned = f" of {text.count(facts.planned_steps)}" if facts.planned_steps else ""
        st.caption(f"step {text.count(facts.step)}{planned}, {heard}")
        return
    left = f", about {text.duration(facts.seconds_left)} left" if facts.seconds_left is not None else ""
    words = f"step {text.count(facts.step)} of {text.count(facts.planned_steps)}{left}, {heard}"
    st.progress(facts.share, text=words)


def numbers(facts: Facts) -> None:
    """The latest values, each with its unit."""
    clip = (
        f"Before clipping, at the last step; the limit is {text.number(facts.clip_limit)}."
        if facts.clip_limit
        else "At the last step."
    )
    bad = sum(count for _, count in facts.nonfinite)
    where = ", ".join(f"{name} {text.count(count)}" for name, count in facts.nonfinite) or "None in any signal."
    shown = (
        ("Train loss", text.nats(facts.loss), None),
        ("Best loss", text.nats(facts.best_loss), None),
        ("Validation loss", text.nats(facts.val_loss), None),
        ("Gradient norm", text.number(facts.grad_norm, 3), clip),
        ("Throughput", text.rate(facts.tokens_per_s, "tokens/s"), "Median of the last 50 steps, over all ranks."),
        ("Step time", step_time(facts.step_time_s), None),
        ("Monitor cost", percent(facts.monitor_share), "Share of the step time that measuring takes."),
        ("Device", device(facts), None),
        ("Non-finite values", text.count(bad), where),
    )
    with st.grid(min_column_width=118, gap="small"):
        for label, value, explained in shown:
            st.metric(label, text.markdown(value), help=text.markdown(explained) if explained else None)


def device(facts: Facts) -> str:
    """``CPU, no GPU``, or the device's name; a dash when it is not known."""
    return {None: "–", "auto": "–", "cpu": "CPU, no GPU"}.get(facts.device) or str(facts.device)


def percent(share: float | None) -> str:
    """``1.2 %``; a dash for None."""
    return f"{share * 100:.2g} %" if share is not None and math.isfinite(share) else "–"


def step_time(seconds: float | None) -> str:
    """``41.2 ms``, ``1.3 s``; a dash for None."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def buttons(path: Path, facts: Facts) -> None:
    """Stop while it runs, resume when it has ended before its last step."""
    reason = control.read_only_reason()
    if data.is_sample(path):
        return
    asked = asked_to_stop(path)
    if facts.live or facts.state.word == "stale":
        label = "Stopping" if asked else "Stop"
        explained = reason or "Saves a checkpoint and ends; it can be resumed."
        st.button(
            label,
            on_click=ask,
            args=("stop", path),
            disabled=bool(reason) or asked,
            help=text.markdown(explained),
            key="stop",
        )
        return
    complete = facts.step is not None and facts.planned_steps is not None and facts.step >= facts.planned_steps
    if complete:
        return
    explained = reason or (
        "Goes on from the last complete checkpoint." if facts.has_checkpoint else "There is no complete checkpoint."
    )
    st.button(
        "Resume",
        on_click=ask,
        args=("resume", path),
        disabled=bool(reason) or not facts.has_checkpoint,
        help=text.markdown(explained),
        key="resume",
    )


def ask(action: str, path: Path) -> None:
    """Carry out a click and keep its receipt; never waits for a process."""
    try:
        words = control.stop(path) if action == "stop" else control.resume(path)
        st.session_state["receipt"] = (str(path), action, time.time(), words, True)
    except (GradiometerError, OSError) as error:
        st.session_state["receipt"] = (str(path), action, time.time(), str(error), False)


def asked_to_stop(path: Path) -> bool:
    """Whether this tab asked for a stop a moment ago."""
    kept = st.session_state.get("receipt")
    return bool(kept and kept[0] == str(path) and kept[1] == "stop" and kept[4] and time.time() - kept[2] < 40)


def receipt(path: Path) -> None:
    """That a request was made, when, and what came of it."""
    kept = st.session_state.get("receipt")
    if not kept or kept[0] != str(path) or time.time() - kept[2] > 120:
        return
    _, action, when, words, fine = kept
    line = f"{action.capitalize()} asked for {text.ago(when)}: {text.markdown(words, 400)}"
    (st.caption if fine else st.warning)(line)


def troubles(facts: Facts) -> None:
    """Warnings of the recorder, and what could not be read."""
    for words in facts.warnings[:WARNINGS_SHOWN]:
        st.warning(text.markdown(words, 400))
    if len(facts.warnings) > WARNINGS_SHOWN:
        with st.expander(f"{len(facts.warnings) - WARNINGS_SHOWN} more warnings"):
            bullets(list(facts.warnings[WARNINGS_SHOWN : WARNINGS_SHOWN + 50]))
    if facts.state.word in ("crashed", "lost", "stale", "stopped"):
        st.caption(text.markdown(f"{facts.state.word}: {facts.state.reason}", 400))
    if facts.problems:
        count = len(facts.problems)
        with st.expander(
            f"{count} {'part' if count == 1 else 'parts'} of this run could not be read; the rest is shown"
        ):
            st.code(
                "\n".join(text.plain(problem, 400) for problem in facts.problems[:50]), language=None, wrap_lines=True
            )


# ---- story --------------------------------------------------------------------------------------------------------


def story(path: Path, facts: Facts) -> None:
    """The aligned stack, with the worst incident above it."""
    st.fragment(alarm, run_every=refresh_s(path, facts, 3.0))(path)
    if facts.step is None and not facts.live:
        st.info("This run has no points, and nothing writes to it any more. Start another one:")
        st.code("gradiometer train", language=None)
        return
    st.fragment(stack)(path)


def alarm(path: Path) -> None:
    """The worst incident in one line, with the way to it."""
    with READERS.reading(path) as run:
        version = run.version
    found = incidents_of(DIAGNOSES.of(path, version))
    if not found:
        return
    worst = found[0]
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        more = f" And {len(found) - 1} more." if len(found) > 1 else ""
        words = text.markdown(str(worst["summary"]).rstrip(".") + "." + more, 400)
        st.markdown(f"{severity_badge(worst)} {words}", width="stretch")
        if st.button("Why, and what to do", key="open_incident"):
            open_incident(incident_key(worst))
            st.rerun()


def open_incident(key: str) -> None:
    """Turn the page to the incident called ``key``."""
    st.session_state["section"] = "Incidents"
    st.session_state["incident"] = key


def stack(path: Path) -> None:
    """The live charts; a fragment of its own, so that a zoom does not run the rest of the page."""
    run_id = path.name
    with READERS.reading(path) as run:
        there = measures.choices(run)
    stat = heatmap_choice(there) if len(there) > 1 else None
    key = f"story-{run_id}"
    live_grid(
        run_id,
        "story",
        key=key,
        span=zoomed(),
        span_given=st.session_state.get("span_given", 0),
        stat=stat,
        layer=st.query_params.get("layer"),
        on_range_change=lambda: keep_range(key),
        on_layer_change=lambda: keep_layer(key),
        on_incident_change=lambda: open_incident(str(st.session_state[key].get("incident"))),
    )
    if st.session_state.get("section") == "Incidents":
        st.rerun()


def heatmap_choice(there: list[measures.Choice]) -> str | None:
    """What the heatmap is to show, by its key; beside the choice what that is and how often it is measured."""
    by_key = {choice.key: choice for choice in there}
    picked, explained = st.columns([2, 3], vertical_alignment="bottom")
    with picked:
        key = st.selectbox(
            "The heatmap shows",
            list(by_key),
            format_func=lambda key: text.plain(by_key[key].label),
            key="stat",
            bind="query-params",
        )
    if key is not None:
        explained.caption(text.markdown(by_key[key].explained, 400))
    return key


def keep_layer(key: str) -> None:
    """Write the chosen layer into the address."""
    layer = st.session_state[key].get("layer")
    if layer:
        st.query_params["layer"] = str(layer)
    elif "layer" in st.query_params:
        del st.query_params["layer"]


# ---- incidents ----------------------------------------------------------------------------------------------------


def incidents(path: Path, facts: Facts) -> None:
    """The incidents, worst first, and the one that is open; then what could not be told."""
    st.fragment(incident_list, run_every=refresh_s(path, facts, 4.0))(path)


def refresh_s(path: Path, facts: Facts, live_s: float) -> float | None:
    """Seconds between looks at the diagnosis: short while it is being made, none when it can no longer change."""
    with READERS.reading(path) as run:
        version = run.version
    if DIAGNOSES.of(path, version).pending:
        return 1.5
    return live_s if facts.live else None


def incident_list(path: Path) -> None:
    """All incidents with the open one in full."""
    with READERS.reading(path) as run:
        version = run.version
    made = DIAGNOSES.of(path, version)
    report = made.value
    if report is None:
        st.info(text.markdown(made.error, 600) if made.error else "The diagnosis is being made; this takes a moment.")
        return
    found = incidents_of(made)
    if found:
        by_key = {incident_key(one): one for one in found}
        chosen = meant(str(st.session_state.get("incident", st.query_params.get("incident"))), report)
        if len(found) > 1:
            st.session_state["incident"] = chosen
            chosen = st.radio(
                "Incidents, worst first",
                list(by_key),
                format_func=lambda key: incident_label(by_key[key]),
                key="incident",
            )
        # Not bound to the address: that leaves the default out, and the worst incident may be another one tomorrow.
        if st.query_params.get("incident") != chosen:
            st.query_params["incident"] = chosen
        incident(path, by_key[chosen], report["findings"])
    else:
        looked = text.count(report.get("steps"))
        if report["verdict"] == "healthy":
            st.success(f"Nothing found in {looked} steps.")
        else:
            st.info(f"Cannot tell whether this run is healthy after {looked} steps; below is what is missing.")
    for_information(notes(report))
    untold(cannot_tell(report))


def meant(key: str, report: dict[str, Any]) -> str:
    """The key of the incident that ``key`` names, or in which the finding lies that it names; else of the worst one."""
    found = report["incidents"]
    own = [one for one in found if incident_key(one) == key]
    own += [one for one in found if key in map(incident_key, findings_in(one, report["findings"]))]
    return incident_key((own or found)[0])


def severity_badge(event: dict[str, Any]) -> str:
    """``▲ critical`` as markdown for a badge."""
    severity = str(event["severity"])
    return badge(f"{HEALTH[severity][0]} {severity}", HEALTH[severity][2])


def incident_label(found: dict[str, Any]) -> str:
    """One line of the list."""
    sign = HEALTH[str(found["severity"])][0]
    first = f", first in {found['layer']}" if found.get("layer") else ""
    words = f"{sign} {found['severity']}, step {text.count(onset_of(found))}: {rule_title(found['id'])}{first}"
    return text.markdown(words)


def incident(path: Path, found: dict[str, Any], findings: list[dict[str, Any]]) -> None:
    """What happened where, what moved in which order, causes for and against, what to do, the findings behind it."""
    with st.container(border=True):
        st.markdown(f"#### {severity_badge(found)} {text.markdown(found['summary'], 400)}")
        st.caption(text.markdown(where(found), 400))
        around(path, found)
        left, right = st.columns([3, 2], gap="large")
        with left:
            in_order(found)
        with right:
            causes(found)
        remedy(path, found)
        inside = findings_in(found, findings)
        with st.expander(f"Findings of this incident ({len(inside)})"):
            for index, finding in enumerate(inside):
                if index:
                    st.divider()
                one_finding(finding, f"evidence-{index}")


def around(path: Path, found: dict[str, Any]) -> None:
    """The signals round the onset, every sample drawn."""
    onset = onset_of(found)
    if onset is None:
        return
    with READERS.reading(path) as run:
        first, last = span_of(found, run.last_step)
        signals = [
            ("Training loss (nats)", run.series("train_loss")),
            ("Gradient norm before clipping", run.series("grad_norm_preclip")),
        ]
        layer = found.get("layer")
        if layer and "grad_norm_preclip" in run.layer_stats:
            signals += layer_signal(run, str(layer))
    signals = [(title, signal) for title, signal in signals if len(signal)]
    if signals:
        figure = window_figure(signals, onset, before=onset - first, after=last - onset)
        st.plotly_chart(figure, key="around", config={"displayModeBar": False})
    if st.button("Show these steps in the story", key="to_story"):
        st.query_params["x0"], st.query_params["x1"] = str(first), str(last)
        st.session_state["go_to_section"] = "Story"
        st.session_state["span_given"] = st.session_state.get("span_given", 0) + 1
        st.rerun()


def layer_signal(run: Run, layer: str) -> list[tuple[str, Any]]:
    """The gradient norm of one layer as a signal, in a list; empty when it was not measured."""
    from app.charts.story import layer_curve

    signal = layer_curve(run.peaks("grad_norm_preclip"), layer)
    return [(f"Gradient norm of {layer}", signal)] if signal is not None else []


def in_order(found: dict[str, Any]) -> None:
    """Every signal that left its own baseline, the first on top."""
    st.markdown("**What moved, in order**")
    rows = moved(found)
    if not rows:
        st.caption("No signal was seen to leave a baseline of its own: too few steps were measured before.")
        return
    table = pd.DataFrame(rows)
    if not table["layer"].any():
        table = table.drop(columns="layer")
    columns = {
        "step": st.column_config.NumberColumn("step", width=52),
        "signal": st.column_config.TextColumn("signal", help="Every signal that left its own baseline."),
        "layer": st.column_config.TextColumn("layer or module"),
        "before": st.column_config.TextColumn("before", width=72, help="The value that its baseline let expect."),
        "furthest": st.column_config.TextColumn("furthest", width=80, help="The furthest value within the incident."),
        "strength": st.column_config.TextColumn(
            "strength", width=92, help="Robust standard deviations of its own baseline, at the furthest value."
        ),
    }
    st.dataframe(table, hide_index=True, key="moved", height=rows_high(table), column_config=columns)


def rows_high(table: pd.DataFrame) -> int:
    """Pixels for a table that shows ten rows and scrolls to the others."""
    return 38 + 35 * min(len(table), 10)


def causes(found: dict[str, Any]) -> None:
    """Ranked explanations with what speaks for and against each."""
    st.markdown("**Likely causes**")
    if not found.get("causes"):
        st.caption("None could be told from the signals that were recorded.")
    for cause in found.get("causes") or []:
        share = min(max(float(cause["confidence"]), 0.0), 1.0)
        st.progress(share, text=f"**{text.markdown(cause_title(cause))}**, confidence {share * 100:.0f} %")
        bullets(
            [f"for: {words}" for words in cause.get("for") or []]
            + [f"against: {words}" for words in cause.get("against") or []]
        )


def one_finding(finding: dict[str, Any], key: str) -> None:
    """Summary, place and evidence of one finding."""
    st.markdown(f"{severity_badge(finding)} {text.markdown(finding['summary'], 400)}")
    st.caption(text.markdown(where(finding), 400))
    numbers = evidence(finding)
    short = [(name, value) for name, value in numbers if len(value) <= 30]
    if short:
        table = pd.DataFrame(short, columns=["evidence", "value"])
        st.dataframe(table, hide_index=True, height=rows_high(table), width=460, key=key)
    bullets([f"{name}: {value}" for name, value in numbers if len(value) > 30])


def remedy(path: Path, found: dict[str, Any]) -> None:
    """What to change: in words, as a configuration diff and as the command line, as code for a loop of one's own."""
    advice = found.get("remedy") or {}
    if not any(advice.values()):
        return
    st.markdown("**What to do**")
    if advice.get("text"):
        st.markdown(text.markdown(advice["text"], 800))
    patch = advice.get("config_patch") or {}
    left, right = st.columns(2, gap="large")
    if patch:
        with READERS.reading(path) as run:
            config = run.config or {}
        with left:
            st.caption("Change in the configuration")
            st.code(config_diff(config, patch), language="diff")
            st.caption("On the command line")
            st.code(set_words(patch), language=None, wrap_lines=True)
    if advice.get("snippet"):
        with right if patch else st.container():
            st.caption("In a loop of your own")
            st.code(str(advice["snippet"]), language="python", wrap_lines=True)


def for_information(findings: list[dict[str, Any]]) -> None:
    """What is worth knowing and no incident, folded away."""
    if findings:
        with st.expander(f"For information ({len(findings)})"):
            for index, finding in enumerate(findings):
                one_finding(finding, f"note-{index}")


def untold(lines: list[str]) -> None:
    """The rules that could not tell, and what they lack."""
    if lines:
        st.markdown(f"**Could not be told** ({len(lines)})")
        bullets(lines)


# ---- attention ----------------------------------------------------------------------------------------------------


def attention(path: Path, facts: Facts) -> None:
    """The maps of one module at one step, its heads side by side."""
    st.fragment(maps)(path)


def maps(path: Path) -> None:
    """The choice of a step and a module, and the heads; a fragment, as a choice concerns nothing else."""
    with READERS.reading(path) as run:
        found, bad = attention_maps(run.events("attention_map"))
        as_bytes = run.task == "gpt"
    if bad:
        st.warning(f"{bad} of the attention maps of this run cannot be read; they are left out.")
    if not found:
        return
    chosen = map_choice(found)
    if chosen is None:
        return
    with st.grid(min_column_width=260, gap="small"):
        for head in range(len(chosen.weights)):
            figure = head_figure(chosen, head, as_bytes=as_bytes)
            st.plotly_chart(figure, key=f"head-{head}", config={"displayModeBar": False})
    st.caption(
        f"From 0 (dark) to {text.number(float(chosen.weights.max()), 2)} (bright), by the square root. Each row is a "
        f"query. Of {'the first sequence of the batch' if chosen.sample is None else 'a fixed sample'}, the first 64 "
        "queries and keys of at most 4 heads are kept."
    )
    words = chosen.words(as_bytes=as_bytes)
    if words:
        st.caption("Tokens, in order")
        st.code(("" if max(map(len, words)) == 1 else " ").join(words), language=None, wrap_lines=True)


def map_choice(found: list[AttentionMap]) -> AttentionMap | None:
    """Which map is looked at: its step, the latest unless told otherwise, and its module."""
    left, right, third = st.columns([1, 2, 2])
    samples = sorted({one.sample for one in found}, key=lambda sample: -1 if sample is None else sample)
    if samples != [None]:
        with third:
            of = {"batch" if sample is None else f"sample {sample}": sample for sample in samples}
            picked = st.selectbox("Sequence", list(of), key="map_sample", bind="query-params")
        found = [one for one in found if one.sample == of.get(str(picked))]
    steps = sorted({str(one.step) for one in found}, key=int, reverse=True)
    with left:
        step = st.selectbox(
            "Step", steps, format_func=lambda step: text.count(int(step)), key="map_step", bind="query-params"
        )
    modules = [one.module for one in found if str(one.step) == step]
    with right:
        module = st.selectbox("Module", modules, format_func=text.plain, key="map_module", bind="query-params")
    return next((one for one in found if str(one.step) == step and one.module == module), None)


# ---- the other sections -------------------------------------------------------------------------------------------


def landscape(path: Path, facts: Facts) -> None:
    """The loss around the weights, over steps and along one direction."""
    with READERS.reading(path) as run:
        samples = run.landscape()
        measured = bool(samples) or "landscape_loss_mean" in run.names
    if not measured:
        st.info("No landscape samples in this run.")
        st.caption("The trainer takes them every monitor.landscape\\_every steps; in a loop of your own call:")
        st.code("mon.landscape_sample(lambda: loss_of(fixed_batch))", language="python")
        return
    key = f"landscape-{path.name}"
    st.fragment(live_grid)(
        path.name, "landscape", key=key, span=zoomed(), every_s=4.0, on_range_change=lambda: keep_range(key)
    )
    st.fragment(slices, run_every=10.0 if facts.live else None)(path)


def slices(path: Path) -> None:
    """The last slices."""
    with READERS.reading(path) as run:
        figure = slice_figure(run.landscape())
    if figure is None:
        st.caption("No slice along a direction has been taken yet.")
        return
    st.markdown("**Loss along one direction through the weights**")
    st.plotly_chart(figure, key="slice", config={"displayModeBar": False})


def system(path: Path, facts: Facts) -> None:
    """What the machine did."""
    live_grid(path.name, "system", key=f"system-{path.name}", every_s=4.0)
    if not facts.has_gpu:
        st.caption("No GPU was used, so there are no GPU curves.")


def config(path: Path, facts: Facts) -> None:
    """What was asked for, by whom it was run and where."""
    with READERS.reading(path) as run:
        asked, attempts, parent, rows = run.config, run.attempts, run.parent, attempt_rows(run)
    st.markdown("**Attempts**")
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True, key="attempts")
    else:
        st.caption("None has begun.")
    if parent:
        st.caption(text.markdown(f"Forked from {parent.get('run')} at step {parent.get('step')}"))
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Configuration**")
        st.code(as_lines(asked) if asked else "none was recorded", language=None)
    with right:
        st.markdown("**Environment of the last attempt**")
        environment = attempts[-1].environment if attempts else {}
        git = attempts[-1].git if attempts else None
        st.code(
            as_lines({**environment, **({"git": git} if git else {})}) or "none was recorded",
            language=None,
            wrap_lines=True,
        )
    st.caption("Directory")
    st.code(str(path), language=None)


def log(path: Path, facts: Facts) -> None:
    """What the training printed last, and what happened in it."""
    st.fragment(log_tail, run_every=2.0 if facts.live else None)(path)


def log_tail(path: Path) -> None:
    """The end of the log, then the events."""
    with READERS.reading(path) as run:
        lines = run.log_tail(400)
        events = run.events()
    if lines:
        st.code("\n".join(text.plain(line, 2_000) for line in lines), language=None, height=420)
    else:
        st.info("No log in this run. A training started from here or by the gradiometer command has one.")
    if events:
        st.markdown(f"**Events** ({text.count(len(events))})")
        rows = [
            {
                "time": time.strftime("%H:%M:%S", time.localtime(event.time)),
                "step": text.count(event.step),
                "kind": text.plain(event.kind, 40),
                "what": text.plain(as_lines(told(event)).replace("\n", ", "), 300),
            }
            for event in reversed(events[-500:])
        ]
        st.dataframe(pd.DataFrame(rows), hide_index=True, key="events", height=300)


def told(event: Event) -> dict[str, Any]:
    """The fields of an event that can be read: of an attention map not its weights, which are a picture."""
    if event.kind != "attention_map":
        return event.fields
    return {name: event.fields[name] for name in ("module", "shape") if name in event.fields}


SHOW = {
    "Story": story,
    "Incidents": incidents,
    "Attention": attention,
    "Landscape": landscape,
    "System": system,
    "Ranks": ranks.show,
    "Config": config,
    "Log": log,
}

if st.session_state.get("go_to_section"):
    st.session_state["section"] = st.session_state.pop("go_to_section")
page()
