"""How the app's server is started: where it listens, by which names it may be called, and with which token."""

from __future__ import annotations

import contextlib
import gc
import importlib
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

import psutil

from monitor.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
TOKEN_VARIABLE = "GRADIOMETER_TOKEN"
READ_ONLY_VARIABLE = "GRADIOMETER_READ_ONLY"
LEAST_TOKEN = 16
"""Characters of a token of one's own; ours have 43."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the server is started with."""

    address: str
    """To be opened; with the token where there is one."""
    options: tuple[str, ...]
    """Of ``streamlit run``."""
    environment: dict[str, str]


def plan(host: str, port: int, *, names: Sequence[str] = (), with_token: bool = True, read_only: bool = False) -> Plan:
    """How to listen on ``host``.

    Raises:
        ConfigError: no address or name of a host, or a token in the environment that keeps nobody out.
    """
    for name in (host, *names):
        if not _NAME.fullmatch(name) and not _is_address(name):
            raise ConfigError(f"{name!r} is no address and no name of a host; accepted: 127.0.0.1, 0.0.0.0, train.lan.")
    here = host in LOOPBACK
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given and len(given) < LEAST_TOKEN:
        raise ConfigError(f"{TOKEN_VARIABLE} has {len(given)} characters; at least {LEAST_TOKEN} keep anybody out.")
    token = given or ("" if here or not with_token else secrets.token_urlsafe(32))
    if not with_token:
        token = ""
    known = [*LOOPBACK[:2], *names] if here else [*LOOPBACK[:2], host, *names, *own_names()]
    options = ["--server.address", host, "--server.port", str(port)]
    for name in dict.fromkeys(known):
        options += ["--server.allowedHosts", name]
    shown = names[0] if names else socket.gethostname() if host in ("0.0.0.0", "::") else host
    if not here:
        options += ["--browser.serverAddress", shown]
    bracketed = f"[{shown}]" if ":" in shown else shown
    address = f"http://{bracketed}:{port}" + (f"/?token={quote(token)}" if token else "")
    environment = {TOKEN_VARIABLE: token, READ_ONLY_VARIABLE: "1" if read_only else ""}
    return Plan(address, tuple(options), environment)


@asynccontextmanager
async def lifespan(app: object) -> AsyncIterator[None]:
    """Of the app in its server, which listens already when this begins."""
    answer_at_once()
    yield


def make_ready() -> None:
    """Import what the pages need: not needed to listen, but a third of a second of a first page that waits for it.

    What is there by then stays for good. Streamlit looks for garbage among everything after each run of a script, and a
    page of a live run is one a second: 75 ms of it were spent on these modules.
    """
    importlib.import_module("app.views.sections")
    gc.freeze()


def answer_at_once() -> None:
    """Let the connections of every listening socket of this process send what they are given without waiting.

    Streamlit's socket names no protocol, so that asyncio leaves Nagle's algorithm on: the body of an answer then waits
    until its head is acknowledged, which the other side delays by 40 ms. Of a page's scripts there are a hundred.
    """
    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.Process().net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN:
                with socket.fromfd(one.fd, one.family, one.type) as listening:  # what it accepts has its options
                    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def own_names() -> list[str]:
    """The names and addresses that this machine is reached by, as far as it knows."""
    addresses = [
        one.address.partition("%")[0]
        for interface in psutil.net_if_addrs().values()
        for one in interface
        if one.family in (socket.AF_INET, socket.AF_INET6)
    ]
    return [name for name in (socket.gethostname(), *addresses) if name]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
