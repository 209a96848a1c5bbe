"""A pid alone is not a process: identities against real processes and reused pids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from trainer.launch.processes import Identity, kill_tree, send

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_own_process_is_alive() -> None:
    assert Identity.own().alive


def test_reused_pid_is_a_stranger_and_is_never_signalled() -> None:
    with subprocess.Popen(SLEEP) as stranger:
        now = Identity.of(stranger.pid)
        before = Identity(now.pid, now.create_time - 60)  # the process that had this pid a minute ago
        assert not before.alive
        assert not send(before, signal.SIGKILL)
        kill_tree(before)
        assert now.alive
        assert send(now, signal.SIGKILL)


def test_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    identity = Identity.of(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not collected
    assert psutil.pid_exists(child.pid)
    assert not identity.alive
    child.wait()


def test_group_is_signalled_only_when_led() -> None:
    with subprocess.Popen(SLEEP) as member:
        assert os.getpgid(member.pid) == os.getpgid(0)
        assert send(
            Identity.of(member.pid), signal.SIGTERM, group=True
        )  # would end this test run if it went to the group
        assert member.wait() == -signal.SIGTERM


def test_tree_is_killed_across_sessions() -> None:
    program = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
        "start_new_session=True); print(p.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, process_group=0, text=True
    ) as parent:
        assert parent.stdout is not None
        grandchild = Identity.of(int(parent.stdout.readline()))
        kill_tree(Identity.of(parent.pid))
        assert parent.wait() == -signal.SIGKILL
    # Its new parent is process 1, which may collect it late: a zombie counts as ended.
    psutil.wait_procs([process] if (process := grandchild.process()) else [], timeout=20)
    assert not grandchild.alive


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"pid": "1", "pid_create_time": 3.0},
        {"pid": True, "pid_create_time": 3.0},
        {"pid": 1, "pid_create_time": 3.0},
        {"pid": -1, "pid_create_time": 3.0},
        {"pid": 12},
        {"pid": 12, "pid_create_time": "NaN"},
    ],
)
def test_record_that_names_no_process_is_refused(record: dict[str, object]) -> None:
    assert Identity.read(record) is None


def test_identity_is_read_with_its_prefix() -> None:
    record = {"pid": 5, "pid_create_time": 1.5, "child_pid": 6, "child_create_time": 2}
    assert Identity.read(record) == Identity(5, 1.5)
    assert Identity.read(record, "child") == Identity(6, 2.0)
