"""The read-only routes that the live charts pull from, and what guards every HTTP answer of the server."""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import csv_export, frame
from app.access import TokenGate
from app.charts.compare import Entry, compare_charts
from app.charts.describe import Chart, Mark
from app.charts.layers import layer_charts
from app.charts.look import look_of, looked_at
from app.charts.metric_search import checked_pattern
from app.charts.ranks import rank_charts
from app.charts.story import (
    checkpoint_charts,
    landscape_charts,
    recorder_charts,
    speed_charts,
    story_charts,
    story_marks,
    system_charts,
)
from app.compare import Comparison, comparing
from app.data import DIAGNOSES, READERS, find_run, incidents_of, list_version
from app.facts import LIVE_WORDS
from app.serve import LOOPBACK
from app.tidy import TIDY
from monitor.errors import RunError
from monitor.runfile.reader import Run

PLOTLY_JS = Path(__file__).parent / "vendor" / "plotly-cartesian.min.js"
MOST_BUCKETS = 2_000
"""A window of more pixel columns than this is refused down to it; no screen has more."""
VIEWS = ("story", "layers", "landscape", "speed", "system", "ranks", "checkpoints", "recorder", "compare")
WITH_CHARTS = ("/run", "/compare")
"""Ends of the addresses of pages that show charts at once: plotly.js is fetched beside the page's own scripts."""
CHECKPOINT_MARKS = {"checkpoint", "checkpoint_failed", "resume", "rewind", "crash", "incident"}


# ---- routes -------------------------------------------------------------------------------------------------------


def get_frame(request: Request) -> Response:
    """A window of the charts of one view of one run; 204 when the browser has it already.

    Query: ``run``; ``view`` one of ``VIEWS``; ``px`` pixel columns; ``x0``, ``x1`` the zoomed range; ``have``
    ``id:version`` pairs; ``want`` ids in sight, or ``screen``, the pixels that there are; ``stat``, ``layer`` and
    ``at`` of the heatmap; ``axis``, ``smooth``, ``metrics``, ``attempt`` and ``pins`` of the story. For compare
    ``run`` stands several times, and there are ``axis``, ``smooth``, ``metrics`` and ``log``.
    """
    query = request.query_params
    try:
        window = _window(query)
        if query.get("view") == "compare":
            message = answer_of_several(query.getlist("run"), query, window)
        else:
            message = answer(find_run(query.get("run", "")), query, window)
    except ValueError as error:
        return JSONResponse({"error": str(error)}, status_code=400)
    except RunError as error:
        return JSONResponse({"error": str(error)}, status_code=404)
    headers = {"Cache-Control": "no-store"}
    if message is None:
        return Response(status_code=204, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        # Not by the server, which takes twice as long for the same size and answers nothing else meanwhile.
        message = gzip.compress(message, compresslevel=1)
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(message, media_type="application/octet-stream", headers=headers)


def get_runs(request: Request) -> Response:
    """The version of the list of runs; 204 when it is still ``have``."""
    version, headers = list_version(), {"Cache-Control": "no-store"}
    if request.query_params.get("have") == version:
        return Response(status_code=204, headers=headers)
    return JSONResponse({"version": version}, headers=headers)


def get_csv(request: Request) -> Response:
    """Every value of one chart in a window, as a file; the query is that of ``/api/frame`` with the id as ``chart``."""
    query = request.query_params
    try:
        window, chart = _window(query), query.get("chart", "")
        if query.get("view") == "compare":
            with comparing(query.getlist("run")) as compared:
                name, table = "compare", csv_export.table_of(_compared(compared, query), chart, window)
        else:
            path = find_run(query.get("run", ""))
            with READERS.reading(path) as run:
                name, table = path.name, csv_export.table_of(_view(run, path, query)[0], chart, window)
    except ValueError as error:
        return JSONResponse({"error": str(error)}, status_code=400)
    except RunError as error:
        return JSONResponse({"error": str(error)}, status_code=404)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name}-{table.title}")[:120]
    headers = {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{name}.csv"'}
    return StreamingResponse(csv_export.lines(table), media_type="text/csv; charset=utf-8", headers=headers)


def answer(path: Path, query: Mapping[str, str], window: frame.Window) -> bytes | None:
    """The message of ``frame.build`` for the run at ``path``."""
    with READERS.reading(path) as run:
        TIDY.consider(run)
        charts, marks = _view(run, path, query)
        return frame.build(
            charts,
            window,
            marks=marks,
            axis=next((chart.axis for chart in charts if chart.axis), None),
            have=_have(query.get("have", "")),
            want=_want(query.get("want")),
            screen=_number(query, "screen") or math.inf,
            status=_status(run),
        )


def answer_of_several(ids: Sequence[str], query: Mapping[str, str], window: frame.Window) -> bytes | None:
    """The message of ``frame.build`` for the runs called ``ids`` over each other, without those that cannot be read.

    Raises:
        RunError: none of them can be read.
    """
    with comparing(ids) as compared:
        charts = _compared(compared, query)
        states = [_status(entry.run) for entry in compared.entries]
        status = {
            "word": "several",
            "live": any(state["live"] for state in states),
            "last_step": max((entry.run.last_step or 0 for entry in compared.entries), default=None),
            "news": frame.word_of([compared.pending, *map(_news, compared.entries, states)]),
        }
        have, want = _have(query.get("have", "")), _want(query.get("want"))
        screen = _number(query, "screen") or math.inf
        return frame.build(charts, window, have=have, want=want, screen=screen, status=status)


def _news(entry: Entry, state: Mapping[str, object]) -> list[object]:
    """What changes when the table of results does beside its numbers, which the status tells of by ``last_step``."""
    return [entry.run.id, state["word"], [(mark.step, mark.severity) for mark in entry.marks]]


def _compared(compared: Comparison, query: Mapping[str, str]) -> list[Chart]:
    if not compared.entries:
        raise RunError(next(iter(compared.refused.values()), "No run was named; accepted: run=ID&run=ID"))
    look = look_of(query)
    return compare_charts(
        compared.entries,
        axis=look.axis,
        smoothing=look.smoothing,
        pattern=look.pattern,
        log=query.get("log") == "1",
    )


def _view(run: Run, path: Path, query: Mapping[str, str]) -> tuple[list[Chart], list[Mark]]:
    view = query.get("view", "story")
    if view == "system":
        return system_charts(run, int(_number(query, "rank") or 0)), []
    if view == "ranks":
        return rank_charts(run), []
    marks = story_marks(run, incidents_of(DIAGNOSES.of(path, run.version)))
    if view == "landscape":
        return landscape_charts(run), marks
    if view == "recorder":
        return recorder_charts(run), marks
    if view == "speed":
        return speed_charts(run), marks
    if view == "checkpoints":
        return checkpoint_charts(run), [mark for mark in marks if mark.kind in CHECKPOINT_MARKS]
    if view == "layers":
        return layer_charts(run, stretch_of(query.get("at")), query.get("layer")), marks
    if view == "story":
        charts = story(run, query)
        return charts if marks else [chart for chart in charts if chart.kind != "events"], marks
    raise ValueError(f"unknown view {view!r}; accepted: {', '.join(VIEWS)}")


def story(run: Run, query: Mapping[str, str]) -> list[Chart]:
    """The charts of the story as an address asks for them.

    Raises:
        ValueError: as ``look_of``.
    """
    look = look_of(query)
    own = checked_pattern(look.pattern).search if look.pattern else None
    charts = story_charts(
        run,
        stat=query.get("stat"),
        layer=query.get("layer"),
        at=stretch_of(query.get("at")),
        attempt=look.attempt if look.attempt in {known.number for known in run.attempts} else None,
        own=own,
    )
    return looked_at(charts, run, look)


_STRETCH = re.compile(r"(\d{1,15})(?:-(\d{1,15}))?", re.ASCII)


def stretch_of(text: str | None) -> tuple[int, int] | None:
    """``400-420``, or one step, as first and last step; None for nothing.

    Raises:
        ValueError: it is neither.
    """
    if not text:
        return None
    found = _STRETCH.fullmatch(text)
    if found is None:
        raise ValueError(f"at is {text[:40]!r}; a step, or two with a hyphen between, is accepted")
    first = int(found[1])
    return first, max(first, int(found[2] or first))


def _status(run: Run) -> dict[str, object]:
    state = run.state
    return {"word": state.word, "live": state.word in LIVE_WORDS, "last_step": run.last_step}


def _window(query: Mapping[str, str]) -> frame.Window:
    given = _number(query, "px")
    buckets = 500 if given is None else int(given)
    if not 1 <= buckets <= MOST_BUCKETS:
        raise ValueError(f"px is {buckets}; accepted: 1 to {MOST_BUCKETS}")
    start, stop = _number(query, "x0"), _number(query, "x1")
    if start is not None and stop is not None and start > stop:
        raise ValueError(f"x0 is {start:g}, beyond x1, which is {stop:g}")
    return frame.Window(buckets, start, stop)


def _number(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 2**53:
        raise ValueError(f"{name} is {text[:40]!r}; a number is accepted")
    return value


_HAVE = re.compile(r"([a-z0-9_.-]{1,300}):([0-9a-f]{16})")


def _have(text: str) -> dict[str, str]:
    return {match[1]: match[2] for match in _HAVE.finditer(text)}


def _want(text: str | None) -> set[str] | None:
    return None if text is None else set(text.split(","))


@cache
def plotly_version() -> str:
    """A word that changes with the script, so that the browser may keep it for good."""
    return hashlib.blake2b(PLOTLY_JS.read_bytes(), digest_size=6).hexdigest()


def get_plotly(request: Request) -> Response:
    """plotly.js as it lies beside the app: nothing is fetched from another machine."""
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return FileResponse(PLOTLY_JS, media_type="text/javascript", headers=headers)
    return Response(_packed_plotly(), media_type="text/javascript", headers={**headers, "Content-Encoding": "gzip"})


@cache
def _packed_plotly() -> bytes:
    """Packed once, and in a thread: the server would do it again each time and answer nothing else meanwhile."""
    return gzip.compress(PLOTLY_JS.read_bytes(), compresslevel=6)


def get_health(request: Request) -> Response:
    """That our routes are there, and the server's clock."""
    return JSONResponse({"status": "ok", "time": time.time()}, headers={"Cache-Control": "no-store"})


routes = [
    Route("/api/frame", get_frame, methods=["GET"]),
    Route("/api/runs", get_runs, methods=["GET"]),
    Route("/api/csv", get_csv, methods=["GET"]),
    Route("/api/health", get_health, methods=["GET"]),
    Route("/assets/plotly.min.js", get_plotly, methods=["GET"]),
]


# ---- guards -------------------------------------------------------------------------------------------------------

POLICY = "; ".join(
    (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:",
        "connect-src 'self' {sockets} data: blob:",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Streamlit needs inline styles, eval (WebAssembly, Vega) and blobs. What it does not need, this forbids: a picture, a
font or a connection from any other machine, whoever wrote the markdown that asks for it, and being shown in a frame."""

_PLAIN_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d{1,5})?|\[[0-9a-fA-F:]+\](:\d{1,5})?")


class SafeHeaders:
    """Adds the content policy and its relatives to every HTTP answer, and to a page what its charts will need."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        sockets = f"ws://{host} wss://{host}" if _PLAIN_HOST.fullmatch(host) else ""
        policy = POLICY.format(sockets=sockets)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = policy
                headers["X-Frame-Options"] = "DENY"
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                if scope["path"].endswith(WITH_CHARTS) and headers.get("content-type", "").startswith("text/html"):
                    base = scope["path"].rpartition("/")[0]
                    script = f"{base}/assets/plotly.min.js?v={plotly_version()}"
                    headers["Link"] = f"<{script}>; rel=preload; as=script"
            await send(message)

        await self.app(scope, receive, send_with_headers)


def allowed_hosts(option: Callable[[str], object] = st.get_option) -> list[str]:
    """Host names that requests may carry: the server's ``allowedHosts``, or loopback when none are set."""
    configured = option("server.allowedHosts")
    names = [str(name) for name in configured] if isinstance(configured, list | tuple) else []
    names = [name for name in names if "*" not in name[1:]]
    return [*names, "[::1]"] if names else [*LOOPBACK, "[::1]"]


middleware = [
    Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(), www_redirect=False),
    Middleware(SafeHeaders),
    Middleware(TokenGate),
]


def on_script_error(error: Exception) -> bool:
    """Our words instead of a traceback on the page; the traceback is in the terminal."""
    st.error("This page met an error of its own and stopped here. The details are in the terminal that runs the app.")
    st.text(f"{type(error).__name__}: {str(error)[:500]}")
    return True
