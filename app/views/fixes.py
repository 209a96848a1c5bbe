"""Try this fix: from an incident to a child run, and what became of the incident in it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app import control, data, fixes, text
from app.data import READERS, Background
from app.followed import followed
from app.incident import incident_key
from app.live_grid import live_grid
from app.views.common import badge
from monitor.diagnosis.verdict import Outcome, steps_needed
from monitor.errors import GradiometerError, RunError
from monitor.runfile.reader import open_run

WORDS: dict[str, tuple[str, str]] = {
    "gone": ("✓", "green"),
    "moved": ("→", "orange"),
    "came back": ("▲", "red"),
    "not decided": ("…", "gray"),
}
"""Never the colour alone: a sign and a word go with it."""
CHARTS = "^(train_loss|grad_norm_preclip)$"
REFRESH_S = 2.0
BEFORE_FORK = 30
"""Steps before the fork that the overlay shows."""


def _judged(path: Path) -> Outcome:
    """What became of the incident; kept in the parent where the page may act."""
    return fixes.settle(path) if control.read_only_reason() is None else fixes.outcome_of(open_run(path))


OUTCOMES: Background[Outcome] = Background("verdicts", _judged, min_interval=1.0)


def show(path: Path, found: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> None:
    """What can be tried on an incident, and what has been; runs by itself, so that verdicts appear."""
    followed(panel, REFRESH_S)(path, found, findings)


def panel(path: Path, found: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> None:
    """The buttons, the receipt of a click, and each child beside its parent."""
    with READERS.reading(path) as run:
        reason = "A sample run is for reading." if data.is_sample(path) else fixes.why_not(run)
        made = fixes.tried(run, found["onset_step"])
        saved = tuple(point.step for point in run.checkpoints() if point.complete)
    st.markdown("**Try this fix**")
    if reason:
        st.caption(text.markdown(f"It cannot be tried from here. {reason}", 400))
        return
    offer(path, possible(path, found, findings, saved), incident_key(found), len(made))
    receipt(path)
    if made:
        tried(path, made)


@st.cache_data(max_entries=32, show_spinner=False)
def possible(
    path: Path, found: Mapping[str, Any], _findings: Sequence[Mapping[str, Any]], saved: tuple[int, ...]
) -> list[fixes.Plan]:
    """What can be tried; kept while the checkpoints are the same, for each is read and checked whole."""
    return fixes.plans(open_run(path), found, _findings)


def offer(path: Path, plans: list[fixes.Plan], key: str, seen: int) -> None:
    """What would be started, from where, and the buttons."""
    plan, reason = plans[0], control.read_only_reason()
    onset = text.count(plan.trouble.onset_step)
    where = (
        f"from the checkpoint of step {text.count(plan.step)}, the last before the onset at step {onset}"
        if plan.step
        else f"from the start with the same seed: no checkpoint of before step {onset} is complete and fits the change"
    )
    what = "with the change above" if plan.experiment.key == "remedy" else plan.experiment.text
    st.caption(
        text.markdown(
            f"A child run {what}, {where}. It trains on to the end; {steps_needed(plan.trouble)} steps past the onset "
            "say whether the incident is gone. This run is only read.",
            600,
        )
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Try this fix",
            type="primary",
            on_click=ask,
            args=(path, "fix", plan, key, seen),
            disabled=reason is not None,
            help=text.markdown(reason) if reason else None,
            key="try_fix",
        )
        listed = "; ".join(one.experiment.text for one in plans)
        explained = reason or f"Tries each with as few steps as it takes to judge it, and ranks them: {listed}."
        st.button(
            f"What-if set ({len(plans)})",
            on_click=ask,
            args=(path, "what-if", plan, key, seen),
            disabled=reason is not None,
            help=text.markdown(explained, 600),
            key="what_if",
        )


def ask(path: Path, what: str, plan: fixes.Plan, key: str, seen: int) -> None:
    """Carry out a click and keep its receipt; never waits for a training."""
    try:
        words = f"{control.try_fix(path, plan, seen)} started" if what == "fix" else control.what_if(path, key, seen)
        st.session_state["fix_receipt"] = (str(path), time.time(), words, True)
    except (GradiometerError, OSError) as error:
        st.session_state["fix_receipt"] = (str(path), time.time(), str(error), False)


def receipt(path: Path) -> None:
    """That something was asked for, when, and what came of it."""
    kept = st.session_state.get("fix_receipt")
    if kept and kept[0] == str(path) and time.time() - kept[1] < 120:
        line = f"Asked for {text.ago(kept[1])}: {text.markdown(kept[2], 400)}"
        (st.caption if kept[3] else st.warning)(line)


def tried(path: Path, made: list[fixes.Tried]) -> None:
    """Every change that was tried, what mended it first, then the newest; and one of them beside its parent."""
    newest = made[::-1]
    made = [one for one in newest if one.outcome.get("word") == "gone"]
    made += [one for one in newest if one not in made]
    for one in made:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"{verdict(path, one)}", width="stretch")
            link_to(one.run)
    shown = [one for one in made if (path.parent / one.run / "run.json").is_file()]
    if not shown:
        return
    chosen = shown[0]
    if len(shown) > 1:
        named = {one.run: one for one in shown}
        picked = st.selectbox(
            "Beside this run",
            list(named),
            format_func=lambda run: text.plain(f"{named[run].text} ({run})"),
            key="beside",
        )
        chosen = named.get(str(picked), chosen)
    overlay(path, chosen)


def verdict(path: Path, one: fixes.Tried) -> str:
    """One change as markdown: the word, what was changed, and the numbers."""
    word, why = str(one.outcome.get("word") or "not decided"), str(one.outcome.get("text") or "")
    try:
        with READERS.reading(path.parent / one.run) as child:
            state, version = child.state, child.version
        now = OUTCOMES.of(child.path, (version, state.word))
        if now.value is not None:
            word, why = now.value.word, now.value.text
        elif not why:
            why = now.error or f"the child is {state.word}"
    except RunError:
        why = why or "the child is gone"
    sign, colour = WORDS.get(word, WORDS["not decided"])
    at = "the start" if one.step == 0 else f"step {text.count(one.step)}"
    head = f"{badge(f'{sign} {word}', colour)} **{text.markdown(one.text, 200)}**, from {at}: "
    return head + text.markdown(why, 600)


def overlay(path: Path, one: fixes.Tried) -> None:
    """The child's curves over its parent's, from a little before the fork on."""
    ids = [one.run, path.name]
    key = f"fix-{hashlib.blake2b(repr(ids).encode(), digest_size=6).hexdigest()}"
    live_grid(
        ids,
        "compare",
        key=key,
        query={"metrics": CHARTS, "axis": "step"},
        span=(float(max(0, one.step - BEFORE_FORK)), float(one.onset_step + 3 * BEFORE_FORK)),
    )


def note(path: Path) -> None:
    """On the page of a child: what it was started for, and what became of it."""
    with READERS.reading(path) as run:
        parent, fix = run.parent or {}, (run.parent or {}).get("fix")
    if isinstance(fix, dict) and isinstance(parent.get("run"), str):
        followed(_note, REFRESH_S)(path, str(parent["run"]), str(fix.get("text")))


def _note(path: Path, parent: str, change: str) -> None:
    with READERS.reading(path) as run:
        token = run.version, run.state.word
    now = OUTCOMES.of(path, token)
    word = now.value.word if now.value else "not decided"
    sign, colour = WORDS[word]
    why = now.value.text if now.value else now.error or "being judged"
    with st.container(horizontal=True, vertical_alignment="center"):
        line = f"{badge(f'{sign} {word}', colour)} Tries a fix, {text.markdown(change, 200)}: {text.markdown(why, 600)}"
        st.markdown(line, width="stretch")
        link_to(parent)


def link_to(run: str) -> None:
    """The way to another run. A button: a link to the page that is open leaves its address as it is."""
    if st.button(text.markdown(run, 80), key=f"open-{run}"):
        for name in ("incident", "layer", "x0", "x1"):
            st.query_params.pop(name, None)
        st.query_params["run"] = run
        st.session_state["go_to_section"] = "Story"
        st.rerun()
