"""How much is measured, and when."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import monitor
from monitor.hook.detail import default_probes
from monitor.hook.probe import Probes
from monitor.hook.timing import StepClock
from monitor.runfile.reader import open_run
from monitor.signals import CATALOGUE, LAYER_CATALOGUE
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import CNN, GPT, MLP, Problem
from tests.monitor.hook.torchrun import run_ranks


def _train(problem: Problem, folder: Path | None, detail: str, steps: int = 45, arm_at: int = 0):
    model = problem.made(seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, amsgrad=True)
    mon = monitor.attach(model, optimizer, run=folder, detail=detail) if folder else None  # type: ignore[arg-type]
    for step in range(1, steps + 1):
        if mon and step == arm_at:
            mon._probes.arm(5)
        optimizer.zero_grad()
        problem.loss(model, *problem.batch(step)).backward()
        optimizer.step()
        if mon:
            mon.step()
    if mon:
        mon.close()
    return mon, model


def test_the_default_set_at_its_cadences(tmp_path: Path) -> None:
    mon, _ = _train(MLP, tmp_path, "standard", arm_at=26)
    armed = [*range(26, 31)]
    found = {stat: list(recorded.layers(mon.run_dir, stat=stat)) for stat in open_run(mon.run_dir).layer_stats}
    dense = [*range(1, 11)]
    assert found.pop("grad_norm_preclip") == [*range(1, 46)]
    assert found.pop("grad_abs_max") == found.pop("grad_zero_share") == [*dense, 20, *armed, 40]
    assert found.pop("adam_rms") == [*dense, 12, 16, 20, 24, *armed, 32, 36, 40, 44]
    assert found.pop("adam_floor_share") == [1, *armed]
    assert found.pop("grad_cosine") == [*dense[1:], 20, *armed[1:], 40]
    for stat in ("weight_norm", "update_norm", "update_to_weight_ratio", "update_cosine"):
        assert found.pop(stat) == [*dense, 20, *armed, 40], stat
    assert found == {}


@pytest.mark.parametrize("detail", ["standard", "full"])
def test_everything_recorded_is_in_the_catalogue(tmp_path: Path, detail: str) -> None:
    mon, _ = _train(MLP, tmp_path, detail, 6)
    run = open_run(mon.run_dir)
    assert set(run.layer_stats) <= LAYER_CATALOGUE.keys()
    assert set(run.names) <= CATALOGUE.keys()
    assert ("grad_nonfinite_share" in run.layer_stats) == (detail == "full")


def test_norms_alone(tmp_path: Path) -> None:
    mon, _ = _train(MLP, tmp_path, "norms", 3)
    assert open_run(mon.run_dir).layer_stats == ("grad_norm_preclip",)


@pytest.mark.parametrize("detail", ["all", None, 3])
def test_another_word_is_refused_before_anything_is_made(tmp_path: Path, detail) -> None:
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"detail is .*; accepted are 'norms' .*, 'standard', and 'full'"):
        monitor.attach(model, optimizer, run=tmp_path, detail=detail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("problem", [CNN, GPT], ids=lambda problem: problem.name)
def test_the_most_detail_changes_no_bit(tmp_path: Path, problem: Problem) -> None:
    torch.manual_seed(1)
    _, watched = _train(problem, tmp_path, "full", 24, arm_at=11)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    _, alone = _train(problem, None, "full", 24)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(
        torch.equal(a, b) for a, b in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True)
    )


def test_no_copy_of_the_weights_outlives_its_step() -> None:
    model = MLP.made()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01)  # known by no formula: copies
    probes = default_probes("full", model, [optimizer])
    held = [value for probe in probes for value in vars(probe).values() if isinstance(value, torch.Tensor)]
    assert held == []


def test_nothing_is_read_from_the_device_while_the_loop_runs():
    """``item`` would make the host wait on a device. Nothing in between needs a value, so nothing may ask for one."""

    class Asked(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls.append(str(func))
            return func(*args, **(kwargs or {}))

    for problem, kind in itertools.product((CNN, GPT), (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop)):
        model = problem.made()
        optimizer = kind(model.parameters(), lr=0.01)
        watch = Probes(default_probes("full", model, [optimizer]), StepClock())
        watch.arm()
        for step in (1, 2):
            problem.loss(model, *problem.batch(step)).backward()
            with Asked() as before:
                watch.begin(step)
                watch.backward_ended()
                watch.before_optimizer(optimizer)
            optimizer.step()
            with Asked() as after:
                watch.after_optimizer(optimizer)
                readings = watch.end_step()
            assert len(readings) >= 3
            calls = before.calls + after.calls
            assert len(calls) > 50
            # ``item`` and indexing by a mask, whose result's size the host would have to wait for.
            assert not {"aten._local_scalar_dense.default", "aten.nonzero.default"} & set(calls)


_RANK = """
import sys
import torch
import torch.distributed as dist
import monitor
from tests.monitor.hook.problems import MLP

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.set_num_threads(1)
inner = MLP.made()
model = torch.nn.parallel.DistributedDataParallel(inner)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
with monitor.attach(model, optimizer, run=sys.argv[1], detail="full") as mon:
    for step in range(1, 5):
        optimizer.zero_grad()
        MLP.loss(model, *MLP.batch(2 * step + rank)).backward()
        mon.clip_grad_norm_(0.5)
        optimizer.step()
        mon.step()
dist.destroy_process_group()
if rank == 0:  # two ranks that print at once may do so into one line
    print(mon.run_dir)
"""


def test_two_ranks_measure_the_same_reduced_gradient_and_the_same_update(tmp_path: Path) -> None:
    run_dir = Path(run_ranks(tmp_path, _RANK, 2, str(tmp_path / "runs")).splitlines()[-1])

    model = MLP.made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with monitor.attach(model, optimizer, run=tmp_path / "one", detail="full") as one:
        for step in range(1, 5):
            optimizer.zero_grad()
            for rank in (0, 1):
                (MLP.loss(model, *MLP.batch(2 * step + rank)) / 2).backward()
            one.clip_grad_norm_(0.5)
            optimizer.step()
            one.step()
    for stat in ("weight_norm", "update_norm", "adam_rms", "grad_abs_max", "grad_cosine", "update_cosine"):
        alone = recorded.layers(one.run_dir, stat=stat)
        first, second = (recorded.layers(run_dir, rank=rank, stat=stat) for rank in (0, 1))
        assert first == second
        assert list(first) == list(alone)
        for step, values in alone.items():
            assert first[step] == pytest.approx(values, rel=1e-3, abs=1e-4), (stat, step)
    assert recorded.events(run_dir, "warning") == []
