"""What two ranks run for test_ranks.py: small trainings of every kind, in one start of torch.

Usage: torchrun on_ranks.py FOLDER. Each rank leaves what it found in FOLDER/rank-N.pt.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import monitor
from monitor.hook.communication import DeviceCommunication
from monitor.hook.handle import Monitor
from monitor.hook.probe import Probes
from monitor.hook.timing import StepClock
from tests.monitor.hook.problems import GPT, MLP
from tests.monitor.hook.twin import norms_of_grads

Ddp = nn.parallel.DistributedDataParallel
SLOW_STEP = 6
POKED = "3.weight"


def attached(model: nn.Module, optimizer: torch.optim.Optimizer, name: str, **options: Any) -> Monitor:
    options = {"detail": "full", "budget": 1.0, **options}
    return monitor.attach(model, optimizer, run=sys.argv[1], name=name, **options)


def alone(problem: Any, model: nn.Module, batches: list[int]) -> list[float | None]:
    """Norms per layer of this rank's own gradient: another model with these weights, nobody reduces."""
    own = problem.made()
    own.load_state_dict({name: value.detach().clone() for name, value in model.state_dict().items()})
    for batch in batches:
        (problem.loss(own, *problem.batch(batch)) / len(batches)).backward()
    return norms_of_grads(own)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def train(kind: str, watched: bool) -> dict[str, Any]:
    """``plain``, ``accumulated`` with no_sync, ``synced`` in every micro-step, or ``views`` into DDP's buckets."""
    inner = MLP.made()
    model = Ddp(inner, gradient_as_bucket_view=kind == "views", bucket_cap_mb=0.002)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mon = attached(model, optimizer, kind) if watched else None
    micro_steps = 2 if kind in ("accumulated", "synced") else 1
    found: dict[str, Any] = {"own": [], "reduced": []}
    for step in range(1, 13):
        batches = [100 * step + 10 * rank + micro for micro in range(micro_steps)]
        if mon is not None:
            with mon.phase("eval"):
                found["own"].append(alone(MLP, inner, batches))
        optimizer.zero_grad()
        for micro, batch in enumerate(batches):
            if kind == "plain" and mon is not None and step == SLOW_STEP and rank == 1:
                time.sleep(0.5)
            last = micro == micro_steps - 1
            with contextlib.nullcontext() if last or kind == "synced" else model.no_sync():
                (MLP.loss(model, *MLP.batch(batch)) / micro_steps).backward()
        found["reduced"].append(norms_of_grads(inner))
        optimizer.step()
        if mon is not None:
            mon.step(loss=float(rank))
    if mon is not None:
        mon.close()
        found["run"] = str(mon.run_dir)
        found["hooks"] = sum(len(p._post_accumulate_grad_hooks or ()) for p in inner.parameters())
    found["weights"] = weights(inner)
    return found


def noisy() -> dict[str, Any]:
    """The gradient of the mean of x·w is the mean of x: |G|² and tr(Σ) are known."""
    width, samples, mu = 50, 8, 0.3
    model = Ddp(nn.Linear(width, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(rank)
    with attached(model, optimizer, "noisy") as mon:
        mon._probes.arm(10**6)  # every step is measured: the averages need many
        for _ in range(800):
            model(mu + torch.randn(samples, width, generator=generator)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            mon.step()
    return {"run": str(mon.run_dir), "expected": 1 / mu**2 / (2 * samples)}


class HostEvent:
    """An event of a device that does at once what it is told, on the clock that DDP's own timers read."""

    def record(self) -> None:
        self.ns = time.time_ns()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: Any) -> float:
        return (end_event.ns - self.ns) * 1e-6


def by_events() -> list[dict[str, Any]]:
    """What the events of each step say beside DDP's timers, and when each gradient was there."""
    inner = MLP.made()
    model = Ddp(inner, bucket_cap_mb=0.002)
    model._set_ddp_runtime_logging_sample_rate(1)
    probe = DeviceCommunication(model, HostEvent)
    probes = Probes([probe], StepClock())
    probes.in_backward = lambda: True
    found = []
    for step in range(1, 6):
        probes.begin(step)
        there: list[int] = []
        for parameter in inner.parameters():
            probe._handles.append(
                parameter.register_post_accumulate_grad_hook(lambda _, there=there: there.append(time.time_ns()))
            )
        MLP.loss(model, *MLP.batch(10 * step + rank)).backward()
        probes.backward_ended()
        marks = [event.ns for event in probe._marks or ()]
        values = [dict(reading.decode([]).scalars) for reading in probes.end_step()]
        model.logger.set_runtime_stats_and_log()
        times = model._get_ddp_logging_data()
        of_ddp = [times[f"backward_{name}"] for name in ("comm_time_start", "compute_time_end", "comm_time_end")]
        found.append({"marks": marks, "ddp": of_ddp, "there": there, "values": values})
    found.append({"hooks": sum(len(p._post_accumulate_grad_hooks or ()) for p in inner.parameters())})
    return found


def hooked() -> str:
    """A communication hook that adds up, so that the reduced gradient is not the mean."""
    model = Ddp(nn.Linear(3, 1))

    def adds_up(_state, bucket):  # torch refuses annotations that are strings
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    model.register_comm_hook(None, adds_up)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with attached(model, optimizer, "hooked") as mon:
        for _ in range(30):
            model(torch.full((2, 3), 1.0 + rank)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            mon.step()
    return str(mon.run_dir)


def joined() -> dict[str, Any]:
    """Rank 1 has data for fewer steps."""
    inner = MLP.made()
    model = Ddp(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attached(model, optimizer, "joined") as mon, model.join():
        for step in range(14 - 6 * rank):
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(10 * step + rank)).backward()
            optimizer.step()
            mon.step()
    return {"run": str(mon.run_dir), "weights": weights(inner)}


def poked() -> str:
    """After step 7 one weight of rank 1 is another by 1e-7."""
    inner = MLP.made()
    model = Ddp(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attached(model, optimizer, "poked") as mon:
        for step in range(1, 16):
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(10 * step + rank)).backward()
            optimizer.step()
            if step == 7 and rank == 1:
                with torch.no_grad():
                    dict(inner.named_parameters())[POKED][2, 3] += 1e-7
            mon.step(loss=float(rank))
    return str(mon.run_dir)


def sharded(watched: bool, reduces: str) -> dict[str, Any]:
    inner = GPT.made()
    for block in inner.blocks:
        fully_shard(block)
    model: Any = fully_shard(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mon = attached(model, optimizer, f"sharded {reduces}") if watched else None
    plain = GPT.made()
    found: dict[str, Any] = {"own": []}
    names = [name for name, _ in plain.named_parameters()]
    for step in range(1, 4):
        batches = [100 * step + 10 * rank + micro for micro in range(2)]
        if mon is not None:
            whole = [p.full_tensor() for p in model.parameters()]
            plain.load_state_dict(dict(zip(names, whole, strict=True)), strict=False)
            with mon.phase("eval"):
                found["own"].append(alone(GPT, plain, batches))
        optimizer.zero_grad()
        for micro, batch in enumerate(batches):
            model.set_requires_gradient_sync(micro == 1 or reduces == "always")
            (GPT.loss(model, *GPT.batch(batch)) / 2).backward()
        optimizer.step()
        if mon is not None:
            mon.step()
    if mon is not None:
        mon.close()
        found["run"] = str(mon.run_dir)
        groups = [group for module in model.modules() for group in _groups(module)]
        found["comms"] = sorted({type(group._reduce_scatter_comm).__name__ for group in groups})
    return {**found, "names": names, "weights": [p.full_tensor().detach() for p in model.parameters()]}


def _groups(module: Any) -> list[Any]:
    return module._get_fsdp_state()._fsdp_param_groups if hasattr(module, "_get_fsdp_state") else []


def main() -> None:
    found: dict[str, Any] = {}
    for kind in ("plain", "accumulated", "synced", "views"):
        found[kind] = train(kind, watched=True)
        found[kind]["bare"] = train(kind, watched=False)["weights"]
    found["noisy"], found["hooked"], found["events"] = noisy(), hooked(), by_events()
    found["joined"], found["poked"] = joined(), poked()
    for reduces in ("once", "always"):
        found[f"sharded {reduces}"] = sharded(True, reduces)
        found[f"sharded {reduces}"]["bare"] = sharded(False, reduces)["weights"]
    torch.save(found, f"{sys.argv[1]}/rank-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    main()
    dist.destroy_process_group()
