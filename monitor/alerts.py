"""Telling somebody who does not look at the page: a webhook, delivered in the background.

    alerts = Alerts("https://hooks.slack.com/services/...", level="critical")
    mon = monitor.attach(model, optimizer, alerts=alerts)

The training never waits for it and never sees an error of it: what cannot be delivered is an event of the run. The
address is a secret (whoever has it can write into the channel), so it is nowhere in the run: only its host is.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from monitor.errors import ConfigError

SHAPES = ("generic", "slack", "discord")
LEVELS = ("info", "warning", "critical")
EVERY_S = 300.0
"""Least time between two alerts about the same thing that has not got worse. Our judgement."""
MOST_PER_HOUR = 30
"""A training in trouble all the time fills no channel. Our judgement; Slack itself takes one a second."""
TIMEOUT_S = 10.0
TRIES = 3
PAUSE_S = 2.0
"""Before the second try; twice as long before the third."""
MOST_WAITING = 32
MOST_TEXT = 1500
"""Discord refuses more than 2000 characters."""

Tell = Callable[[Mapping[str, Any]], None]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A message goes where it was addressed to, and nowhere else."""

    def redirect_request(self, *given: Any) -> None:
        return None


class Alerts:
    """One webhook.

    Args:
        url: where to POST: ``https://`` or ``http://``.
        shape: ``generic`` (the fields as JSON), ``slack``, ``discord``; ``auto`` goes by the host.
        level: lowest severity that is told: ``info``, ``warning``, ``critical``.
        every_s: least seconds between two alerts about the same thing, unless it has got worse.

    Raises:
        ConfigError: one of them is refused; the message does not repeat the address.
    """

    def __init__(
        self,
        url: str,
        *,
        shape: str = "auto",
        level: str = "warning",
        every_s: float = EVERY_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.host = _checked_host(url)
        if shape not in ("auto", *SHAPES):
            raise ConfigError(f"alerts.shape = {shape!r}; accepted: auto, {', '.join(SHAPES)}.")
        if level not in LEVELS:
            raise ConfigError(f"alerts.level = {level!r}; accepted: {', '.join(LEVELS)}.")
        self.shape = _shape_of(self.host) if shape == "auto" else shape
        self.level = level
        self.tell: Tell = lambda outcome: None
        """Called, in another thread, with what became of each alert: ``delivered``, ``text``, ``level``."""
        self._url, self._every_s, self._now = url, every_s, now
        self._last: dict[str, tuple[float, int]] = {}
        self._recent: deque[float] = deque(maxlen=MOST_PER_HOUR)
        self._held_back = 0
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __repr__(self) -> str:
        return f"Alerts({self.shape} at {self.host}, {self.level})"

    def __reduce__(self) -> Any:
        raise TypeError("alerts hold a secret address and are not pickled")

    def send(self, about: str, severity: str, title: str, text: str, **fields: Any) -> bool:
        """Tell of ``about``; returns at once whether it will be. Never raises.

        Args:
            about: what it is about, such as a rule; for the rate.
            severity: one of ``LEVELS``; below ``level`` nothing is told.
            fields: of the generic shape besides.
        """
        rank = LEVELS.index(severity) if severity in LEVELS else 0
        with self._lock:
            if rank < LEVELS.index(self.level) or not self._may(about, rank):
                return False
            record = {"about": about, "severity": severity, "title": title[:200], "text": text[:MOST_TEXT], **fields}
            record["held_back"], self._held_back = self._held_back, 0
            try:
                self._queue.put_nowait(record)
            except queue.Full:
                self._held_back += 1 + record["held_back"]
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._deliver_all, name="gradiometer-alerts", daemon=True)
                self._thread.start()
        return True

    def close(self, timeout: float = 5.0) -> None:
        """Wait until everything is delivered or given up, for ``timeout`` seconds at most."""
        thread = self._thread
        if thread is None:
            return
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        thread.join(timeout)

    def _may(self, about: str, rank: int) -> bool:
        """The rate: not the same thing again so soon, and not too many of all."""
        now = self._now()
        before = self._last.get(about)
        if before is not None and now - before[0] < self._every_s and rank <= before[1]:
            self._held_back += 1
            return False
        if len(self._recent) == MOST_PER_HOUR and now - self._recent[0] < 3600:
            self._held_back += 1
            return False
        self._last[about] = (now, rank)
        self._recent.append(now)
        return True

    def _deliver_all(self) -> None:
        while (record := self._queue.get()) is not None:
            problem = self._deliver(json.dumps(payload(self.shape, record)).encode())
            said = f"told {self.host}: {record['title']}" if problem is None else f"{self.host} was not told: {problem}"
            try:
                self.tell({"delivered": problem is None, "text": said, "level": record["severity"]})
            except Exception:
                continue  # the run is closed; whoever reads the channel knows
        self._thread = None

    def _deliver(self, body: bytes) -> str | None:
        """POST ``body``; why it could not be delivered. No problem names more of the address than its host."""
        problem = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_S * attempt)
            request = urllib.request.Request(
                self._url, body, {"Content-Type": "application/json", "User-Agent": "gradiometer"}, method="POST"
            )
            try:
                with self._opener.open(request, timeout=TIMEOUT_S):
                    return None
            except urllib.error.HTTPError as error:
                error.close()
                problem = f"it answered {error.code}"
                if 300 <= error.code < 400:
                    return f"{problem}, a redirect, which is not followed; give the address that it leads to"
                if error.code < 500 and error.code != 429:
                    return problem
            except TimeoutError:
                problem = f"no answer in {TIMEOUT_S:g} s"
            except urllib.error.URLError as error:
                problem = f"it cannot be reached ({_reason(error)})"
            except Exception as error:
                problem = f"{type(error).__name__} while it was told"
        return f"{problem}, {TRIES} times"


def alerts_from(variable: str, **options: Any) -> Alerts:
    """Alerts to the address in an environment variable.

    Raises:
        ConfigError: it is not set, or what it holds is no address.
    """
    url = os.environ.get(variable)
    if not url:
        raise ConfigError(
            f"alerts.webhook = {variable}: the environment has no such variable. Set it to the webhook's address."
        )
    return Alerts(url, **options)


def payload(shape: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The body in the given shape."""
    if shape == "generic":
        return {"source": "gradiometer", **record}
    more = f"\n({record['held_back']} more were held back)" if record.get("held_back") else ""
    if shape == "slack":
        return {"text": f"*{record['severity']}* {_slack(record['title'])}\n{_slack(record['text'])}{more}"}
    # Nobody is pinged, whatever a run is called.
    content = f"**{record['severity']}** {record['title']}\n{record['text']}{more}"
    return {"content": content[:2000], "allowed_mentions": {"parse": []}}


def _slack(text: str) -> str:
    """Slack reads ``<...>`` as links and mentions."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _shape_of(host: str) -> str:
    name = host.rpartition(":")[0] or host
    if name == "hooks.slack.com":
        return "slack"
    return "discord" if name in ("discord.com", "discordapp.com") else "generic"


def _checked_host(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except (ValueError, AttributeError):
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "the address of the webhook for alerts is none; accepted: https://host/... (it is not shown here, because "
            "it is a secret)."
        )
    return f"{parts.hostname}{port}"


def _reason(error: urllib.error.URLError) -> str:
    reason = error.reason
    return str(getattr(reason, "strerror", None) or type(reason).__name__)
