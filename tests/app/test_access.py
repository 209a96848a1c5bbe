"""The token gate and the read-only rule, on a real server; how it is started; and no shell anywhere."""

from __future__ import annotations

import ast
import asyncio
import base64
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection

import pytest

from app import access, serve
from monitor.errors import ConfigError
from tests.app.conftest import ROOT, Ask

TOKEN = "a-token-that-is-long-enough-&-odd"


def option(address: object) -> Callable[[str], object]:
    return lambda name: {"server.address": address}[name]


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "192.0.2.1", None, ""])
@pytest.mark.parametrize("token", [None, TOKEN, "short"])
@pytest.mark.parametrize("flag", ["", "1"])
def test_a_page_acts_on_loopback_or_behind_a_token(
    monkeypatch: pytest.MonkeyPatch, address: str | None, token: str | None, flag: str
) -> None:
    monkeypatch.setenv(serve.READ_ONLY_VARIABLE, flag)
    if token is None:
        monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(serve.TOKEN_VARIABLE, token)
    may = flag != "1" and (address in ("127.0.0.1", "localhost", "::1") or token == TOKEN)
    assert (access.read_only_reason(option(address)) is None) == may


@pytest.mark.parametrize("host", ["x y", "-x", "--help", "a;b", "", "http://a", "[::1]", "a" * 300])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="no address and no name"):
        serve.plan(host, 8501)


def test_beyond_this_machine_there_is_a_token_each_time_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    plans = [serve.plan("0.0.0.0", 8501, names=["train.lan"]) for _ in range(2)]
    tokens = [plan.environment[serve.TOKEN_VARIABLE] for plan in plans]
    assert tokens[0] != tokens[1] and min(map(len, tokens)) >= 40
    assert plans[0].address == f"http://train.lan:8501/?token={tokens[0]}"
    assert tokens[0] not in " ".join(plans[0].options), "a command line is seen by everybody on the machine"
    assert {"train.lan", "localhost", socket.gethostname()} <= set(plans[0].options)


def test_here_there_is_none_and_one_of_your_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    assert serve.plan("127.0.0.1", 8501).address == "http://127.0.0.1:8501"
    assert serve.plan("0.0.0.0", 8501, with_token=False).environment[serve.TOKEN_VARIABLE] == ""
    monkeypatch.setenv(serve.TOKEN_VARIABLE, TOKEN)
    assert serve.plan("0.0.0.0", 8501).environment[serve.TOKEN_VARIABLE] == TOKEN
    assert serve.plan("127.0.0.1", 8501).environment[serve.TOKEN_VARIABLE] == TOKEN
    monkeypatch.setenv(serve.TOKEN_VARIABLE, "short")
    with pytest.raises(ConfigError, match="at least 16"):
        serve.plan("0.0.0.0", 8501)


def test_the_gate_on_the_routes(http: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    assert http("/api/health").status == 200, "open without a token"
    monkeypatch.setenv(serve.TOKEN_VARIABLE, TOKEN)
    wrong = ("", "?token=", "?token=wrong", f"?token={TOKEN[:-1]}")
    for path in ("/assets/plotly.min.js", "/api/frame?run=x", *(f"/api/health{query}" for query in wrong)):
        answer = http(path)
        assert answer.status == 401 and "set-cookie" not in answer.headers, path
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    given = TOKEN.replace("&", "%26")
    opened = http(f"/run?run=a&token={given}&x=%22%3E%3Cscript%3E")
    assert opened.status == 200 and TOKEN not in opened.body.decode() and "<script" not in opened.body.decode()
    assert b"url=/run?run=a&amp;x=" in opened.body
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert b"url=/elsewhere.example" in http(f"//elsewhere.example?token={given}").body, "no other machine"
    assert http(f"/api/health?token={given}", method="POST").status == 401


# ---- a real server ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beyond(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """`gradiometer app --host 0.0.0.0`: its port and what it printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("beyond")
    log = folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADIOMETER_T")}
    command = [sys.executable, "-m", "app", "app", "--host", "0.0.0.0", "--port", str(port), "--no-browser",
               "--runs", str(folder / "runs")]  # fmt: skip
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    child = None
    try:
        child = until_listening(server, port)
        yield port, log.read_text()
    finally:
        server.terminate()
        if child is not None:
            child.terminate()
        server.wait(timeout=30)


def until_listening(server: subprocess.Popen[bytes], port: int):
    import time

    import psutil

    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert server.poll() is None, "the app ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                (child,) = psutil.Process(server.pid).children()
                return child
        time.sleep(0.1)
    raise AssertionError("the app did not come up")


def ask_server(port: int, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def shake_hands(port: int, **headers: str) -> int:
    """The status that a websocket's handshake with Streamlit gets."""
    key = base64.b64encode(os.urandom(16)).decode()
    own = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13",
           "Origin": f"http://127.0.0.1:{port}", **headers}  # fmt: skip
    return ask_server(port, "/_stcore/stream", **own)[0]


def test_a_server_beyond_this_machine_lets_in_who_has_the_token(beyond: tuple[int, str]) -> None:
    port, printed = beyond
    (token,) = re.findall(r"\?token=([\w-]{40,})", printed)
    for path in ("/", "/run", "/_stcore/health", "/_stcore/host-config", "/_stcore/metrics", "/api/frame?run=a"):
        assert ask_server(port, path)[0] == 401, path
    assert shake_hands(port) == 403
    status, headers = ask_server(port, f"/?token={token}")
    assert status == 200
    cookie = headers["set-cookie"].partition(";")[0]
    assert ask_server(port, "/", Cookie=cookie)[0] == 200
    assert ask_server(port, "/_stcore/health", Cookie=cookie)[0] == 200
    assert shake_hands(port, Cookie=cookie) == 101
    assert shake_hands(port, Cookie=cookie, Host="elsewhere.example", Origin="http://elsewhere.example") in (400, 403)
    assert ask_server(port, "/", Cookie=cookie, Host="elsewhere.example")[0] == 400
    assert ask_server(port, "/", Cookie=cookie[:-1] + ("0" if cookie[-1] != "0" else "1"))[0] == 401


# ---- no shell, no pickle ------------------------------------------------------------------------------------------

SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"}


def test_no_shell_and_nothing_unpickled() -> None:
    sources = [path for room in ("app", "monitor", "trainer", "sample_runs") for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 200
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                harmless(node, f"{path}:{node.lineno}")


def harmless(call: ast.Call, where: str) -> None:
    """Neither a shell nor an unpickling: ``shell=``, ``os.system``, ``pickle.load``, ``torch.load`` of anything."""
    function, of = call.func, ""
    name = getattr(function, "id", "")
    if isinstance(function, ast.Attribute):
        name, of = function.attr, getattr(function.value, "id", "")
    given = {word.arg: word.value for word in call.keywords}
    assert "shell" not in given, where
    assert not (of in ("os", "subprocess", "asyncio") and name in SHELLS), where
    assert not (of in ("pickle", "joblib", "dill") and name in ("load", "loads", "Unpickler")), where
    if (of, name) == ("torch", "load"):
        only = given.get("weights_only")
        assert isinstance(only, ast.Constant) and only.value is True, where


@pytest.mark.parametrize(
    "line", ["subprocess.run(x, shell=True)", "os.system(x)", "pickle.loads(x)", "torch.load(x)", "os.popen(x)"]
)
def test_what_is_looked_for_is_found(line: str) -> None:
    (call,) = [node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)]
    with pytest.raises(AssertionError, match="here"):
        harmless(call, "here")


def test_what_is_accepted_once_the_app_is_up_sends_at_once() -> None:
    def accepted() -> int:
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as connection:
            return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    async def begin_and_end() -> None:
        async with serve.lifespan(None):
            pass

    with socket.socket() as listening:  # as Streamlit makes it
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert not accepted()
        asyncio.run(begin_and_end())
        assert accepted()
