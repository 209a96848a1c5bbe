"""Incidents: what moved first, why, and what to do about it; the worst first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import text
from app.charts.measures import layer_curve
from app.charts.still import window_figure
from app.data import DIAGNOSES, READERS, incidents_of
from app.facts import Facts
from app.followed import followed
from app.incident import (
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
from app.views import fixes
from app.views.common import HEALTH, bullets, severity_badge
from monitor.diagnosis.report import set_words
from monitor.runfile.reader import Run


def show(path: Path, facts: Facts) -> None:
    """The incidents, worst first, and the one that is open; then what could not be told."""
    followed(incident_list, lambda: refresh_s(path, facts, 4.0))(path)


def open_incident(key: str) -> None:
    """Turn the page to the incident called ``key``."""
    st.session_state["section"] = "Incidents"
    st.session_state["incident"] = key


def refresh_s(path: Path, facts: Facts, live_s: float) -> float | None:
    """Seconds between looks at the diagnosis: short while it is being made, none when it can no longer change."""
    with READERS.reading(path) as run:
        version = run.version
    made = DIAGNOSES.of(path, version)
    if facts.live:  # a newer one is always due
        return 1.5 if made.value is None and made.error is None else live_s
    return 1.5 if made.pending else None


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
        fixes.show(path, found, findings)
        recorded(path, found)
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
        st.query_params.update(x0=str(first), x1=str(last))
        st.session_state["go_to_section"] = "Story"
        st.session_state["span_given"] = st.session_state.get("span_given", 0) + 1
        st.rerun()


def recorded(path: Path, found: dict[str, Any]) -> None:
    """All layers round the onset, as densely as the flight recorder kept them."""
    with READERS.reading(path) as run:
        has_layers, (first, last) = bool(run.layer_stats), span_of(found, run.last_step)
    if has_layers and onset_of(found) is not None:
        st.markdown("**All layers round the onset**")
        key = f"recorder-{path.name}-{incident_key(found)}"
        live_grid(path.name, "recorder", key=key, span=(float(first), float(last)), every_s=4.0)


def layer_signal(run: Run, layer: str) -> list[tuple[str, Any]]:
    """The gradient norm of one layer as a signal, in a list; empty when it was not measured."""
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
