"""Two hosts on this machine: network namespaces with a cable between them, and one file system for both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.trainer.launch.conftest import processes_of

ROOT = Path(__file__).resolve().parents[2]


class Hosts:
    """Host 0 and host 1, with addresses of a range that is kept for documentation and goes nowhere."""

    def __init__(self) -> None:
        mark = os.urandom(2).hex()  # names are the machine's
        self.names = (f"gm{mark}a", f"gm{mark}b")
        self.addresses = ("198.51.100.1", "198.51.100.2")

    def start(self) -> None:
        one, other = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", one, "netns", one, "type", "veth", "peer", "name", other, "netns", other)
        for name, address in zip(self.names, self.addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def stop(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def train(self, host: int, log: Path, options: list[str], words: list[str]) -> subprocess.Popen[bytes]:
        """Start that host's share of a training, as a person would by hand."""
        meet = f"{self.addresses[0]}:29400"
        command = [
            "ip", "netns", "exec", self.names[host], sys.executable, "-m", "trainer.host", "--host", str(host),
            "--meet", meet, *options, "--", *words,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with log.open("ab") as out:
            return subprocess.Popen(
                command, cwd=log.parent, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=60)


def kill_host(agent: subprocess.Popen[bytes]) -> None:
    """As if its power had gone: every process of it, torchrun and its workers, by SIGKILL."""
    below = psutil.Process(agent.pid).children(recursive=True)
    agent.kill()
    for process in below:
        process.kill()
    agent.wait()


def left_of(folder: Path) -> list[psutil.Process]:
    left = processes_of(folder)
    for process in left:
        process.kill()
    return left
