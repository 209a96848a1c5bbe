"""Optimizers that run forward and backward themselves: the same numbers as without, or none with the reason."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monitor
from monitor.hook.handle import Monitor
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import MLP
from tests.monitor.hook.twin import total

ABOUT_STEPS = ("update_norm", "update_to_weight_ratio", "weight_norm", "adam_rms", "grad_norm_preclip", "grad_abs_max")


def _attached(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Monitor:
    return monitor.attach(model, optimizer, run=folder, detail="full", budget=1.0)


def _evaluation(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, clip: bool) -> Callable[[], Tensor]:
    """What Lightning hands to the optimizer: all of the step, clipping included."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = MLP.loss(model, *MLP.batch(step))
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return loss

    return closure


def _notes(mon: Monitor) -> list[str]:
    return [event["text"] for event in recorded.events(mon.run_dir, "note") if "NVML" not in event["text"]]


class Passing(torch.optim.AdamW):
    """Gives the closure on to its parent's step."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Evaluating(torch.optim.AdamW):
    """Evaluates the closure itself."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, Passing, Evaluating])
def test_a_closure_gives_the_numbers_of_a_plain_loop(tmp_path: Path, kind: Any, clip: bool) -> None:
    runs, weights = {}, {}
    for way in ("closure", "plain"):
        model = MLP.made()
        plain = torch.optim.AdamW if issubclass(kind, torch.optim.AdamW) else kind
        optimizer = (kind if way == "closure" else plain)(model.parameters(), lr=0.01)
        with _attached(tmp_path / way, model, optimizer) as mon:
            for step in range(1, 5):
                evaluate = _evaluation(model, optimizer, step, clip)
                if way == "closure":
                    loss = optimizer.step(closure=evaluate)
                else:
                    loss = evaluate()
                    optimizer.step()
                mon.step(loss=loss)
        runs[way], weights[way] = mon.run_dir, list(model.parameters())
        assert recorded.events(mon.run_dir, "warning") == []
        assert _notes(mon) == []
    assert all(torch.equal(a, b) for a, b in zip(weights["closure"], weights["plain"], strict=True))
    for step, row in recorded.scalars(runs["plain"]).items():
        other = recorded.scalars(runs["closure"])[step]
        timed = {name for name in (*row, *other) if name.endswith("_s")} | {"time"}
        assert {k: v for k, v in other.items() if k not in timed} == pytest.approx(
            {k: v for k, v in row.items() if k not in timed}, rel=1e-4
        )
    compared = 0
    for stat in ABOUT_STEPS:
        if kind in (Passing, Evaluating) and stat == "adam_rms":
            continue  # of a class that is not torch's own this is not measured
        of_plain, of_closure = (recorded.layers(runs[way], stat=stat) for way in ("plain", "closure"))
        assert list(of_plain) == list(of_closure)
        for step, values in of_plain.items():
            assert of_closure[step] == pytest.approx(values, rel=1e-3), (stat, step)
            compared += 1
    assert compared > 15


def test_lbfgs_moves_as_far_as_its_weights_say(tmp_path: Path) -> None:
    model, alone = MLP.made(), MLP.made()
    moved, lost = [], []
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    with _attached(tmp_path, model, optimizer) as mon:
        for step in range(1, 5):
            before = [p.detach().clone() for p in model.parameters()]
            lost.append(optimizer.step(_evaluation(model, optimizer, step, clip=False)).item())
            after = list(model.parameters())
            moved.append([float((a - b).detach().double().norm()) for a, b in zip(after, before, strict=True)])
            mon.step(loss=lost[-1])
    updates = recorded.layers(mon.run_dir, stat="update_norm")
    rows = recorded.scalars(mon.run_dir)
    for step, norms in enumerate(moved, 1):
        assert updates[step] == pytest.approx(norms, rel=1e-4)
        assert rows[step]["update_norm"] == pytest.approx(total(norms), rel=1e-4)
        assert "gradient_noise_scale" not in rows[step]  # its evaluations are no micro-batches
    (note,) = _notes(mon)
    assert "several times in a step" in note
    assert recorded.events(mon.run_dir, "warning") == []

    optimizer = torch.optim.LBFGS(alone.parameters(), lr=0.5, max_iter=4)
    for step in range(1, 5):
        assert optimizer.step(_evaluation(alone, optimizer, step, clip=False)).item() == lost[step - 1]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))


class Sharpness(torch.optim.SGD):
    """Climbs before it evaluates, as sharpness-aware minimisation does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        climbs = [(p, 0.05 * p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter, climb in climbs:
            parameter.add_(climb)
        with torch.enable_grad():
            loss = closure()
        for parameter, climb in climbs:
            parameter.sub_(climb)
        super().step()
        return loss


def test_weights_moved_before_the_closure_leave_the_update_out_and_say_why(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = Sharpness(model.parameters(), lr=0.1)
    used = []
    with _attached(tmp_path, model, optimizer) as mon:
        for step in range(1, 4):
            _evaluation(model, optimizer, step, clip=False)()
            optimizer.step(_evaluation(model, optimizer, step, clip=False))
            used.append(total([float(p.grad.norm()) for p in model.parameters() if p.grad is not None]))
            mon.step()
    rows = recorded.scalars(mon.run_dir)
    for step, norm in enumerate(used, 1):
        assert rows[step]["grad_norm_preclip"] == pytest.approx(norm, rel=1e-5)
        assert "update_norm" not in rows[step]
        assert "weight_norm" in rows[step]
    assert [("changes the weights before" in note) for note in _notes(mon)] == [True]


def test_a_closure_that_is_not_evaluated_leaves_the_gradients_as_they_are(tmp_path: Path) -> None:
    class Deaf(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step()

    model = MLP.made()
    optimizer = Deaf(model.parameters(), lr=0.1)
    with _attached(tmp_path, model, optimizer) as mon:
        for step in range(1, 4):
            _evaluation(model, optimizer, step, clip=False)()
            norm = total([float(p.grad.norm()) for p in model.parameters() if p.grad is not None])
            optimizer.step(lambda: 0.0)
            mon.step()
            assert recorded.events(mon.run_dir, "warning") == []
    assert recorded.scalars(mon.run_dir)[3]["grad_norm_preclip"] == pytest.approx(norm, rel=1e-5)


def test_two_monitors_and_an_error_in_the_closure(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def broken() -> Tensor:
        raise ValueError("no data")

    with _attached(tmp_path / "a", model, optimizer) as first, _attached(tmp_path / "b", model, optimizer) as second:
        for step in range(1, 4):
            if step == 2:
                with pytest.raises(ValueError, match="no data"):
                    optimizer.step(broken)
                with contextlib.suppress(ValueError):
                    optimizer.step(closure=broken)
            optimizer.step(_evaluation(model, optimizer, step, clip=False))
            first.step()
            second.step()
    one, other = (recorded.layers(mon.run_dir, stat="update_norm") for mon in (first, second))
    assert list(one) == [1, 2, 3]
    assert one == other
