"""Which process this is, so that a reader on the same machine can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import psutil


def is_anonymous() -> bool:
    """Whether records leave out the names of this machine: GRADIOMETER_ANONYMOUS=1, for runs that will be published.

    The state of such a run is computed from its heartbeat alone.
    """
    return os.environ.get("GRADIOMETER_ANONYMOUS") == "1"


def process_identity() -> dict[str, Any]:
    """Who writes: host, boot and pid namespace (a pid means nothing outside them), pid and its creation time."""
    named = not is_anonymous()
    return {
        "host": socket.gethostname() if named else None,
        "boot_id": boot_id() if named else None,
        "pid_namespace": pid_namespace() if named else None,
        "pid": os.getpid(),
        "pid_create_time": psutil.Process().create_time(),
    }


def boot_id() -> str | None:
    """Linux's name for this boot of the machine; None where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def pid_namespace() -> str | None:
    """Linux's name for this process's pid namespace (containers have their own); None where there is none."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None
