"""Webhooks, on a real server that answers, fails, redirects and keeps silent."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import monitor
from app.cli import cli
from monitor import alerts as module
from monitor.alerts import Alerts, alerts_from, payload
from monitor.errors import ConfigError
from monitor.runfile.reader import open_run
from tests.app.runs_for_tests import nan_run
from tests.waiting import until

SECRET = "T0000-B0000-XXXXXXXX"


class Channel:
    """What a webhook's server got, and how it is to answer."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.status: Callable[[int], int] = lambda count: 200
        self.hold = threading.Event()
        self.hold.set()
        channel = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                channel.bodies.append(body)
                channel.hold.wait(60)
                status = channel.status(len(channel.bodies))
                try:
                    self.send_response(status)
                    if 300 <= status < 400:
                        self.send_header("Location", f"http://127.0.0.1:{channel.port}/elsewhere")
                    self.end_headers()
                except OSError:  # nobody waits any more
                    return

            do_GET = do_POST

            def log_message(self, *given: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/{SECRET}"


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    made = Channel()
    yield made
    made.hold.set()
    made.server.shutdown()
    made.server.server_close()


def told(alerts: Alerts) -> list[dict[str, Any]]:
    outcomes: list[dict[str, Any]] = []
    alerts.tell = lambda outcome: outcomes.append(dict(outcome))
    return outcomes


def test_an_alert_is_delivered_and_told_of(channel: Channel) -> None:
    alerts = Alerts(channel.url)
    outcomes = told(alerts)
    assert alerts.send("loss-spike", "critical", "run a", "the loss rose", step=12)
    alerts.close(60)
    assert channel.bodies == [
        {"source": "gradiometer", "about": "loss-spike", "severity": "critical", "title": "run a",
         "text": "the loss rose", "step": 12, "held_back": 0}
    ]  # fmt: skip
    assert outcomes == [{"delivered": True, "text": f"told {alerts.host}: run a", "level": "critical"}]


@pytest.mark.parametrize(
    ("status", "tries", "why"),
    [
        (lambda count: 500, 3, "it answered 500, 3 times"),
        (lambda count: 429, 3, "it answered 429, 3 times"),
        (lambda count: 404, 1, "it answered 404"),
        (lambda count: 302, 1, "a redirect, which is not followed"),
        (lambda count: 307, 1, "a redirect, which is not followed"),
        (lambda count: 500 if count == 1 else 200, 2, None),
    ],
)
def test_a_server_that_fails_or_redirects(channel: Channel, status: Any, tries: int, why: str | None) -> None:
    channel.status = status
    alerts = Alerts(channel.url)
    outcomes = told(alerts)
    alerts.send("x", "critical", "title", "text")
    alerts.close(60)
    assert len(channel.bodies) == tries
    assert outcomes[0]["delivered"] == (why is None) and (why or "told") in outcomes[0]["text"]
    assert SECRET not in str(outcomes)


def test_a_server_that_keeps_silent_holds_nobody_up(channel: Channel) -> None:
    channel.hold.clear()
    alerts = Alerts(channel.url)
    outcomes = told(alerts)
    began = time.monotonic()
    for number in range(2 * module.MOST_WAITING):
        alerts.send(f"rule {number}", "critical", "title", "text")
    asked = time.monotonic() - began
    alerts.close(0.05)
    assert asked < 5.0 and len(channel.bodies) <= module.TRIES, "nobody waited for 30 answers of 0.3 s"
    until(lambda: outcomes, "the outcome")
    assert "no answer in 0.3 s, 3 times" in outcomes[0]["text"]


def test_nobody_there(channel: Channel) -> None:
    channel.server.shutdown()
    channel.server.server_close()
    alerts = Alerts(channel.url)
    outcomes = told(alerts)
    alerts.send("x", "critical", "title", "text")
    alerts.close(60)
    assert "cannot be reached (Connection refused)" in outcomes[0]["text"]
    channel.server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=channel.server.serve_forever, daemon=True).start()


def test_levels_and_rates(channel: Channel) -> None:
    clock = [0.0]
    alerts = Alerts(channel.url, level="warning", every_s=300, now=lambda: clock[0])
    assert not alerts.send("a", "info", "t", "below the level")
    assert alerts.send("a", "warning", "t", "first")
    assert not alerts.send("a", "warning", "t", "the same again")
    assert alerts.send("a", "critical", "t", "worse")
    assert alerts.send("b", "warning", "t", "another thing")
    clock[0] = 301
    assert alerts.send("a", "warning", "t", "later")
    alerts.close(60)
    assert [body["text"] for body in channel.bodies] == ["first", "worse", "another thing", "later"]
    assert [body["held_back"] for body in channel.bodies] == [0, 1, 0, 0]


def test_not_more_than_so_many_an_hour(channel: Channel) -> None:
    clock = [0.0]
    alerts = Alerts(channel.url, now=lambda: clock[0])
    sent = 0
    for number in range(2 * module.MOST_PER_HOUR):
        clock[0] += 1
        sent += alerts.send(f"rule {number}", "critical", "t", "x")
        time.sleep(0.002)  # the queue is to be no reason
    assert sent <= module.MOST_PER_HOUR
    clock[0] += 3600
    assert alerts.send("later", "critical", "t", "x")
    alerts.close(60)


def test_the_shapes() -> None:
    record = {"about": "r", "severity": "critical", "title": "<!channel> & co", "text": "@everyone " + "x" * 3000,
              "held_back": 2}  # fmt: skip
    slack = payload("slack", record)["text"]
    assert slack.startswith("*critical* &lt;!channel&gt; &amp; co\n") and "(2 more were held back)" in slack
    discord = payload("discord", record)
    assert len(discord["content"]) <= 2000 and discord["allowed_mentions"] == {"parse": []}
    assert payload("generic", record) == {"source": "gradiometer", **record}


@pytest.mark.parametrize(
    ("url", "shape"),
    [("https://hooks.slack.com/services/x", "slack"), ("https://discord.com/api/webhooks/x", "discord"),
     ("https://hooks.slack.com.elsewhere.example/x", "generic"), ("http://localhost:9000/hook", "generic")],
)  # fmt: skip
def test_the_shape_goes_by_the_host(url: str, shape: str) -> None:
    assert Alerts(url).shape == shape


@pytest.mark.parametrize("url", ["", "hooks.slack.com/x", f"file:///etc/{SECRET}", f"ftp://host/{SECRET}", "http://",
                                 f"http://[::1/{SECRET}", f"http://host:port/{SECRET}"])  # fmt: skip
def test_what_is_no_address_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Alerts(url)
    assert SECRET not in str(refused.value)


def test_the_address_shows_nowhere(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", channel.url)
    alerts = alerts_from("HOOK", level="critical")
    assert SECRET not in repr(alerts)
    with pytest.raises(TypeError):
        pickle.dumps(alerts)
    with pytest.raises(ConfigError, match="no such variable"):
        alerts_from("NO_HOOK")


def test_a_training_tells_of_findings_and_of_its_crash_and_keeps_the_secret(channel: Channel, tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    channel.status = lambda count: 200 if count == 1 else 404
    finding = {"id": "loss-spike", "severity": "critical", "text": "the loss is lost", "onset_step": 2,
               "first_step": 2, "last_step": 3, "incident_step": 2, "remedy": "Lower the rate.", "config_patch": {},
               }  # fmt: skip
    with pytest.raises(RuntimeError), monitor.attach(model, optimizer, run=tmp_path, alerts=channel.url) as mon:
        model(torch.ones(2, 4)).mean().backward()
        optimizer.step()
        mon.step()
        mon._found(finding)
        raise RuntimeError("out of patience")
    assert [(body["about"], body["severity"]) for body in channel.bodies] == [
        ("loss-spike", "critical"), ("crash", "critical"),
    ]  # fmt: skip
    assert channel.bodies[0]["run"] == mon.run_dir.name and channel.bodies[0]["remedy"] == "Lower the rate."
    events = open_run(mon.run_dir).events("alert")
    assert [event.fields["delivered"] for event in events] == [True, False]
    for path in mon.run_dir.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_the_doctor_tells(channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = nan_run(tmp_path)
    monkeypatch.setenv("HOOK", channel.url)
    done = CliRunner().invoke(cli, ["doctor", str(run), "--alert", "HOOK"])
    assert done.exit_code == 1 and SECRET not in done.output
    assert [(body["severity"], body["run"]) for body in channel.bodies] == [("critical", run.name)]
    assert CliRunner().invoke(cli, ["doctor", str(run), "--alert", "NO_HOOK"]).exit_code == 2


def test_the_doctor_tells_of_logs_of_other_tools_too(
    channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "train.log"
    losses = ("nan" if step >= 1500 else f"{3 - step / 1000:.4f}" for step in range(0, 2000, 10))
    log.write_text("".join(f"iter {10 * row}: loss {loss}, time 20.00ms\n" for row, loss in enumerate(losses)))
    monkeypatch.setenv("HOOK", channel.url)
    done = CliRunner().invoke(cli, ["doctor", str(log), "--alert", "HOOK"])
    assert done.exit_code == 1 and SECRET not in done.output
    (body,) = channel.bodies
    assert body["severity"] == "critical" and body["run"] in body["title"] and body["onset_step"] == 1500
    assert CliRunner().invoke(cli, ["doctor", str(log), "--alert", "NO_HOOK"]).exit_code == 2
