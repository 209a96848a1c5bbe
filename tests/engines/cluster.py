"""A Slurm cluster of two nodes on this machine, in a folder of its own: munged, slurmctld and two slurmd, as root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from tests.waiting import until

# proctrack/linuxproc and task/none need no cgroups; MinJobAge is short so that a job's being forgotten can be tested;
# the scheduler looks at once. A partition that is down takes jobs and starts none.
CONFIGURATION = """\
ClusterName=gradiometer
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
MinJobAge=2
KillWait=20
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=8 RealMemory=2000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=closed Nodes=ALL MaxTime=INFINITE State=DOWN
"""


class Cluster:
    """Two nodes, n1 and n2, and their controller."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gm-slurm-"))  # short: a socket's path has 108 bytes at most
        (self.folder / "state").mkdir()
        controller, first = _free_port(), _two_free_ports()
        host = socket.gethostname().partition(".")[0]
        self.configuration = self.folder / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(
                host=host, folder=self.folder, controller=controller, first=first, second=first + 1,
                first_job=1000 * (os.getpid() % 14) + 1,  # by its number a job picks the port where its hosts meet
            )
        )  # fmt: skip
        os.environ["SLURM_CONF"] = str(self.configuration)

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        names = {
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munge.seed",
        }
        places = [f"--{option}={self.folder / name}" for option, name in names.items()]
        self._daemon("munged", "--force", "--num-threads=2", f"--key-file={key}", *places)
        self.start_controller()
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-N", node, "-f", str(self.configuration))
        until(lambda: self.nodes() == {"n1": "idle", "n2": "idle"}, f"two idle nodes, and saw {self.nodes()}")

    def start_controller(self) -> None:
        self._daemon("slurmctld", "-f", str(self.configuration))
        until(lambda: "UP" in self.ask("scontrol", "ping"), "the controller")

    def stop_controller(self) -> None:
        end(self._daemons("slurmctld"))

    def nodes(self) -> dict[str, str]:
        lines = self.ask("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def start_now(self, job: str) -> None:
        """Leave out the two minutes that Slurm lets a job wait that was queued again, but for two seconds.

        A node refuses a job that begins in the second in which it has withdrawn that job's credential.
        """
        time.sleep(2)
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def ask(self, *words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        return done.stdout if done.returncode == 0 else ""

    def end_jobs(self) -> None:
        for node in ("n1", "n2"):
            if self.nodes().get(node, "").startswith("down"):
                self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self.ask("scancel", "--user=root")
        self.ask("scancel", "--signal=KILL", "--full", "--user=root")
        until(lambda: not self.ask("squeue", "--noheader").strip(), "the end of all jobs")

    def stop(self) -> list[psutil.Process]:
        """End all daemons; gives back what is left of them or of their jobs."""
        for name in ("slurmd", "slurmctld", "munged"):
            end(self._daemons(name))
        left = processes_naming(self.folder)
        end(left)
        shutil.rmtree(self.folder, ignore_errors=True)
        del os.environ["SLURM_CONF"]
        return left

    def _daemon(self, name: str, *words: str) -> None:
        path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert path is not None
        subprocess.run([path, *words], check=True, timeout=60, stdout=subprocess.DEVNULL)

    def _daemons(self, name: str) -> list[psutil.Process]:
        return [one for one in processes_naming(self.folder) if one.name() == name]


def processes_naming(folder: Path) -> list[psutil.Process]:
    """Every live process with the folder anywhere on its command line, or that works in it."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd()]
            if process.status() != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in words):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def end(processes: list[psutil.Process]) -> None:
    """SIGTERM, and SIGKILL to what is still there after a while."""
    for process in processes:
        process.terminate()
    _, left = psutil.wait_procs(processes, timeout=20)
    for process in left:
        process.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _two_free_ports() -> int:
    """The first of two neighbouring ports that nobody listens on."""
    while True:
        first = _free_port()
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", first))
                other.bind(("127.0.0.1", first + 1))
            except (OSError, OverflowError):
                continue
            return first
