"""``python -m trainer.host``: torchrun for one host's share of a training on several hosts, with what it needs there.

    python -m trainer.host --id first --hosts 2 --host 0 --meet 10.0.0.1:29400 -- --runs /shared/runs --steps 2000
    python -m trainer.host --id first --hosts 2 --host 1 --meet 10.0.0.1:29400 -- --runs /shared/runs --steps 2000

All hosts see the folder of runs at the same path. ``--id`` names the training: used again, it goes on from its newest
checkpoint. The hosts meet at host 0 (torchrun's c10d rendezvous), which the training
needs to its end. Said to torchrun because it cannot find it out by itself: which host that is, and this host's own
address and network interface on the way there. ``--hosts 1:2`` with ``--max-restarts`` lets the training go on, from
there with one host fewer, and again with both when the other is back.

SIGTERM and SIGUSR1 ask for a checkpoint and an end; the exit status is then 0, as of a training that has finished.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from types import FrameType

import psutil

FIRST_PORT, PORTS = 15_000, 15_000
"""Where the hosts of a Slurm job meet: its number picks a port, below those that a kernel hands out by itself."""


def main(arguments: list[str] | None = None) -> int:
    """Be torchrun until the training ends; gives back the exit status."""
    signal.signal(signal.SIGUSR1, _as_sigterm)  # before torch is imported, which takes seconds
    options, words = _parse(sys.argv[1:] if arguments is None else arguments)
    address, port = options.meet
    try:
        own = own_address(address, port)
    except OSError as error:
        print(f"error: --meet {address}:{port}: {error.strerror}. Give an address of host 0.", file=sys.stderr)
        return 2
    if (interface := interface_of(own)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)  # gloo's own guess is what the host's name stands for
    from trainer.parallel.workers import be_torchrun, rendezvous_errors

    settings = {
        "is_host": int(options.host == 0),
        "join_timeout": options.join_s,
        "last_call_timeout": 3,  # s; with all hosts there it does not wait at all
        "keep_alive_interval": max(1, options.dead_after_s // 3),
        "keep_alive_max_attempt": 3,
    }
    torchrun = [
        "--nnodes", options.hosts, "--nproc-per-node", str(options.processes),
        "--max-restarts", str(options.max_restarts), "--shutdown-timeout", str(options.grace_s),
        "--rdzv-backend", "c10d", "--rdzv-id", options.id, "--rdzv-endpoint", f"{address}:{port}",
        "--rdzv-conf", ",".join(f"{name}={value}" for name, value in settings.items()), "--local-addr", own,
    ]  # fmt: skip
    try:
        return be_torchrun(torchrun, words, options.processes)
    except rendezvous_errors() as error:
        print(
            f"error: host {options.host} has lost host 0 at {address}:{port}, where the hosts meet, or never found it "
            f"({type(error).__name__}: {error}). The training has ended here; started again on all hosts with the "
            f"same --id {options.id} it goes on from its newest checkpoint.",
            file=sys.stderr,
        )
        return 1


def own_address(address: str, port: int) -> str:
    """The address of this host on the way to ``address``; nothing is sent.

    Raises:
        OSError: there is no way there.
    """
    family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return probe.getsockname()[0]


def interface_of(address: str) -> str | None:
    """The network interface that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name
    return None


def _as_sigterm(_number: int, _frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)  # which torchrun hands on to its workers


def _meeting_place(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT, such as 10.0.0.1:29400")
    return address.strip("[]"), int(port)


def _parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and what follows ``--``: the trainer's."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.host", description="One host's share of a training; the trainer's options follow --."
    )
    cut = words.index("--") if "--" in words else len(words)
    slurm = "--slurm" in words[:cut]
    parser.add_argument("--hosts", required=True, metavar="N or LEAST:MOST", help="how many hosts train")
    parser.add_argument("--host", required=not slurm, type=int, metavar="I", help="number of this host, from 0")
    parser.add_argument("--meet", required=not slurm, type=_meeting_place, metavar="ADDRESS:PORT", help="of host 0")
    parser.add_argument("--slurm", action="store_true", help="inside srun: takes --host, --meet and --id from there")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this host")
    parser.add_argument("--id", required=not slurm, help="name of the training, the same on all hosts")
    parser.add_argument("--max-restarts", type=int, default=0, metavar="N", help="how often all may start again")
    parser.add_argument("--grace-s", type=int, default=30, metavar="S", help="seconds to save a checkpoint in")
    parser.add_argument("--join-s", type=int, default=600, metavar="S", help="seconds that hosts wait for each other")
    parser.add_argument("--dead-after-s", type=int, default=15, metavar="S", help="silence after which a host is out")
    if slurm:
        parser.set_defaults(**_of_slurm())
    return parser.parse_args(words[:cut]), words[cut + 1 :]


def _of_slurm() -> dict[str, object]:
    """Who this host is among those of a job: srun runs on the first node, and tells all of them its address."""
    job, again = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
    meet = (os.environ["SLURM_LAUNCH_NODE_IPADDR"], FIRST_PORT + int(job) % PORTS)
    return {"host": int(os.environ["SLURM_NODEID"]), "meet": meet, "id": f"{job}-{again}"}


if __name__ == "__main__":
    sys.exit(main())
