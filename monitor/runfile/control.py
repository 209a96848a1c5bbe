"""Requests to a running training, and what became of them: files in the run directory, so that they work wherever the
run directory can be seen, over a shared folder too. No signal, no lock, no notification of the kernel.

    ask(run_dir, "set_lr", via="command line", factor=0.5)   # anybody: attempts/N/control/000003.json
    inbox.look()                                             # the training, once a second: receipts/000003.json
    inbox.answer(request, "done", 812, "...")                # ... and again with its result

Requests are numbered, and a number is created exclusively: whoever asks says up to which one he has seen, so that of
two people who act at the same moment on the same sight one wins and the other is told. A request is data from
strangers: it counts only when it is whole, small, of the right owner, of this attempt, in time, and new.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.identity import process_identity
from monitor.runfile.store import attempt_numbers, optional_json, run_state

CONTROL_DIR = "control"
RECEIPTS_DIR = "receipts"
CHANGES_FILE = "changes.json"

KINDS: dict[str, str] = {
    "checkpoint": "save a checkpoint after this step",
    "stop": "save a checkpoint and end after this step",
    "pause": "wait after this step",
    "continue": "go on after a pause",
    "set_lr": "change the learning rate",
    "set_clip": "change the limit of gradient clipping",
    "record_dense": "measure the next steps in full",
}
"""What may be asked for."""

LIFETIME_S = 600.0
"""A request that no step has taken by then is void: whoever asked has turned to something else. Our judgement; steps of
a large training take seconds to a minute."""
LONGEST_LIFETIME_S = 86_400.0
SKEW_S = 120.0
"""Clocks of two hosts may differ by so much. Our judgement; with NTP it is milliseconds."""
MOST_REQUESTS = 1000
"""Of one attempt. A person does not ask so often; a script that does is refused."""
MOST_BYTES = 4096
"""Of a request or a receipt."""
MOST_DENSE_STEPS = 1000
DENSE_STEPS = 64
MOST_TROUBLES = 50
"""Events about refused requests in one attempt."""
TRIES = 3
"""Looks at a file that is no JSON before it is refused: where hard links are missing it may be half written."""

_NAME = re.compile(r"(\d{6})\.json", re.ASCII)
_WAYS = re.compile(r"[a-z ]{1,20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants of a training. Made by ``ask``, taken by the training."""

    id: str
    """Six digits: which request of the attempt it is, from 000000."""
    attempt: int
    do: str
    """One of ``KINDS``."""
    values: Mapping[str, float | int | None]
    """``value`` or ``factor`` of set_lr, ``value`` of set_clip (None: no clipping), ``steps`` of record_dense."""
    created: float
    expires: float
    via: str
    """``page``, ``command line``, ``python``."""
    host: str | None
    pid: int

    @property
    def by(self) -> str:
        """Who asked, in words."""
        return f"{self.via}{f' on {self.host}' if self.host else ''}, process {self.pid}"

    @property
    def text(self) -> str:
        """What is asked for, in words: ``set_lr value 0.0001``."""
        return " ".join((self.do, *(f"{name} {_spelled(value)}" for name, value in self.values.items())))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it lies there, and its receipt as far as there is one."""

    id: str
    request: Request | None
    """None when the file is no request."""
    receipt: Mapping[str, Any] | None

    @property
    def state(self) -> str:
        """``asked``, ``arrived``, ``done``, ``failed`` or ``refused``."""
        state = (self.receipt or {}).get("state")
        return state if state in STATES else "asked"


STATES = ("arrived", "done", "failed", "refused")
"""Of a receipt: taken over, carried out, not carried out because something failed, not accepted."""


class _Refused(Exception):
    """A request does not count; the message says why."""


# Whoever asks ------------------------------------------------------------------------------------------------------


def checked(do: str, values: Mapping[str, Any]) -> dict[str, float | int | None]:
    """``values`` as a request of kind ``do`` may have them; what is missing gets its default.

    Raises:
        RunError: an unknown kind or field, or a value out of bounds; the message says what is accepted.
    """
    if do not in KINDS:
        raise RunError(f"a training cannot be asked to {str(do)[:40]!r}; accepted: {', '.join(KINDS)}.")
    given = {name: value for name, value in values.items() if value is not None or (do, name) == ("set_clip", "value")}
    known = {"set_lr": {"value", "factor"}, "set_clip": {"value"}, "record_dense": {"steps"}}.get(do, set())
    if strange := sorted(map(str, given.keys() - known)):
        accepted = f"it takes {' or '.join(sorted(known))}" if known else "it takes none"
        raise RunError(f"{do} with {', '.join(strange)[:80]}: {accepted}.")
    if do == "set_lr":
        if len(given) != 1:
            raise RunError("set_lr takes either value, the rate of the next step, or factor, on the rate as it is.")
        return {name: _positive(do, name, value) for name, value in given.items()}
    if do == "set_clip":
        if "value" not in given:
            raise RunError("set_clip takes value: the largest norm, or null for no clipping.")
        return {"value": None if given["value"] is None else _positive(do, "value", given["value"])}
    if do == "record_dense":
        steps = given.get("steps", DENSE_STEPS)
        if type(steps) is not int or not 1 <= steps <= MOST_DENSE_STEPS:
            raise RunError(f"record_dense steps = {str(steps)[:40]}; a whole number of 1 to {MOST_DENSE_STEPS}.")
        return {"steps": steps}
    return {}


def ask(
    run_dir: str | os.PathLike[str],
    do: str,
    *,
    via: str = "python",
    seen: int | None = None,
    lifetime_s: float = LIFETIME_S,
    now: Callable[[], float] = time.time,
    **values: Any,
) -> Request:
    """Ask the training of the newest attempt for something; returns at once, ``asked`` tells what becomes of it.

    Args:
        do: one of ``KINDS``, with its ``values``.
        seen: how many requests of the attempt the asker knew of. When there is another one by now, nothing is asked.
            None: whatever there is.

    Raises:
        RunError: the value is out of bounds, nothing runs that could take the request, it answers other kinds only,
            somebody else was first, or the folder cannot be written.
    """
    run_dir = Path(run_dir)
    given = checked(do, values)
    attempt = _listening(run_dir, do)
    folder = _folder(run_dir, attempt, CONTROL_DIR)
    number = next_number(run_dir, attempt)
    if seen is not None and number > seen:
        raise RunError(f"{_first(run_dir, attempt, seen)} Nothing was asked; look at the run and ask again.")
    moment, identity = now(), process_identity()
    record: dict[str, Any] = {
        "attempt": attempt,
        "do": do,
        **given,
        "created": moment,
        "expires": moment + lifetime_s,
        "by": {"via": via, "host": identity["host"], "pid": identity["pid"]},
        "nonce": secrets.token_hex(8),
    }
    while number < MOST_REQUESTS:
        path = folder / f"{number:06d}.json"
        try:
            fmt.exclusive_write_json(path, {"id": path.stem, **record})
        except FileExistsError:
            if seen is not None:
                raise RunError(
                    f"{_first(run_dir, attempt, seen)} Nothing was asked; look at the run and ask again."
                ) from None
            number += 1
            continue
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error.strerror}. Nothing was asked.") from None
        return Request(
            path.stem, attempt, do, given, moment, moment + lifetime_s, via, identity["host"], identity["pid"]
        )
    raise RunError(
        f"attempt {attempt} of {run_dir.name} has had {MOST_REQUESTS} requests already; it takes no more. "
        "Stop it with: gradiometer stop"
    )


def next_number(run_dir: Path, attempt: int) -> int:
    """How many requests an attempt has had: the number of the next one."""
    return max((int(name) for name in _names(_folder(run_dir, attempt, CONTROL_DIR))), default=-1) + 1


def asked(run_dir: str | os.PathLike[str], attempt: int, last: int = 20) -> list[Asked]:
    """The ``last`` requests of an attempt with their receipts, oldest first; never raises for what lies there."""
    run_dir = Path(run_dir)
    try:
        control, receipts = (_folder(run_dir, attempt, name) for name in (CONTROL_DIR, RECEIPTS_DIR))
        names = sorted(_names(control))[-last:] if last else []
    except RunError:
        return []
    found = []
    for name in names:
        try:
            record = fmt.load_json(control / f"{name}.json", MOST_BYTES)
            request = _parsed(record, name)
        except (RunError, _Refused):
            request = None
        found.append(Asked(name, request, _receipt(receipts / f"{name}.json")))
    return found


def answered_kinds(heartbeat: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What the training that wrote this heartbeat answers."""
    kinds = (heartbeat or {}).get("requests")
    return tuple(kind for kind in KINDS if kind in kinds) if isinstance(kinds, list) else ()


def _listening(run_dir: Path, do: str) -> int:
    """The attempt that can be asked to ``do`` something."""
    if not (run_dir / fmt.RUN_FILE).is_file():
        raise RunError(f"{run_dir} is not a run directory: it has no {fmt.RUN_FILE}. Give the folder of one run.")
    state = run_state(run_dir)
    if state.ended:
        raise RunError(f"run {run_dir.name} is {state.word} ({state.reason}), so nothing takes a request.")
    numbers = attempt_numbers(run_dir)
    if state.heartbeat is None or not numbers:
        raise RunError(f"run {run_dir.name} has not begun its first step yet. Ask again when it has.")
    kinds = answered_kinds(state.heartbeat)
    if do not in kinds:
        raise RunError(
            f"the training of run {run_dir.name} does not answer {do}; it answers "
            f"{', '.join(kinds) or 'no requests'}. A loop of your own says what it answers by attach(requests=...)."
        )
    return numbers[-1]


def _first(run_dir: Path, attempt: int, seen: int) -> str:
    others = [one.request for one in asked(run_dir, attempt) if int(one.id) >= seen and one.request is not None]
    if not others:
        return "Somebody else asked for something at this moment."
    ago = max(0.0, time.time() - others[-1].created)
    return f"Somebody else was first: {others[-1].text}, asked {ago:.0f} s ago ({others[-1].by})."


# The training that is asked ----------------------------------------------------------------------------------------


class Inbox:
    """The requests to one attempt, as its training sees them. ``look`` may run in another thread than the rest.

    Args:
        answers: kinds that will be answered; others are refused.
        tell: called with the fields of an event for each request that was answered or refused.
        step: gives the last step that has ended.
    """

    def __init__(
        self,
        run_dir: Path,
        attempt: int,
        answers: Collection[str],
        tell: Callable[..., None],
        step: Callable[[], int],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._run_dir, self._attempt = run_dir, attempt
        self._answers = frozenset(answers)
        self._tell, self._step, self._now = tell, step, now
        self._control = fmt.attempt_dir(run_dir, attempt) / CONTROL_DIR
        self._receipts = fmt.attempt_dir(run_dir, attempt) / RECEIPTS_DIR
        record = optional_json(fmt.attempt_dir(run_dir, attempt) / fmt.ATTEMPT_FILE) or {}
        self._began = fmt.as_number(record.get("created")) or now()
        self._owners = {0, run_dir.stat().st_uid}  # root may do anything anyway
        self._done = _names(self._receipts) if fmt.is_real_folder(run_dir, self._receipts) else set()
        self._tries: dict[str, int] = {}
        self._nonces: dict[str, str] = {}
        self._arrived: deque[Request] = deque()
        self._open: dict[str, tuple[Request, float, int]] = {}
        """Taken over and not answered yet, with when that was and at which step."""
        self._troubles = 0
        self._strange: set[str] = set()

    def look(self) -> None:
        """Take over what is new. One listing of a folder that has a file for each request of the attempt."""
        if not fmt.is_real_folder(self._run_dir, self._control):
            return
        new = sorted(self._listed() - self._done)
        for name in new:
            try:
                request = self._read(name)
            except FileNotFoundError:
                continue
            except _Refused as refusal:
                self._done.add(name)
                self._write(name, "refused", self._step(), str(refusal))
                self._trouble(f"request {name} was refused: {refusal}", id=name)
                continue
            if request is not None:
                self._done.add(name)
                self._open[name] = (request, self._now(), self._step())
                self._write(name, "arrived", self._step(), "", request)
                self._arrived.append(request)

    def take(self, kinds: Collection[str] | None = None) -> list[Request]:
        """Those that have arrived since the last call, oldest first; each waits for its ``answer``."""
        if not self._arrived:
            return []
        there = [self._arrived.popleft() for _ in range(len(self._arrived))]
        self._arrived.extend(request for request in there if kinds is not None and request.do not in kinds)
        return [request for request in there if kinds is None or request.do in kinds]

    @property
    def waiting(self) -> bool:
        """Whether ``take`` has something."""
        return bool(self._arrived)

    def answer(self, request: Request, state: str, step: int, text: str, **fields: Any) -> None:
        """Say what came of a request: its receipt, and an event. The first answer stands."""
        if self._open.get(request.id) is None:
            return
        self._write(request.id, state, step, text, request, **fields)
        del self._open[request.id]
        self._tell(step=step, **_event_fields(request), outcome=state, text=text, **fields)

    def close(self, why: str) -> None:
        """The training ends: what is unanswered, or arrives at the last moment, is told so."""
        self.look()
        self._arrived.clear()
        for request, _, _ in tuple(self._open.values()):
            self.answer(request, "failed", self._step(), why)

    def _listed(self) -> set[str]:
        """Names of requests in the folder; what cannot be one is told of once."""
        names: set[str] = set()
        with os.scandir(self._control) as entries:
            for seen, entry in enumerate(entries):
                if seen >= 2 * MOST_REQUESTS:
                    self._stranger("more files than requests are taken")
                    break
                if match := _NAME.fullmatch(entry.name):
                    names.add(match[1])
                elif not (entry.name.startswith(".") and entry.name.endswith(".tmp")):
                    self._stranger(f"{entry.name[:60]!r} is not named like a request")
        return {name for name in names if int(name) < MOST_REQUESTS}

    def _stranger(self, text: str) -> None:
        if text not in self._strange and len(self._strange) < MOST_TROUBLES:
            self._strange.add(text)
            self._trouble(f"in {CONTROL_DIR}/: {text}; left alone")

    def _read(self, name: str) -> Request | None:
        """The request called ``name`` if it counts; None: to be looked at again.

        Raises:
            _Refused: it does not count.
        """
        path = self._control / f"{name}.json"
        try:
            fd = fmt.open_inside(path)
        except RunError as error:
            raise _Refused(str(error).removeprefix(f"{path}: ")) from None
        try:
            found = os.fstat(fd)
            if found.st_uid not in self._owners:
                raise _Refused(f"it is of user {found.st_uid}, who does not own the run")
            if found.st_size > MOST_BYTES:
                raise _Refused(f"{found.st_size} bytes; at most {MOST_BYTES}")
            content = os.read(fd, MOST_BYTES)
        finally:
            os.close(fd)
        try:
            record = fmt.parse_json(content, path.name)
        except RunError as error:
            self._tries[name] = self._tries.get(name, 0) + 1
            if self._tries[name] < TRIES:
                return None
            raise _Refused(f"not JSON ({error})") from None
        request = _parsed(record, name)
        self._timely(request)
        first = self._nonces.setdefault(record["nonce"], name)
        if first != name:
            raise _Refused(f"a copy of request {first}")
        if request.do not in self._answers:
            answers = ", ".join(kind for kind in KINDS if kind in self._answers)
            raise _Refused(f"this training does not answer {request.do}; it answers {answers}")
        return request

    def _timely(self, request: Request) -> None:
        now = self._now()
        if request.attempt != self._attempt:
            raise _Refused(f"it is for attempt {request.attempt}, and this is attempt {self._attempt}")
        if request.created < self._began - SKEW_S:
            raise _Refused(f"it was made {self._began - request.created:.0f} s before this attempt began")
        if request.created > now + SKEW_S:
            raise _Refused(f"it was made {request.created - now:.0f} s in the future; do the clocks differ?")
        if request.expires < now:
            raise _Refused(f"it came too late: made {now - request.created:.0f} s ago, void since")

    def _write(
        self, name: str, state: str, step: int, text: str, request: Request | None = None, **fields: Any
    ) -> None:
        now = self._now()
        record: dict[str, Any] = {"id": name, "do": request.do if request else None, "state": state, "step": step}
        record |= {"time": now, "text": text[:1000], **fields}
        if name in self._open:
            record |= {"arrived": self._open[name][1], "arrived_step": self._open[name][2]}
        if not fmt.is_real_folder(self._run_dir, self._receipts):
            return
        with contextlib.suppress(OSError):  # a full disk: the event tells it too, once there is room
            fmt.atomic_write_json(self._receipts / f"{name}.json", record)

    def _trouble(self, text: str, **fields: Any) -> None:
        self._troubles += 1
        if self._troubles <= MOST_TROUBLES:
            self._tell(step=self._step(), outcome="refused", text=text[:1000], **fields)


def _event_fields(request: Request) -> dict[str, Any]:
    by = {"via": request.via, "host": request.host, "pid": request.pid}
    return {"id": request.id, "do": request.do, "by": by, **request.values}


# Changes of the configuration --------------------------------------------------------------------------------------


def record_change(run_dir: Path, attempt: int, step: int, values: Mapping[str, Any], request: str) -> None:
    """Keep that from ``step`` on these configuration values are in force, for whoever resumes the run.

    Raises:
        OSError: it cannot be written; nothing has changed.
    """
    folder = fmt.attempt_dir(run_dir, attempt)
    before = [
        {"after_step": change_step, "values": changed, "request": by}
        for change_step, changed, by in read_changes(run_dir, attempt)
    ]
    changes = [*before, {"after_step": step, "values": dict(values), "request": request}]
    fmt.atomic_write_json(folder / CHANGES_FILE, {"changes": changes})


def read_changes(run_dir: Path, attempt: int) -> list[tuple[int, dict[str, Any], str]]:
    """The changes of an attempt, as :func:`changes_in` gives them."""
    return changes_in(optional_json(fmt.attempt_dir(run_dir, attempt) / CHANGES_FILE))


def changes_in(record: Mapping[str, Any] | None) -> list[tuple[int, dict[str, Any], str]]:
    """(last step before it, values by dotted name, id of the request) of each change while an attempt ran, in order."""
    listed = (record or {}).get("changes")
    found = []
    for change in listed[:MOST_REQUESTS] if isinstance(listed, list) else ():
        if not isinstance(change, dict):
            continue
        step, values = change.get("after_step"), change.get("values")
        if type(step) is int and isinstance(values, dict):
            found.append((step, values, str(change.get("request"))))
    return found


# Reading -----------------------------------------------------------------------------------------------------------


def _folder(run_dir: Path, attempt: int, name: str) -> Path:
    folder = fmt.attempt_dir(run_dir, attempt) / name
    if not fmt.is_real_folder(run_dir, folder):
        raise RunError(f"{folder} is not there, or not a folder; nothing can be asked of this attempt.")
    return folder


def _names(folder: Path) -> set[str]:
    """Numbers that requests, or receipts, in ``folder`` have."""
    names: set[str] = set()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for seen, entry in enumerate(entries):
            if seen >= 2 * MOST_REQUESTS:
                break
            if match := _NAME.fullmatch(entry.name):
                names.add(match[1])
    return names


def _receipt(path: Path) -> dict[str, Any] | None:
    try:
        return fmt.load_json(path, MOST_BYTES)
    except RunError:
        return None


def _parsed(record: Any, name: str) -> Request:
    """The request that a JSON value spells.

    Raises:
        _Refused: it spells none.
    """
    if not isinstance(record, dict):
        raise _Refused("not a JSON object")
    if record.get("id") != name:
        raise _Refused(f"its id is {str(record.get('id'))[:20]!r}, and its name says {name}")
    by, created, expires = record.get("by"), fmt.as_number(record.get("created")), fmt.as_number(record.get("expires"))
    if created is None or expires is None or not math.isfinite(created) or not math.isfinite(expires):
        raise _Refused("it does not say when it was made and when it is void")
    if not 0 < expires - created <= LONGEST_LIFETIME_S:
        raise _Refused(f"it is to live for {expires - created:.0f} s; at most {LONGEST_LIFETIME_S:.0f}")
    if type(record.get("attempt")) is not int or not isinstance(record.get("nonce"), str):
        raise _Refused("attempt or nonce is missing")
    if not isinstance(by, dict) or type(by.get("pid")) is not int or not _WAYS.fullmatch(str(by.get("via"))):
        raise _Refused("it does not say who asks")
    host = by.get("host")
    values = {key: value for key, value in record.items() if key not in _FRAME}
    try:
        given = checked(str(record.get("do")), values)
    except RunError as error:
        raise _Refused(str(error)) from None
    return Request(
        name, record["attempt"], record["do"], given, created, expires, by["via"],
        host[:64] if isinstance(host, str) else None, by["pid"],
    )  # fmt: skip


_FRAME = ("id", "attempt", "do", "created", "expires", "by", "nonce")


def _positive(do: str, name: str, value: Any) -> float:
    number = fmt.as_number(value)
    if isinstance(value, str) or number is None or not math.isfinite(number) or number <= 0:
        raise RunError(f"{do} {name} = {str(value)[:40]}; a finite number above 0 is accepted.")
    return number


def _spelled(value: float | int | None) -> str:
    return "none" if value is None else f"{value:g}"
