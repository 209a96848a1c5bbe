"""Norms and clipping: the same bits as torch's, true per-layer numbers, and a stage that is never mislabelled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import monitor
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import CNN, GPT, MLP
from tests.monitor.hook.twin import norms_of_grads, total

torch_clip = torch.nn.utils.clip_grad_norm_  # as a loop has it that imported the name before attach


class Holder(nn.Module):
    """Parameters with gradients of our choice."""

    def __init__(self, *grads: torch.Tensor | None) -> None:
        super().__init__()
        for number, grad in enumerate(grads):
            like = torch.zeros(3) if grad is None else grad
            parameter = nn.Parameter(torch.zeros(like.shape, dtype=like.dtype))
            if grad is not None:
                parameter.grad = grad.clone()
            self.register_parameter(f"p{number}", parameter)

    def forward(self) -> torch.Tensor:
        return sum((p.float().sum() for p in self.parameters()), torch.zeros(()))


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


GRADS = {
    "float32": [_random(7, 5), _random(300), _random(2, 3, 4), _random(1)],
    "many": [_random(n + 1, seed=n) for n in range(90)],
    "float64 and float32": [_random(7), _random(9).double(), _random(11), _random(13).double()],
    "bfloat16": [_random(70, dtype=torch.bfloat16), _random(9, dtype=torch.bfloat16)],
    "float16 and float32": [_random(70, dtype=torch.float16), _random(9), _random(5, dtype=torch.float16), _random(2)],
    "complex": [torch.complex(_random(6), _random(6, seed=1)), _random(4)],
    "some absent": [_random(7), None, _random(9), None],
    "none at all": [None, None],
    "zero": [torch.zeros(5), torch.zeros(2)],
    "NaN": [_random(7), torch.tensor([1.0, math.nan])],
    "infinity": [_random(7), torch.tensor([1.0, math.inf])],
    "overflow": [torch.full((4,), 1e20), _random(3)],
    "tiny": [torch.full((4,), 1e-12), torch.full((3,), 1e-9)],
}


@pytest.mark.parametrize("through", ["monitor", "torch"])
@pytest.mark.parametrize("max_norm", [0.1, 1e9])
@pytest.mark.parametrize("grads", GRADS.values(), ids=GRADS.keys())
def test_clipping_is_bit_identical_to_torchs(tmp_path, grads, max_norm, through):
    ours, theirs = Holder(*grads), Holder(*grads)
    expected = torch_clip(theirs.parameters(), max_norm)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    with monitor.attach(ours, optimizer, run=tmp_path) as mon:
        if through == "monitor":
            got = mon.clip_grad_norm_(max_norm)
        else:
            got = torch.nn.utils.clip_grad_norm_(ours.parameters(), max_norm)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert torch.equal(got, expected) or (got.isnan() and expected.isnan())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert torch.equal(torch.nan_to_num(a.grad, nan=7.0), torch.nan_to_num(b.grad, nan=7.0))


@pytest.mark.parametrize("grads", GRADS.values(), ids=GRADS.keys())
def test_recorded_norms_are_those_of_the_elements(tmp_path, grads):
    model = Holder(*grads)
    each = norms_of_grads(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        mon.clip_grad_norm_(0.5)
        optimizer.step()
        mon.step()
    row = recorded.scalars(mon.run_dir)[1]
    if not any(grad is not None for grad in grads):
        assert "grad_norm_preclip" not in row
        assert recorded.layers(mon.run_dir) == {}
        return
    got = recorded.layers(mon.run_dir)[1]
    assert [value is None for value in got] == [value is None for value in each]
    np.testing.assert_allclose(_floats(got), _floats(each), rtol=2e-6)
    np.testing.assert_allclose(row["grad_norm_preclip"], total(each), rtol=2e-6)
    assert row["clip_max_norm"] == 0.5
    after = norms_of_grads(model)
    low = any(grad is not None and grad.dtype in (torch.bfloat16, torch.float16) for grad in grads)
    np.testing.assert_allclose(row["grad_norm_postclip"], total(after), rtol=2e-2 if low else 2e-6, atol=1e-30)


def _floats(values):
    return np.array([math.nan if value is None else value for value in values])


def _loop(problem, model, optimizer, mon, steps, between=lambda step: None):
    """A plain loop; ``between`` is called between backward and the optimizer step. Returns the twin's numbers."""
    truth = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        problem.loss(model, *problem.batch(step)).backward()
        before = norms_of_grads(model)
        between(step)
        truth.append((before, norms_of_grads(model)))
        optimizer.step()
        mon.step()
    return truth


@pytest.mark.parametrize("problem", [MLP, CNN, GPT], ids=lambda p: p.name)
def test_without_clipping_both_stages_are_the_same_number(tmp_path, problem):
    model = problem.made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        truth = _loop(problem, model, optimizer, mon, 4)
    rows, layers = recorded.scalars(mon.run_dir), recorded.layers(mon.run_dir)
    for step, (before, _) in enumerate(truth, 1):
        np.testing.assert_allclose(layers[step], before, rtol=3e-6)
        assert rows[step]["grad_norm_preclip"] == pytest.approx(total(before), rel=3e-6)
        assert rows[step]["grad_norm_postclip"] == rows[step]["grad_norm_preclip"]
        assert rows[step]["clip_coef"] == 1.0
        assert "clip_max_norm" not in rows[step]
    assert recorded.events(mon.run_dir, "warning") == []


def _check_stages(run_dir, truth, known_from=1):
    rows, layers = recorded.scalars(run_dir), recorded.layers(run_dir)
    for step, (before, after) in enumerate(truth, 1):
        assert rows[step]["grad_norm_postclip"] == pytest.approx(total(after), rel=1e-5)
        if step < known_from:
            assert "grad_norm_preclip" not in rows[step]
            assert step not in layers
        else:
            np.testing.assert_allclose(layers[step], before, rtol=1e-5)
            assert rows[step]["grad_norm_preclip"] == pytest.approx(total(before), rel=1e-5)
    return rows


def test_the_users_own_clip_call_is_recognised(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        assert torch.nn.utils.clip_grad_norm_ is torch.nn.utils.clip_grad.clip_grad_norm_ is not torch_clip
        truth = _loop(MLP, model, optimizer, mon, 4, lambda _: torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1))
    assert torch.nn.utils.clip_grad_norm_ is torch.nn.utils.clip_grad.clip_grad_norm_ is torch_clip
    for row in _check_stages(mon.run_dir, truth).values():
        assert row["clip_max_norm"] == 0.1
        assert row["clip_coef"] == pytest.approx(0.1 / (row["grad_norm_preclip"] + 1e-6), rel=1e-5)
    assert recorded.events(mon.run_dir, "warning") == []


def test_a_clip_imported_by_name_before_attach_is_noticed(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        truth = _loop(MLP, model, optimizer, mon, 4, lambda _: torch_clip(model.parameters(), 0.1))
    for row in _check_stages(mon.run_dir, truth).values():
        assert row["clip_coef"] == pytest.approx(0.1 / row["grad_norm_preclip"], rel=1e-3)
        assert "clip_max_norm" not in row
    (warning,) = recorded.events(mon.run_dir, "warning")
    assert warning["step"] == 1
    assert "at the end of backward" in warning["text"]


def test_an_unseen_clip_that_begins_late_is_never_called_preclip(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def between(step):
        if step >= 3:
            torch_clip(model.parameters(), 0.1)

    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        truth = _loop(MLP, model, optimizer, mon, 5, between)
    rows, layers = recorded.scalars(mon.run_dir), recorded.layers(mon.run_dir)
    assert "grad_norm_preclip" not in rows[3]
    assert 3 not in layers
    assert rows[3]["grad_norm_postclip"] == pytest.approx(0.1, rel=1e-4)
    for step in (1, 2, 4, 5):
        np.testing.assert_allclose(layers[step], truth[step - 1][0], rtol=1e-5)
    (warning,) = recorded.events(mon.run_dir, "warning")
    assert (warning["step"], "not known" in warning["text"]) == (3, True)


def test_an_unseen_change_after_steps_with_our_clip_is_noticed(tmp_path):
    model = GPT.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def between(step):
        torch_clip(model.parameters(), 0.1) if step == 3 else mon.clip_grad_norm_(0.1)

    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        _loop(GPT, model, optimizer, mon, 4, between)
    rows = recorded.scalars(mon.run_dir)
    assert ["grad_norm_preclip" in rows[step] for step in (1, 2, 3, 4)] == [True, True, False, True]


BY_VALUE = {
    "torch's": lambda mon, model: torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3),
    "one tensor at a time": lambda mon, model: torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3, foreach=False),
    "all together": lambda mon, model: torch.nn.utils.clip_grad.clip_grad_value_(model.parameters(), 1e-3, True),
    "monitor's": lambda mon, model: mon.clip_grad_value_(1e-3),
}


@pytest.mark.parametrize("clip", BY_VALUE.values(), ids=BY_VALUE.keys())
def test_clipping_by_value_is_recognised_and_is_no_clip_by_the_norm(tmp_path, clip):
    model, plain = MLP.made(), MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        truth = _loop(MLP, model, optimizer, mon, 3, lambda _: clip(mon, model))
    for row in _check_stages(mon.run_dir, truth).values():
        assert row["clip_value"] == 1e-3
        assert row["grad_norm_postclip"] < 0.5 * row["grad_norm_preclip"]
        assert "clip_coef" not in row  # no single factor did this
        assert "clip_max_norm" not in row
    assert recorded.events(mon.run_dir, "warning") == []

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(1, 4):
        optimizer.zero_grad()
        MLP.loss(plain, *MLP.batch(step)).backward()
        torch.nn.utils.clip_grad_value_(plain.parameters(), 1e-3)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_a_value_clip_of_equal_entries_is_still_not_taken_for_a_factor(tmp_path, limit):
    """Every entry shrinks alike, so that only having seen the call tells."""
    model = Holder(torch.full((3,), 0.5), torch.full((4,), 0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        mon.clip_grad_value_(limit)
        optimizer.step()
        mon.step()
    row = recorded.scalars(mon.run_dir)[1]
    assert "clip_coef" not in row
    assert row["grad_norm_preclip"] == pytest.approx(0.5 * 7**0.5)
    assert row["grad_norm_postclip"] == pytest.approx(min(0.5, limit) * 7**0.5)


@pytest.mark.parametrize("first", ["value", "norm"])
def test_clipping_by_value_and_by_norm(tmp_path, first):
    """Pre-clip is before the first of them, post-clip after the second."""
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def between(_step):
        for way in (first, {"value": "norm", "norm": "value"}[first]):
            if way == "value":
                torch.nn.utils.clip_grad_value_(model.parameters(), 1e-2)
            else:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)

    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        truth = _loop(MLP, model, optimizer, mon, 3, between)
    for row in _check_stages(mon.run_dir, truth).values():
        assert (row["clip_value"], "clip_coef" in row) == (1e-2, False)


def test_clipping_only_a_part_by_value(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    some = list(model.parameters())[2:]
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        truth = _loop(MLP, model, optimizer, mon, 3, lambda _: torch.nn.utils.clip_grad_value_(some, 1e-3))
    _check_stages(mon.run_dir, truth)
    assert recorded.events(mon.run_dir, "warning") == []


@pytest.mark.parametrize("through", ["monitor", "torch"])
def test_clipping_by_value_under_a_loss_scale(tmp_path, through):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with monitor.attach(model, optimizer, run=tmp_path, scaler=scaler) as mon:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(MLP.loss(model, *MLP.batch(0))).backward()
            before = norms_of_grads(model, 256.0)
            if through == "monitor":
                mon.clip_grad_value_(1e-3)
            else:
                torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)
            after = norms_of_grads(model, 1.0 if through == "monitor" else 256.0)
            scaler.step(optimizer)
            scaler.update()
            mon.step()
    row, layers = recorded.scalars(mon.run_dir)[2], recorded.layers(mon.run_dir)[2]
    np.testing.assert_allclose(layers, before, rtol=1e-5)
    assert row["grad_norm_preclip"] == pytest.approx(total(before), rel=1e-5)
    assert row["grad_norm_postclip"] == pytest.approx(total(after), rel=1e-5)
    assert ("clip_value" in row) == (through == "monitor")
    told = [event["text"] for event in recorded.events(mon.run_dir, "warning")]
    assert [("unscale_(optimizer) first" in text) for text in told] == ([] if through == "monitor" else [True])


@pytest.mark.parametrize("options", [{"norm_type": math.inf}, {"foreach": False}, {"norm_type": 1.0}])
def test_other_norms_clip_as_torch_says_and_are_recorded_as_l2(tmp_path, options):
    model, plain = MLP.made(), MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def between(step):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01, **options)

    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        truth = _loop(MLP, model, optimizer, mon, 3, between)
    rows = _check_stages(mon.run_dir, truth)
    assert all(("clip_max_norm" in row) == ("foreach" in options) for row in rows.values())

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(1, 4):
        optimizer.zero_grad()
        MLP.loss(plain, *MLP.batch(step)).backward()
        torch_clip(plain.parameters(), 0.01, **options)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_clipping_parts_of_the_model_separately(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = list(model.parameters())

    def between(step):
        torch.nn.utils.clip_grad_norm_(parameters[4:], 0.01)
        if step != 2:  # in step 2 the first layers are not clipped at all
            torch.nn.utils.clip_grad_norm_(parameters[:4], 0.02)

    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        truth = _loop(MLP, model, optimizer, mon, 3, between)
    for row in _check_stages(mon.run_dir, truth).values():
        assert "clip_coef" not in row


def test_clipping_twice(tmp_path):
    """Pre-clip is before the first, post-clip after the second."""
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def between(step):
        mon.clip_grad_norm_(0.1)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.02)

    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        truth = _loop(MLP, model, optimizer, mon, 3, between)
    for row in _check_stages(mon.run_dir, truth).values():
        assert row["clip_max_norm"] == 0.02
        assert row["clip_coef"] == pytest.approx(0.02 / row["grad_norm_preclip"], rel=1e-3)


def test_parameters_given_in_another_order(tmp_path):
    model, plain = MLP.made(), MLP.made()
    for each in (model, plain):
        MLP.loss(each, *MLP.batch(1)).backward()
    expected = torch_clip(reversed(list(plain.parameters())), 0.1)
    before = norms_of_grads(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        got = torch.nn.utils.clip_grad_norm_(reversed(list(model.parameters())), 0.1)
        optimizer.step()
        mon.step()
    assert torch.equal(got, expected)
    np.testing.assert_allclose(recorded.layers(mon.run_dir)[1], before, rtol=1e-5)


def test_error_if_nonfinite_is_raised_as_torch_raises_it(tmp_path):
    model = Holder(torch.tensor([math.nan]))
    with pytest.raises(RuntimeError) as theirs:
        torch_clip(model.parameters(), 1.0, error_if_nonfinite=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        with pytest.raises(RuntimeError) as ours:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        assert str(ours.value) == str(theirs.value)
        with pytest.raises(RuntimeError) as ours:
            mon.clip_grad_norm_(1.0, error_if_nonfinite=True)
        assert str(ours.value) == str(theirs.value)


def test_an_empty_generator_is_warned_of_as_torch_does(tmp_path):
    model = MLP.made()
    with monitor.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), run=tmp_path):
        with pytest.warns(UserWarning, match="empty generator"):
            assert torch.nn.utils.clip_grad_norm_((p for p in ()), 1.0) == 0.0
        assert torch.nn.utils.clip_grad_norm_([], 1.0) == 0.0


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4, sparse=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.embedding(x))


def test_sparse_gradients(tmp_path):
    torch.manual_seed(0)
    model = Sparse()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.tensor([3, 3, 5, 3])  # repeated indices: entries that must be summed before the norm
    truth = []
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in range(1, 4):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            truth.append(norms_of_grads(model))
            if step == 2:
                assert mon.clip_grad_norm_(0.1) == pytest.approx(total(truth[-1]), rel=1e-5)
                assert total(norms_of_grads(model)) == pytest.approx(0.1, rel=1e-4)
            if step == 3:  # torch's own refuses; the loop must hear of it with the monitor as without
                with pytest.raises(NotImplementedError):
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            mon.step()
    layers = recorded.layers(mon.run_dir)
    for step in (1, 2, 3):
        np.testing.assert_allclose(layers[step], truth[step - 1], rtol=1e-5)


def test_frozen_unfrozen_tied_and_unused_layers(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.used.weight
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.tied(self.used(self.frozen(x)))

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in (1, 2):
            if step == 2:
                model.frozen.requires_grad_(True)
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            mon.clip_grad_norm_(1.0)
            optimizer.step()
            mon.step()
    names = recorded.layer_names(mon.run_dir)
    layers = recorded.layers(mon.run_dir)
    assert names == [name for name, _ in model.named_parameters()]
    assert sum("weight" in name for name in names) == 3  # the tied one once
    absent = {
        step: {name for name, value in zip(names, row, strict=True) if value is None} for step, row in layers.items()
    }
    assert absent[1] == {"frozen.weight", "frozen.bias", "unused.weight", "unused.bias"}
    assert absent[2] == {"unused.weight", "unused.bias"}


def test_several_optimizers_in_one_step(tmp_path):
    """A GAN's two halves: each steps with its own backward."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"g": nn.Linear(3, 3), "d": nn.Linear(3, 1)})
    first = torch.optim.SGD(model["g"].parameters(), lr=0.1)
    second = torch.optim.SGD(model["d"].parameters(), lr=0.2)
    truth = []
    with monitor.attach(model, [first, second], run=tmp_path) as mon:
        for _ in range(3):
            x = torch.randn(4, 3)
            first.zero_grad()
            model["d"](model["g"](x)).sum().backward()
            g = norms_of_grads(model["g"])
            first.step()
            second.zero_grad()
            model["d"](x).square().sum().backward()
            truth.append(g + norms_of_grads(model["d"]))
            second.step()
            mon.step()
    rows, layers = recorded.scalars(mon.run_dir), recorded.layers(mon.run_dir)
    for step, norms in enumerate(truth, 1):
        np.testing.assert_allclose(layers[step], norms, rtol=1e-5)
        assert rows[step]["grad_norm_preclip"] == pytest.approx(total(norms), rel=1e-5)
        assert (rows[step]["lr"], rows[step]["lr/1"]) == (0.1, 0.2)
    (told,) = recorded.events(mon.run_dir, "objectives")
    assert "minimised in turn" in told["text"]


@pytest.mark.parametrize("optimizers", [1, 2])
def test_one_loss_is_one_objective_however_many_optimizers_follow_it(tmp_path, optimizers):
    """Two kinds of optimizer for two kinds of layers; and one optimizer that steps twice, as over the epochs of PPO."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    used = [torch.optim.SGD(part.parameters(), lr=0.1) for part in ([model] if optimizers == 1 else model)]
    with monitor.attach(model, used, run=tmp_path) as mon:
        for _ in range(2):
            for _ in range(2 if optimizers == 1 else 1):
                model.zero_grad()
                model(torch.randn(4, 3)).square().sum().backward()
                for optimizer in used:
                    optimizer.step()
            mon.step()
    assert recorded.events(mon.run_dir, "objectives") == []


def test_gradients_set_by_hand_are_not_called_preclip(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for _ in range(2):
            loss = MLP.loss(model, *MLP.batch(0))
            for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                p.grad = g
            expected = total(norms_of_grads(model))
            optimizer.step()
            mon.step()
    row = recorded.scalars(mon.run_dir)[2]
    assert "grad_norm_preclip" not in row
    assert row["grad_norm_postclip"] == pytest.approx(expected, rel=1e-5)
    (warning,) = recorded.events(mon.run_dir, "warning")
    assert "no backward() was seen" in warning["text"]


@pytest.mark.parametrize("between", [None, "clip", "unseen"])
@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SGD])
def test_a_closure_is_measured_at_its_last_backward(tmp_path, kind, between):
    model = MLP.made()
    options = {"max_iter": 3} if kind is torch.optim.LBFGS else {"lr": 0.1}
    optimizer = kind(model.parameters(), **options)
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = MLP.loss(model, *MLP.batch(0))
        loss.backward()
        seen.append(total(norms_of_grads(model)))
        if between == "clip":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if between == "unseen":
            torch_clip(model.parameters(), 0.1)
        return loss

    last = []
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for _ in range(3):
            optimizer.step(closure)
            mon.step()
            last.append(seen[-1])
    for step, row in recorded.scalars(mon.run_dir).items():
        assert row["grad_norm_preclip"] == pytest.approx(last[step - 1], rel=1e-5)
        left = last[step - 1] if between is None else 0.1
        assert row["grad_norm_postclip"] == pytest.approx(left, rel=1e-4)
