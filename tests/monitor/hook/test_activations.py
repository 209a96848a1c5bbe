"""Statistics of modules' outputs against the same taken slowly, in float64, from copies of the outputs."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monitor.hook import activations
from monitor.hook.activations import Activations
from monitor.hook.layers import module_names
from monitor.hook.outputs import first_float, watchable
from monitor.runfile.reader import open_run
from tests.monitor.hook.problems import CNN, GPT, MLP, MLP_DROPOUT, Problem, TinyGPT
from tests.monitor.hook.watching import hooks, outputs, train, watched

MOMENTS = ("activation_mean", "activation_rms", "activation_absmax", "activation_zero_share", "activation_nonfinite")


class Translator(nn.Module):
    """torch's own transformer layer with positions in front: modules within modules, and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(31, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 31)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.token(tokens)))


TRANSLATOR = Problem("transformer", Translator, GPT.batch, GPT.loss)


def _slow(name: str, seen: list[np.ndarray]) -> float:
    values = np.concatenate([each.ravel() for each in seen])
    return {
        "activation_mean": values.mean(),
        "activation_rms": np.sqrt((values**2).mean()),
        "activation_absmax": np.abs(values).max(),
        "activation_zero_share": (values == 0).mean(),
        "activation_nonfinite": np.count_nonzero(~np.isfinite(values)),
    }[name]


def _one_step(folder: Path, model: nn.Module, problem: Problem, micro_steps: int = 1, **context):
    """The recorded run of one step and what the modules returned in it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with outputs(model) as seen, watched(folder, model, optimizer, [Activations(model)]) as mon:
        for micro in range(micro_steps):
            with torch.autocast("cpu", **context) if context else torch.enable_grad():
                loss = problem.loss(model, *problem.batch(micro))
            loss.backward()
        optimizer.step()
        mon.step()
    return open_run(mon.run_dir), seen


@pytest.mark.parametrize("micro_steps", [1, 3])
@pytest.mark.parametrize("problem", [MLP_DROPOUT, CNN, GPT, TRANSLATOR], ids=lambda problem: problem.name)
def test_moments_are_those_of_the_outputs(tmp_path: Path, problem: Problem, micro_steps: int) -> None:
    run, seen = _one_step(tmp_path, problem.made(), problem, micro_steps)
    for name in MOMENTS:
        matrix = run.modules(name)
        assert matrix.step.tolist() == [1]
        assert {module for module, there in zip(matrix.names, matrix.present[0], strict=True) if there} == set(seen) - {
            ""
        }
        for at, module in enumerate(matrix.names):
            if module in seen:
                assert matrix.value[0, at] == pytest.approx(_slow(name, seen[module]), rel=1e-5, abs=1e-6), module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_moments_are_taken_in_float32_whatever_the_output_is(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(64, 4096, dtype=dtype), nn.Flatten())
    with torch.no_grad():
        model[0].bias += 2.7
    batch = torch.randn(64, 64, dtype=dtype) * 8
    problem = Problem("wide", lambda: model, lambda _: (batch, batch), lambda m, x, _: m(x).float().square().mean())
    run, seen = _one_step(tmp_path, model, problem)
    for name in MOMENTS:
        assert run.modules(name).value[0, 1] == pytest.approx(_slow(name, seen["1"]), rel=1e-4, abs=1e-4)


def test_under_autocast_an_output_is_measured_as_it_is(tmp_path: Path) -> None:
    run, seen = _one_step(tmp_path, MLP.made(), MLP, dtype=torch.bfloat16)
    rms = run.modules("activation_rms")
    for at, module in enumerate(rms.names):
        assert rms.value[0, at] == pytest.approx(_slow("activation_rms", seen[module]), rel=1e-5)


def test_what_is_not_finite_is_counted_and_shown(tmp_path: Path) -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            hole = torch.zeros_like(x)
            hole[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
            return x + hole

    model = nn.Sequential(nn.Linear(10, 8), Breaks(), nn.Linear(8, 5))
    run, _ = _one_step(tmp_path, model, MLP)
    assert run.modules("activation_nonfinite").value[0].tolist() == [0, 3, 5]
    assert np.isnan(run.modules("activation_absmax").value[0]).tolist() == [False, True, True]
    assert run.modules("activation_rms").present.all()


def test_a_square_that_overflows_is_absent_not_infinite(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(10, 5, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1e25)
    run, _ = _one_step(tmp_path, model, MLP)
    assert 1e24 < run.modules("activation_absmax").value[0, 0] < np.inf
    assert not run.modules("activation_rms").present[0, 0]


def test_dead_and_saturated_units_of_features(tmp_path: Path) -> None:
    model = MLP.made()
    with torch.no_grad():
        model[0].bias[:12] = -100.0  # of 32 rectified units
        model[3].weight[:8] *= 1000.0  # of 32 units of a tanh
    run, seen = _one_step(tmp_path, model, MLP, micro_steps=2)
    dead = run.modules("dead_units_share")
    assert [name for name, there in zip(dead.names, dead.present[0], strict=True) if there] == ["1"]
    slow = (np.abs(np.concatenate(seen["1"])).max(0) <= activations.DEAD).mean()
    assert dead.value[0, 1] == pytest.approx(slow)
    assert slow >= 12 / 32
    saturated = run.modules("saturated_units_share")
    assert [name for name, there in zip(saturated.names, saturated.present[0], strict=True) if there] == ["4"]
    slow = (np.abs(np.concatenate(seen["4"])).mean(0) > activations.SATURATED).mean()
    assert saturated.value[0, 4] == pytest.approx(slow)
    assert slow >= 7 / 32


@pytest.mark.parametrize(
    ("layer", "shape", "dim"),
    [
        (nn.Conv1d(4, 6, 1), (3, 4, 7), 1),
        (nn.Conv2d(4, 6, 1), (3, 4, 7, 5), 1),
        (nn.Conv2d(4, 6, 1), (4, 7, 5), 0),
        (nn.Linear(4, 6), (3, 7, 5, 4), 3),
        (nn.Linear(4, 6), (4,), 0),
    ],
)
@pytest.mark.parametrize("act", [nn.GELU(), nn.Sigmoid()], ids=["gelu", "sigmoid"])
def test_units_are_the_channels_of_the_layer_before(tmp_path: Path, layer, shape, dim: int, act: nn.Module) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer)  # training changes it
    with torch.no_grad():
        layer.bias[:2] = -50.0
    batch = torch.randn(shape)
    model = nn.Sequential(layer, act)
    problem = Problem("units", lambda: model, lambda _: (batch, batch), lambda m, x, _: m(x).sum())
    run, _ = _one_step(tmp_path, model, problem)
    name = "dead_units_share" if isinstance(act, nn.GELU) else "saturated_units_share"
    assert run.modules(name).value[0, 1] == pytest.approx(2 / 6)
    assert dim in range(len(shape))


def test_a_unit_is_dead_only_if_it_is_in_every_micro_step(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    batches = [torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, -1.0]])]
    problem = Problem("one each", lambda: model, lambda n: (batches[n], batches[n]), lambda m, x, _: m(x).sum())
    run, _ = _one_step(tmp_path, model, problem, micro_steps=2)
    assert run.modules("dead_units_share").value[0, 1] == 0.5


def test_a_unit_that_is_small_and_negative_is_not_dead(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(10, 4), nn.GELU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([-1.0, -2.0, -8.0, 1.0]))
    problem = Problem("gelu", lambda: model, MLP.batch, lambda m, x, _: m(x).sum())
    run, _ = _one_step(tmp_path, model, problem)
    assert run.modules("dead_units_share").value[0, 1] == 1 / 4


def test_within_a_transform_nothing_is_looked_at() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(first_float(x))
        return x.sum()

    x = torch.ones(2, 3)
    torch.func.vmap(look)(x)
    torch.func.grad(look)(x)
    assert seen == [None, None]
    assert first_float(x) is not None


def test_outputs_that_are_no_float_tensor(tmp_path: Path) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.as_tuple, self.as_dict, self.codes, self.nothing = (Returns(form) for form in ("t", "d", "i", "n"))
            self.cell = nn.LSTM(10, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            self.nothing(x), self.codes(x)
            return self.as_tuple(x)[1] + self.as_dict(x)["b"] + self.cell(x[:, None])[0][:, 0].sum()

    class Returns(nn.Module):
        def __init__(self, form: str) -> None:
            super().__init__()
            self.form = form

        def forward(self, x: Tensor):
            return {"t": (x.long(), 2 * x), "d": {"a": None, "b": 3 * x}, "i": x.long(), "n": None}[self.form]

    model = Several()
    run, _ = _one_step(tmp_path, model, MLP)
    matrix = run.modules("activation_absmax")
    largest = MLP.batch(0)[0].abs().max().item()
    there = dict(zip(matrix.names, zip(matrix.value[0], matrix.present[0], strict=True), strict=True))
    assert there["as_tuple"] == (pytest.approx(2 * largest), True)
    assert there["as_dict"] == (pytest.approx(3 * largest), True)
    assert there["cell"][1]
    assert not there["codes"][1] and not there["nothing"][1]


def test_a_shared_module_has_its_first_calls_pooled(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(activations.MOST_CALLS + 3):
                x = 1.5 * self.cell(x)
            return x[:, :5]

    run, seen = _one_step(tmp_path, Recurrent(), MLP)
    slow = _slow("activation_rms", seen["cell"][: activations.MOST_CALLS])
    assert run.modules("activation_rms").value[0, 0] == pytest.approx(slow, rel=1e-5)


def test_a_change_in_place_comes_after_the_measurement(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(10, 5), nn.ReLU(inplace=True))
    run, seen = _one_step(tmp_path, model, MLP)
    for at in (0, 1):
        assert run.modules("activation_mean").value[0, at] == pytest.approx(
            _slow("activation_mean", seen[str(at)]), rel=1e-5
        )


def test_activation_checkpointing_is_counted_once(tmp_path: Path) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.inner, self.reentrant = MLP.made(), reentrant

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)

    for reentrant in (False, True):
        run, seen = _one_step(tmp_path, Checkpointed(reentrant), MLP)
        matrix = run.modules("activation_rms")
        assert len(seen["inner.0"]) == 2  # once more in backward
        assert matrix.value[0, 1] == pytest.approx(_slow("activation_rms", seen["inner.0"][:1]), rel=1e-5)


def test_selective_checkpointing_does_not_remember_our_operations(tmp_path: Path) -> None:
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    inner = MLP.made()

    class Selective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            def contexts():
                return create_selective_checkpoint_contexts(lambda *_args, **_kwargs: CheckpointPolicy.MUST_SAVE)

            return checkpoint(self.inner, x, use_reentrant=False, context_fn=contexts)

    run, _ = _one_step(tmp_path, nn.Sequential(Selective(), nn.Linear(5, 5)), MLP)
    matrix = run.modules("activation_rms")
    there = {name for name, present in zip(matrix.names, matrix.present[0], strict=True) if present}
    assert there == {"0", "1"}


def test_when_it_measures_and_that_an_evaluation_is_not_measured(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(tmp_path, model, optimizer, [Activations(model)]) as mon:
        train(mon, model, optimizer, MLP, range(1, 53))
        assert hooks(model) == 1  # the monitor's own, on the model
        mon._probes.arm(2)
        optimizer.zero_grad()
        loss = MLP.loss(model, *MLP.batch(1))
        with mon.phase("eval"), torch.no_grad():
            model(100 * MLP.batch(0)[0])
        loss.backward()
        optimizer.step()
        mon.step()
    run = open_run(mon.run_dir)
    absmax = run.modules("activation_absmax")
    assert absmax.step.tolist() == [*range(1, 11), 50, 53]
    assert absmax.value[-1].max() < 10 * absmax.value[-2].max()


def test_no_output_is_kept_alive(tmp_path: Path) -> None:
    model = TinyGPT()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept: list[weakref.ref] = []
    last: list[int] = []

    def note(_module: nn.Module, _args: object, output: Tensor) -> None:
        kept.append(weakref.ref(output))
        last.append(output.untyped_storage().nbytes())

    handles = [module.register_forward_hook(note) for module in model.modules()]
    with watched(tmp_path, model, optimizer, [Activations(model)]) as mon, torch.no_grad():
        gc.disable()
        try:
            model.train()
            with torch.enable_grad():
                loss = GPT.loss(model, *GPT.batch(0))
            loss.backward()
            del loss
            assert len(kept) > 10
            assert all(reference() is None for reference in kept)  # with the step not ended
        finally:
            gc.enable()
        optimizer.step()
        mon.step()
    for handle in handles:
        handle.remove()


def test_large_device_tensors_are_cut_without_a_change_of_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(37, 5, 3)
    values[3, 1] = 0.0
    values[8, 2, 0] = torch.nan
    whole = [torch.count_nonzero(values), activations._not_finite(values)]
    monkeypatch.setattr(activations, "_PIECE", 50)
    pieces = activations._pieces(values)
    assert len(pieces) > 5
    assert max(piece.numel() for piece in pieces) <= 50
    assert sum(torch.count_nonzero(piece) for piece in pieces) == whole[0]
    assert sum(activations._not_finite(piece) for piece in pieces) == whole[1] == 1


def test_modules_compiled_in_place_are_left_alone() -> None:
    model = GPT.made()
    model.blocks[0].compile(backend="eager")
    compiled = torch.compile(model.blocks[1], backend="eager")
    model.blocks[1] = compiled
    model.norm.forward = torch.compile(model.norm.forward, backend="eager")
    names = module_names(model)
    seen = {names[at] for at, _ in watchable(model)}
    assert "blocks.1" in seen  # its hooks run outside its graph
    assert not any(name.startswith(("blocks.0", "blocks.1.")) for name in seen)
    assert {"token", "norm", "head"} <= seen
    assert not watchable(torch.compile(GPT.made(), backend="eager"))


def test_a_module_that_comes_later_takes_no_other_ones_place(tmp_path: Path) -> None:
    model = GPT.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(tmp_path, model, optimizer, [Activations(model)]) as mon:
        train(mon, model, optimizer, GPT, range(1, 41))
        model.blocks.append(copy.deepcopy(model.blocks[0]))  # its places are in front of those of norm and head
        with outputs(model) as seen:
            train(mon, model, optimizer, GPT, range(41, 101))
    run = open_run(mon.run_dir)
    rms = run.modules("activation_rms")
    assert rms is not None
    assert rms.names == module_names(GPT.made())
    for name in ("norm", "head"):
        slow = np.sqrt((seen[name][-1].astype(np.float64) ** 2).mean())
        np.testing.assert_allclose(rms.value[rms.step == 100, rms.names.index(name)], [slow], rtol=1e-5)
    assert run.series("grad_norm_preclip").step.tolist() == list(range(1, 101))
