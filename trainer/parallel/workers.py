"""Start the processes of a training on this machine: be torchrun."""

from __future__ import annotations

import os

import torch.distributed.run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def run_workers(processes: int, words: list[str]) -> int:
    """Be torchrun for that many ``python -m trainer`` workers on this machine; gives back their exit code.

    Signals go on to the workers. torchrun itself ends with an exception after one, even when all workers left cleanly.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    here = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(processes)]
    try:
        torchrun.run(torchrun.parse_args([*here, "-m", "trainer", *words]))
    except SignalException:
        return 0
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 1
    return 0
