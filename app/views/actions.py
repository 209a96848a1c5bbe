"""The buttons in the header of a run. Each asks, and the receipts below tell what came of it: from files, so that they
are the same in every tab and after a reload. Nothing here waits for a process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from app import control, data, text
from app.engine_state import WAITING
from app.facts import Facts
from monitor.errors import GradiometerError, RunError
from monitor.runfile.control import DENSE_STEPS, MOST_DENSE_STEPS, Asked, answered_kinds, asked, next_number
from monitor.runfile.store import attempt_numbers
from trainer.launch.intentions import intentions

SHOWN_S = 600.0  # how long a receipt stays in sight; older ones are behind it
REFUSAL_S = 60.0
LABELS = {
    "checkpoint": "Checkpoint now",
    "stop": "Stop",
    "pause": "Pause",
    "continue": "Go on",
    "set_lr": "Learning rate",
    "set_clip": "Clip limit",
    "record_dense": "Dense recording",
}
SIGNS = {"asked": "…", "arrived": "◌", "done": "✓", "failed": "✕", "refused": "✕"}  # with the word, never alone


def show(path: Path, facts: Facts) -> None:
    """What can be done with the run as it stands: more while it trains, a resume when it has ended before its end."""
    if data.is_sample(path):
        return
    reason = control.read_only_reason()
    if facts.live or facts.state.word == "stale":
        live(path, facts, reason)
    elif not (facts.step is not None and facts.planned_steps is not None and facts.step >= facts.planned_steps):
        explained = reason or (
            "Goes on from the last complete checkpoint." if facts.has_checkpoint else "There is no complete checkpoint."
        )
        button("Resume", resume, (path,), bool(reason) or not facts.has_checkpoint, explained, "resume")


def live(path: Path, facts: Facts, reason: str | None) -> None:
    """The buttons of a training that goes on: those that it answers."""
    # A job in a queue has the heartbeat of the attempt before, which answered; nobody does now.
    ended = facts.state.word in WAITING or intentions(path).ended
    kinds, attempt = () if ended else answered_kinds(facts.state.heartbeat), newest(path)
    seen = number_of(path, attempt)
    stopping = is_stopping(path)
    off = bool(reason) or stopping
    open_kinds = {one.request.do for one in asked(path, attempt) if one.request and one.state in ("asked", "arrived")}
    paused = facts.state.word == "paused"
    for do, explained in (
        ("checkpoint", "Saves one after this step. It is kept like any other."),
        ("continue" if paused else "pause", "Waits after this step, or goes on; a stop is obeyed all the same."),
    ):
        if do in kinds:
            waits = off or do in open_kinds
            button(LABELS[do], ask, (path, do, seen), waits, reason or explained, do)
    if {"set_lr", "set_clip", "record_dense"} & set(kinds):
        with st.popover("Change", disabled=off, help=text.markdown(reason) if reason else None):
            changes(path, kinds, seen, off)
    label = "Stopping" if stopping else "Stop"
    button(label, stop, (path,), off, reason or "Saves a checkpoint and ends; it can be resumed.", "stop")


def changes(path: Path, kinds: tuple[str, ...], seen: int, off: bool) -> None:
    """What takes a value; checked where it is written, and once more by the training."""
    if "set_lr" in kinds:
        typed(
            "Learning rate",
            "1e-4 or x0.5",
            "Of the next step, such as 1e-4; or x0.5 to halve it. The schedule goes on multiplying.",
            "set_lr",
            lambda words: {"factor": number(words[1:])} if words.startswith("x") else {"value": number(words)},
            path,
            seen,
            off,
        )
    if "set_clip" in kinds:
        typed(
            "Clip limit",
            "0.5 or none",
            "Of the kind of clipping that is configured, such as 0.5; none for no clipping.",
            "set_clip",
            lambda words: {"value": None if words == "none" else number(words)},
            path,
            seen,
            off,
        )
    if "record_dense" in kinds:
        typed(
            "Steps to measure in full",
            str(DENSE_STEPS),
            f"1 to {MOST_DENSE_STEPS}; {DENSE_STEPS} when empty.",
            "record_dense",
            lambda words: {"steps": whole(number(words)) if words else DENSE_STEPS},
            path,
            seen,
            off,
        )


def typed(
    label: str,
    example: str,
    explained: str,
    do: str,
    read: Callable[[str], dict[str, float | int | None]],
    path: Path,
    seen: int,
    off: bool,
) -> None:
    """A field and its button."""
    field, press = st.columns([2, 1], vertical_alignment="bottom")
    key = f"typed.{do}"
    field.text_input(label, key=key, help=text.markdown(explained), placeholder=example)
    label = "Set" if do != "record_dense" else "Record"
    press.button(label, on_click=ask_typed, args=(path, do, seen, read), disabled=off, key=do)


def button(
    label: str, on_click: Callable[..., None], args: tuple[object, ...], off: bool, explained: str, key: str
) -> None:
    """One button of the header."""
    st.button(label, on_click=on_click, args=args, disabled=off, help=text.markdown(explained), key=key)


# ---- what a click does --------------------------------------------------------------------------------------------


def ask(path: Path, do: str, seen: int, **values: float | int | None) -> None:
    """Write the request; the receipts show it from here on."""
    tried(path, LABELS[do], lambda: control.ask(path, do, seen, **values))


def ask_typed(path: Path, do: str, seen: int, read: Callable[[str], dict[str, float | int | None]]) -> None:
    """The same with what was typed."""
    words = str(st.session_state.get(f"typed.{do}") or "").strip().lower()
    tried(path, LABELS[do], lambda: control.ask(path, do, seen, **read(words)))


def stop(path: Path) -> None:
    """A checkpoint and the end; told by the run's own records."""
    tried(path, "Stop", lambda: control.stop(path))


def resume(path: Path) -> None:
    """A new attempt; told by the run's own records."""
    tried(path, "Resume", lambda: control.resume(path))


def tried(path: Path, label: str, act: Callable[[], object]) -> None:
    """Do it; a refusal, of which no file knows, is kept for this tab."""
    st.session_state.pop("refusal", None)
    try:
        act()
    except (GradiometerError, OSError) as error:
        st.session_state["refusal"] = (str(path), label, time.time(), str(error))


def number(words: str) -> float:
    """What was typed as a number.

    Raises:
        RunError: it is none.
    """
    try:
        return float(words)
    except ValueError:
        raise RunError(f"{words[:40]!r} is no number.") from None


def whole(value: float) -> float | int:
    """Itself as an integer where it is one; the request's own check refuses the others."""
    return int(value) if value.is_integer() else value


# ---- what came of it ----------------------------------------------------------------------------------------------


def receipt(path: Path) -> None:
    """The latest requests with what became of them; and what was refused in this tab."""
    refusal = st.session_state.get("refusal")
    if refusal and refusal[0] == str(path) and time.time() - refusal[2] < REFUSAL_S:
        st.warning(text.markdown(f"{refusal[1]}, {text.ago(refusal[2])}: {refusal[3]}", 500))
    if data.is_sample(path):
        return
    found = asked(path, newest(path))[::-1]
    recent = [one for one in found if is_recent(one)][:3]
    captions([*launched(path), *map(words_of, recent)])
    if older := found[len(recent) :]:
        with st.expander(f"{len(older)} earlier {'request' if len(older) == 1 else 'requests'}"):
            captions([words_of(one) for one in older])


def captions(lines: list[str]) -> None:
    """Each on a line of its own; nothing for none."""
    if lines:
        st.caption("  \n".join(text.markdown(line, 500) for line in lines))


def words_of(one: Asked) -> str:
    """``✓ Pause asked 12 s ago (page on host, process 7), arrived at step 811, done at step 812: paused``."""
    receipt, request = one.receipt or {}, one.request
    if request is None:
        return f"{SIGNS[one.state]} Request {one.id}, which is none: {one.state}. {receipt.get('text', '')}"
    values = "".join(
        f" {'x' if name == 'factor' else ''}{'none' if value is None else f'{value:g}'}"
        for name, value in request.values.items()
    )
    line = f"{SIGNS[one.state]} {LABELS[request.do]}{values} asked for {text.ago(request.created)} ({request.by})"
    if one.state == "asked":
        return f"{line}, not arrived yet" if request.expires > time.time() else f"{line}; nobody took it in time"
    if isinstance(receipt.get("arrived_step"), int):
        line += f", arrived at step {text.count(receipt['arrived_step'])}"
    if one.state == "arrived":
        return f"{line}, being done"
    at = f" at step {text.count(receipt['step'])}" if isinstance(receipt.get("step"), int) else ""
    return f"{line}, {one.state}{at}: {receipt.get('text', '')}"


def launched(path: Path) -> list[str]:
    """Of a stop by a signal and of a resume, what the launcher's records tell."""
    records = intentions(path)
    lines = []
    if records.launched is not None and time.time() - records.launched < SHOWN_S and records.attempt:
        lines.append(f"Resume asked for {text.ago(records.launched)}: attempt {records.attempt}, {records.state}")
    if records.stop_asked is not None and time.time() - records.stop_asked < SHOWN_S:
        lines.append(f"Stop asked for {text.ago(records.stop_asked)}: {records.state}")
    return lines


def is_stopping(path: Path) -> bool:
    """Whether the training has been told to end, by whomever, and has not yet."""
    records = intentions(path)
    return records.stop_asked is not None and not records.ended


def is_recent(one: Asked) -> bool:
    """Whether it is worth a line of its own."""
    when = (one.receipt or {}).get("time") or (one.request.created if one.request else None)
    return isinstance(when, int | float) and time.time() - when < SHOWN_S


def newest(path: Path) -> int:
    """The attempt that requests go to."""
    return (attempt_numbers(path) or [0])[-1]


def number_of(path: Path, attempt: int) -> int:
    """How many requests there are, which is what this sight of the page has seen."""
    try:
        return next_number(path, attempt)
    except RunError:
        return 0
