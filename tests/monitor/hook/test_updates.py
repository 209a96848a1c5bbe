"""Norms of weights and updates beside the difference of float64 copies, element by element."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import monitor
from monitor.hook.estimates import Moments, adam_update, estimated, moments_of
from monitor.hook.layers import layer_table
from monitor.hook.passes import RowNorms, bites, on_host, owned_by
from monitor.hook.probe import Decoded, Probe, Probes
from monitor.hook.timing import StepClock
from monitor.hook.updates import Updates
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import MLP, PROBLEMS, Problem

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIONS = [
    (SGD, {}),
    (SGD, {"weight_decay": 0.1}),
    (SGD, {"weight_decay": 0.1, "maximize": True}),
    (SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.3}),
    (SGD, {"momentum": 0.9, "nesterov": True}),
    (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    (ADAM, {}),
    (ADAM, {"weight_decay": 0.1, "betas": (0.5, 0.7)}),
    (ADAM, {"amsgrad": True, "weight_decay": 0.1, "maximize": True, "eps": 1e-3}),
    (ADAMW, {}),
    (ADAMW, {"weight_decay": 0.0, "amsgrad": True}),
    (ADAMW, {"weight_decay": 3.0, "maximize": True, "eps": 1e-2}),
]
IMPLEMENTATIONS = [{"foreach": False}, {"foreach": True}, {"fused": True}]


def _copies(model: nn.Module) -> list[np.ndarray]:
    return [_wide(parameter) for parameter in model.parameters()]


def _wide(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.double().numpy().copy()


def _lengths(arrays: list[np.ndarray]) -> np.ndarray:
    return np.array([np.sqrt((array * array).sum()) for array in arrays])


def _measured(probe: Probe, optimizer: torch.optim.Optimizer, watch: Probes | None = None) -> Decoded:
    """What ``probe`` says of one step of ``optimizer``, with the gradients that are there."""
    watch = watch or Probes([probe], StepClock())
    watch.arm()
    watch.begin(watch.step + 1)
    watch.backward_ended()
    watch.before_optimizer(optimizer)
    optimizer.step()
    watch.after_optimizer(optimizer)
    (reading,) = watch.end_step()
    return reading.decode([tensor.detach().numpy() for tensor in reading.tensors])


class Two(nn.Module):
    """Two stacks and a layer that is used from the third step on, so that its step count stays behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = MLP.model()
        self.late = nn.Linear(5, 5)
        self.never = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, late: bool) -> Tensor:
        x = self.stack(x)
        return self.late(x) if late else x


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_estimates_are_the_difference_of_weights_before_and_after(kind, options):
    for how in IMPLEMENTATIONS:
        torch.manual_seed(0)
        model = Two().double()
        groups = [
            {"params": [*model.stack[0].parameters(), model.never], "lr": 0.03},
            {"params": [*model.stack[3:].parameters(), *model.late.parameters()]},
        ]
        optimizer = kind(groups, lr=0.01, **options, **how)
        probe = Updates(layer_table(model))
        for number in range(4):
            optimizer.zero_grad()
            x, y = MLP.batch(number)
            late = number >= 2 or (kind is SGD and "fused" in how)  # which cannot take up momentum later
            functional.cross_entropy(model(x.double(), late), y).backward()
            table = layer_table(model)
            assert all(estimated(optimizer, owned) for owned in owned_by(optimizer, table))
            before = _copies(model)
            layers = _measured(probe, optimizer).layers
            after = _copies(model)
            change, length = _lengths([a - b for a, b in zip(after, before, strict=True)]), _lengths(after)
            (update, _), (weight, present) = layers["update_norm"], layers["weight_norm"]
            np.testing.assert_allclose(update, change, rtol=2e-7, atol=1e-15, err_msg=f"{how}")
            np.testing.assert_allclose(weight, length, rtol=2e-7)
            assert present.all()
            np.testing.assert_allclose(layers["update_to_weight_ratio"][0], change / length, rtol=4e-7, atol=1e-15)
            assert dict(zip(table.names, change > 0, strict=True))["late.bias"] == late
            assert not change[table.names.index("never")]


class Halved(torch.optim.AdamW):
    """Looks like AdamW and does something else."""

    def step(self, closure=None):
        before = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        super().step(closure)
        with torch.no_grad():
            for p, old in zip((p for group in self.param_groups for p in group["params"]), before, strict=True):
                p.lerp_(old, 0.5)


def _cast(dtype: torch.dtype):
    def made() -> nn.Module:
        return MLP.made().to(dtype)

    return made


class Phases(nn.Module):
    """A complex and a real parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.randn(10, 7, dtype=torch.complex64))
        self.out = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.view_as_real(x.to(torch.complex64) @ self.phase).flatten(1))


class Words(nn.Module):
    """An embedding with sparse gradients in front of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.EmbeddingBag(40, 8, sparse=True)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.token((x.abs() * 10).long() % 40))


@pytest.mark.parametrize(
    ("made", "optimizer", "known"),
    [
        (_cast(torch.bfloat16), lambda p: ADAMW(p, lr=1e-2), False),
        (_cast(torch.bfloat16), lambda p: SGD(p, lr=0.1, momentum=0.9), False),
        (MLP.made, lambda p: torch.optim.RMSprop(p, lr=1e-2), False),
        (MLP.made, lambda p: Halved(p, lr=1e-2), False),
        (MLP.made, lambda p: ADAMW(p, lr=1.0, weight_decay=0.9), False),
        (Words, lambda p: SGD(p, lr=0.1), False),
        (Phases, lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), True),
        (Phases, lambda p: ADAMW(p, lr=1e-2, amsgrad=True), True),
        (Phases, lambda p: torch.optim.Adagrad(p, lr=1e-2), False),
        (lambda: MLP.made(), lambda p: ADAM(p, lr=torch.tensor(0.01), foreach=False), True),
    ],
    ids=["bf16 AdamW", "bf16 SGD", "RMSprop", "subclass", "huge decay", "sparse", "complex SGD", "complex AdamW",
         "complex Adagrad", "tensor lr"],
)  # fmt: skip
def test_whatever_the_optimizer_and_the_numbers(made, optimizer, known):
    torch.manual_seed(0)
    model = made()
    optimizer = optimizer(list(model.parameters()))
    probe = Updates(layer_table(model))
    for number in range(3):
        optimizer.zero_grad()
        x, y = MLP.batch(number)
        functional.cross_entropy(model(x.to(next(model.parameters()).real.dtype)).float(), y).backward()
        owned = owned_by(optimizer, layer_table(model))
        assert all(bool(estimated(optimizer, one)) == known for one in owned)
        before = _copies(model)
        layers = _measured(probe, optimizer).layers
        after = _copies(model)
        change = _lengths([a - b for a, b in zip(after, before, strict=True)])
        np.testing.assert_allclose(layers["update_norm"][0], change, rtol=2e-5)
        np.testing.assert_allclose(layers["weight_norm"][0], _lengths(after), rtol=1e-6)


def test_a_subclass_that_calls_its_parent_is_measured_from_outside(tmp_path: Path) -> None:
    """torch then calls the hooks of one step twice, one pair within the other."""
    ADAMW(MLP.made().parameters())  # from now on AdamW.step has hooks of its own
    model = MLP.made()
    optimizer = Halved(model.parameters(), lr=1e-2)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        MLP.loss(model, *MLP.batch(0)).backward()
        before = _copies(model)
        optimizer.step()
        mon.step()
        change = _lengths([a - b for a, b in zip(_copies(model), before, strict=True)])
    np.testing.assert_allclose(recorded.layers(mon.run_dir, stat="update_norm")[1], change, rtol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("micro_steps", [1, 4])
def test_a_whole_loop_records_them(tmp_path: Path, problem: Problem, micro_steps: int) -> None:
    model = problem.made()
    optimizer = ADAMW(model.parameters(), lr=3e-3)
    truth: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in range(1, 43 if micro_steps == 1 else 6):
            optimizer.zero_grad()
            for micro in range(micro_steps):
                (problem.loss(model, *problem.batch(10 * step + micro)) / micro_steps).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            before = _copies(model)
            optimizer.step()
            mon.step()
            after = _copies(model)
            truth[step] = _lengths(after), _lengths([a - b for a, b in zip(after, before, strict=True)])
    steps = [step for step in truth if step <= 10 or step % 20 == 0]
    weights = recorded.layers(mon.run_dir, stat="weight_norm")
    updates = recorded.layers(mon.run_dir, stat="update_norm")
    ratios = recorded.layers(mon.run_dir, stat="update_to_weight_ratio")
    scalars = recorded.scalars(mon.run_dir)
    assert list(weights) == list(updates) == steps
    for step in steps:
        weight, update = truth[step]
        np.testing.assert_allclose(weights[step], weight, rtol=1e-5)
        np.testing.assert_allclose(updates[step], update, rtol=1e-4)  # the rounding of float32 weights
        np.testing.assert_allclose(ratios[step], update / weight, rtol=1e-4)
        assert scalars[step]["weight_norm"] == pytest.approx(np.linalg.norm(weight), rel=1e-5)
        assert scalars[step]["update_norm"] == pytest.approx(np.linalg.norm(update), rel=1e-4)
        assert scalars[step]["update_to_weight_ratio"] == pytest.approx(
            np.linalg.norm(update) / np.linalg.norm(weight), rel=1e-4
        )
    assert recorded.events(mon.run_dir, "warning") == []


@pytest.mark.parametrize("kind", [SGD, ADAMW], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_a_step_skipped_by_the_scaler_has_weights_and_no_update(tmp_path: Path, kind, fused: bool) -> None:
    """Fused, the optimizer is called with scaled gradients and decides on the device whether it does anything."""
    model = MLP.made()
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    overflows = (1, 4)
    truth: dict[int, np.ndarray] = {}
    with monitor.attach(model, optimizer, run=tmp_path, scaler=scaler) as mon:
        for step in range(1, 7):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = MLP.loss(model, *MLP.batch(step)) * (1e35 if step in overflows else 1.0)
            scaler.scale(loss).backward()
            before = _copies(model)
            scaler.step(optimizer)
            scaler.update()
            mon.step()
            truth[step] = _lengths([a - b for a, b in zip(_copies(model), before, strict=True)])
    assert all((truth[step] == 0).all() for step in overflows)
    updates = recorded.layers(mon.run_dir, stat="update_norm")
    assert list(recorded.layers(mon.run_dir, stat="weight_norm")) == [1, 2, 3, 4, 5, 6]
    assert list(updates) == [2, 3, 5, 6]
    for step, update in updates.items():
        np.testing.assert_allclose(update, truth[step], rtol=1e-4)


def test_frozen_layers_are_absent_and_unowned_ones_stand_still(tmp_path: Path) -> None:
    model = MLP.made()
    model[0].weight.requires_grad_(False)
    optimizer = SGD([*model[3].parameters(), model[0].weight], lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        MLP.loss(model, *MLP.batch(0)).backward()
        optimizer.step()
        mon.step()
    update = recorded.layers(mon.run_dir, stat="update_norm")[1]
    weight = recorded.layers(mon.run_dir, stat="weight_norm")[1]
    assert update[0] is None and weight[0] is None
    assert update[1] == update[4] == update[5] == 0.0
    assert update[2] > 0 and update[3] > 0 and weight[1] > 0


def test_without_room_for_a_copy_updates_are_absent_and_it_is_said(tmp_path: Path, monkeypatch) -> None:
    """The room is asked of a CUDA device's allocator, so the answer is given here."""
    monkeypatch.setattr("monitor.hook.updates._room_for", lambda parameters: False)
    model = MLP.made()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in (1, 2):
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(step)).backward()
            optimizer.step()
            mon.step()
    assert recorded.layers(mon.run_dir, stat="update_norm") == {}
    assert list(recorded.layers(mon.run_dir, stat="weight_norm")) == [1, 2]
    (event,) = recorded.events(mon.run_dir, "warning")
    assert event["text"].startswith("update norms are absent")


def test_two_optimizers_are_measured_when_each_steps(tmp_path: Path) -> None:
    model = MLP.made()
    first, second = SGD(model[0].parameters(), lr=0.1), ADAMW(model[3:].parameters(), lr=0.01)
    with monitor.attach(model, [first, second], run=tmp_path) as mon:
        for step in (1, 2, 3):
            before = _copies(model)
            MLP.loss(model, *MLP.batch(step)).backward()
            first.step()
            if step != 2:
                second.step()
            first.zero_grad()
            second.zero_grad()
            mon.step()
            change = _lengths([a - b for a, b in zip(_copies(model), before, strict=True)])
    updates = recorded.layers(mon.run_dir, stat="update_norm")
    np.testing.assert_allclose(updates[3], change, rtol=1e-4)
    assert [value == 0.0 for value in updates[2]] == [False, False, True, True, True, True]


def test_corrections_that_stay_on_a_device_give_the_same():
    """Where the step count is on a device, the corrections are tensors; here the same path with tensors on the CPU."""
    from monitor.hook.estimates import _bias

    torch.manual_seed(0)
    model = Two()
    optimizer = ADAMW(model.parameters(), lr=0.01, weight_decay=0.1)
    table = layer_table(model)
    for number in range(4):
        optimizer.zero_grad()
        functional.cross_entropy(model(MLP.batch(number)[0], number >= 2), MLP.batch(number)[1]).backward()
        optimizer.step()
    (owned,) = owned_by(optimizer, table)
    with torch.no_grad():
        moments = moments_of(optimizer, owned)
        assert moments is not None and len(set(moments.bias1)) == 2
        expected, _ = adam_update(optimizer, moments)
        steps = [optimizer.state[parameter]["step"] for parameter in moments.owned.parameters]
        as_tensors = _bias((0.9, 0.999), steps, on_device=True)
        on_device = Moments(moments.owned, moments.m, moments.v, moments.v_used, *as_tensors)
        got, _ = adam_update(optimizer, on_device)
    torch.testing.assert_close(got.parts, expected.parts, rtol=1e-5, atol=0)


def test_bites_cover_every_element_once():
    sizes = [0, 5, 1 << 17, (1 << 17) + 1, 3 << 17, 1000, 1]
    tensors = [torch.arange(float(size)) for size in sizes]
    tensors.append(torch.ones(700, 700).t())  # not contiguous: never cut
    seen: list[list[int]] = [[] for _ in tensors]
    for bite in bites(tensors):
        pieces = bite.of(tensors)
        assert sum(piece.numel() for piece in pieces) <= 1 << 17 or pieces[0].shape == (700, 700)
        for position, piece in zip(bite.at, pieces, strict=True):
            seen[position] += piece.flatten().tolist() if position < len(sizes) else [piece.numel()]
    assert all(found == list(range(size)) for found, size in zip(seen, sizes, strict=False))
    assert seen[-1] == [490000]


def test_norms_are_put_together_on_the_host():
    norms = [
        RowNorms([0, 0, 2], torch.tensor([3.0, 4.0, 1.0]), factor=torch.tensor(2.0)),
        RowNorms([1], torch.tensor([torch.inf]), factor=0.5),
        RowNorms([3], torch.tensor([9.0]), void=torch.tensor([1.0])),
        RowNorms([4], torch.tensor([torch.nan]), void=torch.tensor([0.0])),
    ]
    values, present = on_host(6, norms, [tensor.numpy() for one in norms for tensor in one.tensors()])
    np.testing.assert_array_equal(values, [10.0, np.inf, 2.0, 0.0, np.nan, 0.0])
    assert present.tolist() == [True, True, True, False, True, False]
