"""Runs: every run of the runs folders, newest first, with its health, its state and its loss at a glance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app import control, curate, data, text
from app.compare import MOST_RUNS
from app.data import Listed
from app.run_table import run_table
from app.views import run_rows
from app.views.common import bullets, refused
from app.views.run_rows import Seen
from monitor.errors import GradiometerError
from monitor.runfile import search
from monitor.runfile.meta import MAX_NAME, MAX_NOTES, MAX_TAG
from trainer.config import TrainConfig

# Comments, not strings beneath: this file is run as a script, and Streamlit may print a bare string into the page.
# The newest, when the search or the order asks for health; each costs a moment of a background process (our judgement).
ROWS_DIAGNOSED = 400
ROWS_SHOWN = 100  # rows on a page; only theirs are diagnosed and have a curve (our judgement)
TAGS_OFFERED = 200


def page() -> None:
    """The list, the search and the button that starts a training."""
    if run_id := st.session_state.pop("run_to_open", None):
        st.switch_page("views/run.py", query_params={"run": run_id})
    st.session_state.pop("started", None)  # the list is seen again: another click means another training
    title, actions = st.columns([3, 2], vertical_alignment="bottom")
    title.title("Runs")
    with actions.container(horizontal=True, horizontal_alignment="right"):
        start_button()
    own = [folder for folder in data.folders() if not folder.sample]
    with st.container(horizontal=True, vertical_alignment="center"):
        words = st.text_input(
            "Search",
            placeholder="words, or state:crashed  loss<2.5  lr>=1e-3  tag:baseline  health:critical  -word",
            key="search",
            bind="query-params",
            on_change=first_page,
            label_visibility="collapsed",
            icon=":material/search:",
        )
        with st.popover("How to search", type="tertiary"):
            st.code(f"{search.__doc__}\nhere also: health:critical, -sample", language=None, wrap_lines=True)
        st.toggle(
            "Differing configuration",
            key="differ",
            bind="query-params",
            help="A column for each entry of the configuration that is not the same in all runs found.",
        )
    st.fragment(table)(words or "")
    st.caption(
        "Read from "
        + ", ".join(text.markdown(folder.path) for folder in own)
        + ", and the sample runs of the repository."
    )


def first_page() -> None:
    """Another search or order begins at its first run."""
    st.session_state["page"] = 1


def start_button() -> None:
    """One click: the default training, then its page."""
    if refusal := st.session_state.pop("start_refused", None):
        refused(refusal, "gradiometer train")
    reason = control.read_only_reason()
    st.button(
        "Start a real training",
        type="primary",
        disabled=reason is not None,
        help=reason and text.markdown(reason),
        on_click=start,
        key="start_default",
    )


def start() -> None:
    """Start the default training. A second click that comes before the page has turned opens the same one."""
    try:
        started = st.session_state.get("started") or control.start(TrainConfig())
    except (GradiometerError, OSError) as error:
        st.session_state["start_refused"] = str(error)
        return
    st.session_state["started"] = st.session_state["run_to_open"] = started


def table(words: str) -> None:
    """The rows that the search leaves, a page of them; asked for again by the table itself when something changed."""
    version = data.list_version()
    listed = data.listed_runs()
    above = st.container()  # always there, so that what comes and goes in it moves nothing below
    rows = in_words(words, listed, above)
    sort = st.query_params.get("sort", "")
    sort = sort if run_rows.is_order(sort) else ""
    if sort:
        seen = seen_of_newest(rows) if sort.removeprefix("-") in run_rows.FROM_DIAGNOSIS else {}
        rows = run_rows.ordered(rows, sort, seen)
    with above:
        undo_bar()
        if rows:
            actions_bar(listed)
    shown = rows_of_page(rows) if rows else []
    seen = data.overviews(row.summary for row in shown)
    config, more = run_rows.config_columns(rows, shown) if st.session_state.get("differ") else ([], 0)
    run_table(
        [run_rows.cells(row, seen, config) for row in shown],
        columns([key for key, _ in config]),
        key="runs_table",
        version=version,
        pending=any(one.spark.pending or one.report.pending for one in seen.values()),
        ticked=st.session_state.get("runs_ticked", []),
        ticked_given=st.session_state.get("ticked_given", 0),
        sort=sort,
        on_ticked_change=keep_ticked,
        on_sort_change=keep_sort,
    )
    if st.session_state.get("differ") and rows:
        differing_caption(len(config), more, len(rows))


def in_words(words: str, listed: list[Listed], place: Any) -> list[Listed]:
    """The rows that the search leaves; why there are none is said in ``place``."""
    with place:
        if not any(not row.sample for row in listed):
            first_steps(bool(listed))
        bullets(data.LISTING.notes())
        try:
            query = search.parse(words, more=("health",))
        except search.QueryError as refusal:
            st.warning(text.markdown(refusal, 1000))
            return []
        rows = found(listed, query)
        if listed and not rows:
            st.info(nothing_found(words, query, listed))
        return rows


def columns(config: Sequence[str]) -> list[dict[str, Any]]:
    """What the table shows, and whether it can be sorted by it."""
    shown = [
        {
            "id": key,
            "title": title,
            "number": key in run_rows.NUMBERS,
            "sortable": key not in ("curve", "tags", "notes"),
            "later": key in run_rows.LATER,
        }
        for key, title in run_rows.TITLES.items()
    ]
    own = [
        {"id": run_rows.CONFIG + key, "title": text.plain(key, 60), "number": False, "sortable": True, "later": False}
        for key in config
    ]
    # Beside the results that they explain.
    return [*shown[:8], *own, *shown[8:]]


def differing_caption(shown: int, more: int, rows: int) -> None:
    """What the configuration columns leave out."""
    if not shown:
        st.caption(
            "The configurations of these runs do not differ." if rows > 1 else "One run has nothing to differ from."
        )
    elif more:
        st.caption(f"{more} more entries differ; tick runs and compare them to see all.")


# ---- what the table reports ----------------------------------------------------------------------------------------


def keep_ticked() -> None:
    """Remember the ticked runs by id."""
    if ticked := st.session_state["runs_table"].get("ticked"):
        st.session_state["runs_ticked"] = list(ticked["ids"])


def keep_sort() -> None:
    """Write the order into the address."""
    if sort := st.session_state["runs_table"].get("sort"):
        st.query_params["sort"] = str(sort)
    elif "sort" in st.query_params:
        del st.query_params["sort"]
    first_page()


def untick() -> None:
    """Take all ticks off, also in the browser."""
    st.session_state["runs_ticked"] = []
    st.session_state["ticked_given"] = st.session_state.get("ticked_given", 0) + 1


# ---- actions on the ticked runs ------------------------------------------------------------------------------------


def actions_bar(listed: list[Listed]) -> None:
    """Compare, tag, describe, delete: for the ticked runs, wherever in the list they are."""
    by_id = {row.summary.id: row for row in listed}
    ticked = [by_id[run_id] for run_id in st.session_state.get("runs_ticked", []) if run_id in by_id]
    paths = [row.summary.path for row in ticked]
    reasons = list(dict.fromkeys(filter(None, map(curate.refusal, paths))))
    open_to = [row for row in ticked if curate.refusal(row.summary.path) is None]
    why = text.markdown(reasons[0]) if reasons else "Tick runs at the left edge of the table."
    with st.container(horizontal=True, vertical_alignment="center"):
        # A link and not a button with switch_page: a link ends this fragment's own reruns at once. One that came while
        # the other page was being made would empty that.
        st.page_link(
            "views/compare.py",
            label=f"Compare {len(ticked)} runs" if len(ticked) > 1 else "Compare",
            icon=":material/stacked_line_chart:",
            disabled=not 2 <= len(ticked) <= MOST_RUNS,
            help=f"Tick 2 to {MOST_RUNS} runs at the left edge of the table.",
            query_params={"run": [row.summary.id for row in ticked]},
        )
        with st.popover("Tag", icon=":material/label:", disabled=not open_to, help=None if open_to else why):
            tag_form(open_to, listed)
        with st.popover(
            "Edit",
            icon=":material/edit:",
            disabled=len(open_to) != 1,
            help=None if len(open_to) == 1 else "Tick one run.",
        ):
            if len(open_to) == 1:
                edit_form(open_to[0])
        st.button(
            f"Delete {len(open_to)}" if len(open_to) > 1 else "Delete",
            icon=":material/delete:",
            disabled=not open_to,
            help="To the trash; it can be undone." if open_to else why,
            on_click=throw_away,
            args=([row.summary.path for row in open_to],),
            key="delete_runs",
        )
        if ticked:
            st.button("Untick all", type="tertiary", on_click=untick, key="untick")
            st.caption(text.markdown(", ".join(row.summary.name or row.summary.id for row in ticked), 300))


def tag_form(rows: list[Listed], listed: list[Listed]) -> None:
    """Tags to put on and to take off."""
    known = list(dict.fromkeys(tag for row in listed for tag in row.summary.tags))[:TAGS_OFFERED]
    has = list(dict.fromkeys(tag for row in rows for tag in row.summary.tags))
    with st.form("tag_form", border=False, clear_on_submit=True):
        st.multiselect(
            "Put on",
            known,
            accept_new_options=True,
            key="tags_on",
            placeholder="Choose or type a tag",
            help=f"At most {MAX_TAG} characters each.",
        )
        st.multiselect("Take off", has, key="tags_off", placeholder="Choose tags", disabled=not has)
        label = f"Tag {len(rows)} {'run' if len(rows) == 1 else 'runs'}"
        st.form_submit_button(label, on_click=put_tags, args=([row.summary.path for row in rows],))


def put_tags(paths: list[Path]) -> None:
    """Do what the form of tags says."""
    own = st.session_state
    said("tagged", curate.tag(paths, own.get("tags_on") or [], own.get("tags_off") or []))


def edit_form(row: Listed) -> None:
    """Display name, tags and notes of one run."""
    summary = row.summary
    with st.form(f"edit_{summary.id}", border=False):
        name, tags, notes = (f"edit_{what}_{summary.id}" for what in ("name", "tags", "notes"))
        help_name = "Empty: the name that it was started with."
        st.text_input("Name", summary.name, max_chars=MAX_NAME, key=name, help=help_name)
        st.multiselect(
            "Tags",
            list(summary.tags),
            list(summary.tags),
            key=tags,
            accept_new_options=True,
            placeholder="Type a tag",
        )
        st.text_area("Notes", summary.notes or "", max_chars=MAX_NOTES, key=notes)
        st.form_submit_button("Save", on_click=save, args=(summary.path, name, tags, notes))


def save(path: Path, name: str, tags: str, notes: str) -> None:
    """Write what the form of one run says."""
    own = st.session_state
    said("saved", curate.describe(path, name=own[name] or "", tags=own[tags] or [], notes=own[notes] or ""))


def said(word: str, result: curate.Done, undo: tuple[Path, ...] = ()) -> None:
    """Keep what came of a request for the next look at the list."""
    count = f"{len(result.paths)} {'run' if len(result.paths) == 1 else 'runs'}"
    st.session_state["runs_said"] = (f"{count} {word}." if result.paths else "", result.refused, undo)


def throw_away(paths: list[Path]) -> None:
    """Move the ticked runs into the trash."""
    result = curate.throw_away(paths)
    said("moved to the trash", result, result.paths)
    untick()


def take_back(paths: list[Path]) -> None:
    """Undo a deletion."""
    said("taken back", curate.take_back(paths))


def undo_bar() -> None:
    """What came of the last action, and the way back."""
    words, refusals, paths = st.session_state.get("runs_said", ("", (), ()))
    if refusals:
        st.warning("\n".join(f"- {text.markdown(reason, 400)}" for reason in refusals[:5]))
    if not words and not refusals:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        if words:
            st.markdown(words, width="content")
        if paths:
            st.button("Undo", on_click=take_back, args=(list(paths),), key="undo_delete", icon=":material/undo:")
            st.caption("Until it is deleted for good with `gradiometer delete`.")
        st.button("Dismiss", type="tertiary", on_click=st.session_state.pop, args=("runs_said", None), key="said_seen")


# ---- what is found ------------------------------------------------------------------------------------------------


def found(listed: list[Listed], query: search.Query) -> list[Listed]:
    """The rows that the query leaves. Health is known of the newest only."""
    seen = seen_of_newest(listed) if query.asks_for("health") else {}

    def more(row: Listed) -> dict[str, str]:
        own = {"words": "sample"} if row.sample else {}
        return own | {"health": run_rows.health_of(row, seen).replace(" ", "-")} if seen else own

    return query.select(listed, time.time(), data.LISTING.config_of, lambda row: row.summary, more)


def seen_of_newest(rows: list[Listed]) -> Seen:
    """What is known of the newest of ``rows``."""
    return data.overviews(row.summary for row in rows[:ROWS_DIAGNOSED])


def nothing_found(words: str, query: search.Query, listed: list[Listed]) -> str:
    """Why the list is empty though there are runs."""
    said = f"No run matches {text.markdown(repr(words))}."
    unknown = query.unknown_keys((row.summary for row in listed), data.LISTING.config_of)
    if unknown:
        said += f" No configuration here has {', '.join(text.markdown(key) for key in unknown)}."
    if query.asks_for("health"):
        known = data.overviews(row.summary for row in listed[:ROWS_DIAGNOSED]).values()
        waiting = sum(one.report.value is None and one.report.error is None for one in known)
        said += f" {text.count(waiting)} runs are still being diagnosed." if waiting else ""
        said += f" Only the newest {ROWS_DIAGNOSED} are diagnosed." if len(listed) > ROWS_DIAGNOSED else ""
    return f"{said} {text.count(len(listed))} runs are there; clear the search to see them."


def rows_of_page(rows: list[Listed]) -> list[Listed]:
    """The rows of the page that the address names; one page has no numbers."""
    pages = -(-len(rows) // ROWS_SHOWN)
    if pages == 1:
        return rows
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        said = st.empty()
        number = min(st.pagination(pages, key="page", bind="query-params"), pages)
    first = (number - 1) * ROWS_SHOWN
    shown = rows[first : first + ROWS_SHOWN]
    said.caption(f"{text.count(first + 1)} to {text.count(first + len(shown))} of {text.count(len(rows))} runs shown")
    return shown


def first_steps(samples: bool) -> None:
    """What to do when there is no run of one's own yet."""
    with st.container(border=True):
        st.markdown("**No runs of your own yet.** Start one here with the button above, or in a terminal:")
        st.code("gradiometer train", language=None)
        st.markdown("or attach the monitor to a training loop that you have, and open this page where it runs:")
        st.code(
            'mon = monitor.attach(model, optimizer, run="runs")    # then, in the loop: mon.step(loss=loss)',
            language="python",
        )
        if samples:
            st.caption(
                "Below are runs that came with the repository: healthy ones and some that were broken on purpose."
            )


page()
