"""Probes measure whole steps, at their cadence, without harm; an error ends the probe and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monitor.hook.handle import Monitor
from monitor.hook.probe import Decoded, Probe, Reading
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from tests.monitor.hook.problems import MLP


class Largest(Probe):
    """Largest output of each module in its last forward of a step, and largest weight before and after the update."""

    name = "largest values"
    every = 4
    first_steps = 2

    def __init__(self, model: nn.Module, fail_at: str = "") -> None:
        super().__init__()
        self.model, self.fail_at = model, fail_at
        self.calls: list[str] = []
        self.outputs: dict[int, Tensor] = {}
        self.weights: list[Tensor] = []
        modules = [module for module in model.modules() if module is not model]
        self.count = len(modules)
        self.handles = [
            module.register_forward_hook(lambda _m, _i, out, index=index: self._saw(index, out))
            for index, module in enumerate(modules)
        ]

    def _saw(self, index: int, out: Tensor) -> None:
        if self.measuring and self.watch.in_forward():
            with self.watch.charged(self):
                self._note("forward")
                self.outputs[index] = out.detach().amax()

    def _note(self, moment: str) -> None:
        self.calls.append(moment)
        if self.fail_at == moment:
            raise RuntimeError("the probe broke")

    def _weight(self) -> Tensor:
        return torch.stack([weight.detach().amax() for weight in self.model.parameters()])

    def begin(self) -> None:
        self._note("begin")
        self.outputs, self.weights = {}, []

    def backward_ended(self) -> None:
        self._note("backward_ended")

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._note("before_optimizer")
        self.weights.append(self._weight())

    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._note("after_optimizer")
        self.weights.append(self._weight())

    def end_step(self) -> Reading | None:
        self._note("end_step")
        if len(self.weights) != 2:
            return None
        seen = torch.stack([self.outputs.get(index, torch.tensor(torch.nan)) for index in range(self.count)])
        return Reading([*self.weights, seen], self._decode)

    def _decode(self, arrays: list[np.ndarray]) -> Decoded:
        before, after, seen = arrays
        return Decoded(
            {"largest": float(after.max())}, {"before": before, "after": after}, {"out": (seen, ~np.isnan(seen))}
        )

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _watched(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *probes: Probe) -> Monitor:
    run = create_run(folder)
    begin_attempt(run)
    return Monitor(
        model, [optimizer], RankWriter(run, 0), run, 0,
        rank=0, world_size=1, scaler=None, planned_steps=None, tokens_per_step=None, probes=probes,
    )  # fmt: skip


def _steps(mon: Monitor, model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[Tensor]:
    """Train and return the weights' largest values after each step."""
    after = []
    for number in range(first, last + 1):
        optimizer.zero_grad()
        MLP.loss(model, *MLP.batch(number)).backward()
        optimizer.step()
        mon.step()
        after.append(torch.stack([weight.detach().amax() for weight in model.parameters()]))
    return after


def _made() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = MLP.made()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_values_of_measured_steps_arrive_by_layer_and_by_module(tmp_path: Path) -> None:
    model, optimizer = _made()
    probe = Largest(model)
    with _watched(tmp_path, model, optimizer, probe) as mon:
        after = _steps(mon, model, optimizer, 1, 9)
    run = open_run(mon.run_dir)
    measured = [1, 2, 4, 8]  # the first two, then every fourth
    matrix = run.layers("after")
    assert matrix.step.tolist() == measured
    assert matrix.names == tuple(name for name, _ in model.named_parameters())
    np.testing.assert_array_equal(matrix.value, torch.stack([after[step - 1] for step in measured]).numpy())
    np.testing.assert_array_equal(run.layers("before").value[1], after[0].numpy())
    assert run.series("largest").step.tolist() == measured
    out = run.modules("out")
    assert out.names == tuple(name for name, _ in model.named_modules() if name)
    assert (out.step.tolist(), out.present.all()) == (measured, True)
    assert run.module_stats == ("out",)
    assert run.layers("grad_norm_preclip").step.tolist() == list(range(1, 10))  # the norms keep their own cadence


def test_after_an_early_sign_every_step_is_measured_for_a_while(tmp_path: Path) -> None:
    model, optimizer = _made()
    probe = Largest(model)
    with _watched(tmp_path, model, optimizer, probe) as mon:
        _steps(mon, model, optimizer, 1, 5)
        assert not probe.watch.armed
        probe.watch.arm(3)
        _steps(mon, model, optimizer, 6, 12)
        assert not probe.watch.armed
    assert open_run(mon.run_dir).layers("after").step.tolist() == [1, 2, 4, 6, 7, 8, 12]


def test_the_moments_come_in_the_order_of_the_step(tmp_path: Path) -> None:
    model, optimizer = _made()
    probe = Largest(model)
    with _watched(tmp_path, model, optimizer, probe) as mon:
        _steps(mon, model, optimizer, 1, 1)
        calls = list(dict.fromkeys(probe.calls))
        assert calls == ["begin", "forward", "backward_ended", "before_optimizer", "after_optimizer", "end_step"]
        assert probe.spent_ns > 0


def test_what_the_model_is_given_is_shown_once_per_training_pass(tmp_path: Path) -> None:
    class Given(Probe):
        every = 2

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, Tensor]] = []

        def forward_begins(self, args: tuple[Tensor, ...], kwargs: object) -> None:
            self.seen.append((self.watch.step, args[0].clone()))

    model, optimizer = _made()
    probe = Given()
    assert probe.moments == {"forward_begins"}
    with _watched(tmp_path, model, optimizer, probe) as mon:
        for step in (1, 2, 3):
            optimizer.zero_grad()
            for micro in (0, 1):
                MLP.loss(model, *MLP.batch(10 * step + micro)).backward()
            with mon.phase("eval"):
                model(MLP.batch(0)[0])
            optimizer.step()
            mon.step()
    assert [step for step, _ in probe.seen] == [2, 2]
    assert all(torch.equal(seen, MLP.batch(20 + at)[0]) for at, (_, seen) in enumerate(probe.seen))


def test_a_forward_of_an_evaluation_is_not_the_training_s(tmp_path: Path) -> None:
    model, optimizer = _made()
    probe = Largest(model)
    with _watched(tmp_path, model, optimizer, probe) as mon:
        _steps(mon, model, optimizer, 1, 1)
        probe.calls.clear()
        with torch.no_grad(), mon.phase("eval"):
            model(MLP.batch(0)[0])
        assert "forward" not in probe.calls


def test_the_second_pass_of_activation_checkpointing_is_not_counted(tmp_path: Path) -> None:
    inner = MLP.made()

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Largest(model)
    with _watched(tmp_path, model, optimizer, probe) as mon:
        _steps(mon, model, optimizer, 1, 1)
    assert probe.calls.count("forward") == probe.count


@pytest.mark.parametrize("moment", ["begin", "forward", "backward_ended", "before_optimizer", "end_step"])
def test_a_probe_that_fails_is_taken_out_and_the_training_goes_on(tmp_path: Path, not_strict, moment: str) -> None:
    model, optimizer = _made()
    twin = copy.deepcopy(model)
    its_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    broken, whole = Largest(model, fail_at=moment), Largest(model)
    with _watched(tmp_path, model, optimizer, broken, whole) as mon:
        _steps(mon, model, optimizer, 1, 3)
    for number in range(1, 4):
        its_optimizer.zero_grad()
        MLP.loss(twin, *MLP.batch(number)).backward()
        its_optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert broken.calls.count(moment) == 1
    assert [str(warning.message) for warning in not_strict if "largest values" in str(warning.message)]
    assert open_run(mon.run_dir).layers("after").step.tolist() == [1, 2]


def test_closing_takes_every_hook_out(tmp_path: Path) -> None:
    model, optimizer = _made()
    with _watched(tmp_path, model, optimizer, Largest(model)) as mon:
        _steps(mon, model, optimizer, 1, 1)
    assert all(not module._forward_hooks for module in model.modules())


def test_an_early_sign_keeps_the_steps_before_it_and_after_it_in_full(tmp_path: Path) -> None:
    model, optimizer = _made()
    run_dir = create_run(tmp_path)
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0, rows_per_batch=4, layer_budget_bytes=20_000)
    mon = Monitor(model, [optimizer], writer, run_dir, 0, probes=[Largest(model)], background=False)
    with mon:
        _steps(mon, model, optimizer, 1, 160)
        mon.sync()  # thinned by now
        _steps(mon, model, optimizer, 161, 170)
        mon._probes.arm(8)
        _steps(mon, model, optimizer, 171, 220)
    run = open_run(run_dir)
    steps = run.layers("grad_norm_preclip").step.tolist()
    assert set(range(166, 179)) <= set(steps)
    assert len(steps) < 220
    assert set(range(171, 179)) <= set(run.layers("after").step.tolist())
    dense = run.ranks(0)[0].dense.blocks
    assert dense and set(dense[0].step.view().tolist()) < set(steps)
