"""Start the processes of a training on this machine: be torchrun."""

from __future__ import annotations

import os

import torch.distributed.run as torchrun
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError

from trainer.config import ParallelConfig


def run_workers(config: ParallelConfig, words: list[str]) -> int:
    """Be torchrun for the ``python -m trainer`` workers of ``config`` on this machine; gives back their exit code.

    When one dies all are ended and started again, up to ``config.max_restarts`` times; they find the run by
    themselves and go on from its newest checkpoint.
    """
    here = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(config.processes)]
    return be_torchrun([*here, "--max-restarts", str(config.max_restarts)], words, config.processes)


def be_torchrun(options: list[str], words: list[str], processes: int) -> int:
    """Be torchrun with ``options`` for ``python -m trainer WORDS``, ``processes`` of which are on this host.

    Signals go on to the workers. torchrun itself ends with an exception after one, even when all workers left cleanly.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # 2.13's default keeps a host from joining again
    try:
        torchrun.run(torchrun.parse_args([*options, "-m", "trainer", *words]))
    except SignalException:
        return 0
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 1
    return 0


def rendezvous_errors() -> tuple[type[Exception], ...]:
    """What torchrun raises when the place where the hosts meet cannot be reached."""
    return RendezvousError, DistError
