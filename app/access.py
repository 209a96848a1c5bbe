"""Who may see the page, and whether it may act.

On this machine alone (the default): everybody here, and it acts. Beyond it: with a token only those who have it, and it
acts; without one everybody, and it only shows. ``--read-only`` only shows, wherever it listens.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import os
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote, urlencode

import streamlit as st
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.serve import LEAST_TOKEN, LOOPBACK, READ_ONLY_VARIABLE, TOKEN_VARIABLE

REFUSED = (
    "This page needs a token. Open it once with the address that `gradiometer app` printed when it was started, which "
    "ends in ?token=..."
)


def token() -> str | None:
    """What the visitor has to have; None: nothing.

    One that is too short to keep anybody out is none: then a server beyond this machine is read-only.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    return given if len(given) >= LEAST_TOKEN else None


def read_only_reason(option: Callable[[str], object] = st.get_option) -> str | None:
    """Why this page only shows; None when it may act."""
    if os.environ.get(READ_ONLY_VARIABLE) == "1":
        return "Read-only: the app was started with --read-only."
    address = option("server.address")
    if address in LOOPBACK or token() is not None:
        return None
    where = f"on {address}" if address else "on every interface"
    return (
        f"Read-only: the server listens {where} and asks nobody for a token. To start and stop trainings, start it by "
        "gradiometer app --host, which makes a token, or with --server.address 127.0.0.1."
    )


class TokenGate:
    """Lets nobody in without the token: ``?token=`` once, a cookie from then on. Without a token it is open.

    The cookie holds a digest of the token. It is set by a page that goes on by itself instead of a redirect: after a
    redirect from a link in another site a browser would not send a SameSite=Strict cookie.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = token()
        if scope["type"] not in ("http", "websocket") or wanted is None:
            await self.app(scope, receive, send)
            return
        name, value = _cookie(wanted)
        if _has_cookie(Headers(scope=scope).getlist("cookie"), name, value):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await receive()  # its connect; closed before it is accepted it is a 403
            await send({"type": "websocket.close", "code": 1008})
            return
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [text for key, text in query if key == "token"]
        if scope["method"] == "GET" and given and _same(given[0], wanted):
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            # One slash in front: //host would be another machine.
            address = "/" + quote(scope["path"].lstrip("/\\")) + (f"?{rest}" if rest else "")
            page = f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(address)}">'
            answer = HTMLResponse(page, headers={"Cache-Control": "no-store"})
            secure = scope["scheme"] == "https"
            answer.set_cookie(name, value, path="/", httponly=True, samesite="strict", secure=secure)
            await answer(scope, receive, send)
            return
        await PlainTextResponse(REFUSED, status_code=401, headers={"Cache-Control": "no-store"})(scope, receive, send)


def _cookie(wanted: str) -> tuple[str, str]:
    """Name and value. Cookies do not know ports: another app on this machine has another name."""
    digest = hmac.new(wanted.encode(), b"gradiometer", hashlib.sha256).hexdigest()
    return f"gradiometer-{digest[:8]}", digest[8:]


def _has_cookie(headers: list[str], name: str, value: str) -> bool:
    for header in headers:
        try:
            found = SimpleCookie(header).get(name)
        except CookieError:
            continue
        if found is not None and _same(found.value, value):
            return True
    return False


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())
