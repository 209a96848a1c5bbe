"""Processes as (pid, creation time): a pid alone is reused by strangers."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

CREATE_TIME_TOLERANCE_S = 1.0
"""psutil derives the creation time from the boot time, which shifts when the system clock is set; 1 s is far below the
time in which a kernel hands the same pid out again (it counts upwards through at least 32 768)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process of this host, for good."""

    pid: int
    create_time: float
    """Unix seconds."""

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Raises:
        psutil.NoSuchProcess: no process has this pid.
        """
        return cls(pid, psutil.Process(pid).create_time())

    @classmethod
    def own(cls) -> Identity:
        return cls.of(os.getpid())

    @classmethod
    def read(cls, record: Mapping[str, Any], prefix: str = "pid") -> Identity | None:
        """The identity in a JSON record: ``pid`` and ``pid_create_time``, or with ``prefix="child"`` ``child_pid`` and
        ``child_create_time``. None when the record has none or it is not one (the file is data from disk)."""
        pid = record.get("pid" if prefix == "pid" else f"{prefix}_pid")
        created = record.get("pid_create_time" if prefix == "pid" else f"{prefix}_create_time")
        if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 1:
            return None
        if not isinstance(created, (int, float)) or isinstance(created, bool):
            return None
        return cls(pid, float(created))

    def process(self) -> psutil.Process | None:
        """The live process, or None when it has ended (a zombie has ended) or its pid belongs to another one."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < CREATE_TIME_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None
        except psutil.AccessDenied:  # another user's process: not ours to signal, so for us it is not there
            return None

    @property
    def alive(self) -> bool:
        return self.process() is not None


def send(identity: Identity, signum: int, *, group: bool = False) -> bool:
    """Signal the process, or with ``group`` its process group if it leads one; False when it is not there any more."""
    process = identity.process()
    if process is None:
        return False
    try:
        if group and os.getpgid(identity.pid) == identity.pid:
            os.killpg(identity.pid, signum)
        else:
            process.send_signal(signum)  # psutil compares pid and creation time once more
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
    return True


def kill_tree(identity: Identity) -> None:
    """SIGKILL to the process, its group and all its descendants (torchrun's workers lead sessions of their own)."""
    process = identity.process()
    if process is None:
        return
    try:
        descendants = process.children(recursive=True)  # before the kill: orphans cannot be found afterwards
    except psutil.NoSuchProcess:
        descendants = []
    send(identity, signal.SIGKILL, group=True)
    for descendant in descendants:
        try:
            descendant.kill()
        except psutil.NoSuchProcess:
            continue
