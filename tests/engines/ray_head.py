"""A Ray head on this machine, from a virtual environment of its own, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.engines.cluster import processes_naming
from tests.engines.set_up import ray_python
from trainer.launch.ray import ADDRESS_VARIABLE


class RayHead:
    """One head with its Job API. Never ended by `ray stop`, which ends every Ray of the machine."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gm-ray-"))  # short: a socket's path has 108 bytes at most
        with ExitStack() as stack:
            held = [stack.enter_context(socket.socket()) for _ in range(4)]
            for free in held:
                free.bind(("127.0.0.1", 0))
            self.ports = [free.getsockname()[1] for free in held]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    def start(self) -> None:
        gcs, dashboard, agent, client = self.ports
        words = [
            str(ray_python()), "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats", "--num-cpus=4",
            f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
            "--node-ip-address=127.0.0.1", "--object-store-memory=100000000", f"--temp-dir={self.folder}",
        ]  # fmt: skip
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(words, env=kept, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        os.environ[ADDRESS_VARIABLE] = self.address

    def stop(self) -> list[psutil.Process]:
        """Kill all of it; gives back what could not be."""
        os.environ.pop(ADDRESS_VARIABLE, None)
        processes = self.processes()
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=30)
        left = [one for one in self.processes() if one.is_running()]
        shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def processes(self) -> list[psutil.Process]:
        """What names our folder, and all that is below it: workers hide their command line."""
        found: dict[int, psutil.Process] = {}
        for process in processes_naming(self.folder):
            try:
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
            except psutil.NoSuchProcess:
                continue
        return [one for one in found.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
