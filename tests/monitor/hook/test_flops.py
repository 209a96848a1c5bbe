"""Operations of a step against torch's own count on the real model, and the closed form; nothing of it is felt."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import monitor
from monitor.hook.flops import CannotCount, Given, copy_without_memory, count_flops, without_values
from monitor.hook.peaks import peak_flops
from monitor.runfile.reader import open_run
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import CNN, GPT, MLP, MLP_DROPOUT, Problem


def _train(problem: Problem, folder: Path | None, micro_steps: int = 1, model: nn.Module | None = None, **options):
    model = problem.made() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mon = monitor.attach(model, optimizer, run=folder, detail="norms", **options) if folder else None
    for step in range(1, 5):
        for micro in range(micro_steps):
            problem.loss(model, *problem.batch(10 * step + micro)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if mon:
            mon.step()
    if mon:
        mon.close()
    return mon, model


@pytest.mark.parametrize("problem", [MLP, CNN, MLP_DROPOUT], ids=lambda problem: problem.name)
def test_operations_are_those_of_a_real_step(tmp_path: Path, problem: Problem) -> None:
    mon, _ = _train(problem, tmp_path, micro_steps=2, flops=True, peak_flops=1e12)
    with FlopCounterMode(display=False) as real:
        problem.loss(problem.made(), *problem.batch(0)).backward()
    (event,) = recorded.events(mon.run_dir, "flops")
    assert event["forward"] + event["backward"] == real.get_total_flops() > 0
    for row in recorded.scalars(mon.run_dir).values():
        assert row["tflops_per_s"] * row["step_time_s"] * 1e12 == pytest.approx(2 * real.get_total_flops())
        assert row["mfu"] == pytest.approx(row["tflops_per_s"])
    assert (event["device"], event["precision"], event["peak_flops"]) == ("CPU", "float32", 1e12)


def test_operations_of_a_transformer_in_closed_form() -> None:
    model = GPT.made()
    tokens = GPT.batch(0)[0]
    count = count_flops(model, Given((without_values(tokens),), {}, True))
    b, t = tokens.shape
    width, vocabulary, blocks = 16, 31, 2
    products = 2 * b * t * (blocks * 12 * width**2 + vocabulary * width)
    attention = blocks * 2 * 2 * b * t * t * width
    assert count.forward == products + attention
    # Twice as many backward; torch's fused attention computes the logits once more.
    assert count.backward in (2 * products + 2 * attention, 2 * products + 2.5 * attention)


def test_nothing_of_the_model_or_the_random_numbers_is_touched(tmp_path: Path) -> None:
    torch.manual_seed(7)
    _, watched = _train(CNN, tmp_path, flops=True)
    after = torch.rand(3)
    torch.manual_seed(7)
    _, alone = _train(CNN, None)
    assert torch.equal(after, torch.rand(3))
    for name, value in watched.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name

    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.drawn: list[torch.Tensor] = []
            self.register_buffer("calls", torch.zeros(()))
            self.inner.register_forward_hook(lambda *_: calls.append(1))

        def forward(self, x):
            self.drawn.append(torch.rand(2))
            self.calls += 1
            return self.inner(x) * self.drawn[-1].sum()

    calls: list[int] = []
    model = Draws()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert count_flops(model, Given((torch.empty(3, 4, device="meta"),), {}, True)).forward == 2 * 3 * 4 * 4
    assert calls == [] and model.drawn == [] and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.is_meta for value in copy_without_memory(model).state_dict().values())


def test_a_compiled_model_is_counted_as_it_is_written(tmp_path: Path) -> None:
    compiled = torch.compile(MLP.made(), backend="eager")
    mon, _ = _train(MLP, tmp_path / "compiled", model=compiled, flops=True)
    plain, _ = _train(MLP, tmp_path / "plain", flops=True)
    counts = [recorded.events(run.run_dir, "flops")[0] for run in (mon, plain)]
    assert counts[0]["forward"] == counts[1]["forward"] and counts[0]["backward"] == counts[1]["backward"]
    assert open_run(mon.run_dir).series("tflops_per_s").step.tolist() == [1, 2, 3, 4]


def test_what_cannot_be_counted_is_absent_with_the_reason(tmp_path: Path) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MLP.made()

        def forward(self, x):
            return self.inner(x) * (1 if x.sum().item() > 0 else -1)

    mon, _ = _train(MLP, tmp_path, model=Looks(), flops=True)
    (note,) = recorded.events(mon.run_dir, "note")
    assert "tflops_per_s and mfu are absent: the model cannot be run on tensors without values" in note["text"]
    assert "tflops_per_s" not in open_run(mon.run_dir).names
    with pytest.raises(CannotCount, match="synchronised"):
        copy_without_memory(nn.SyncBatchNorm(3))


def test_steps_of_further_shapes_are_absent_and_a_cpu_has_no_known_peak(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path, detail="norms", flops=True) as mon:
        for count in (1, 2, 3, 4, 5, 2, 6):
            model(torch.randn(count, 4)).sum().backward()
            optimizer.step()
            mon.step()
    rows = recorded.scalars(mon.run_dir)
    assert [step for step, row in rows.items() if "tflops_per_s" in row] == [1, 2, 3, 4, 6]
    for step, count in {1: 1, 4: 4, 6: 2}.items():
        flops = rows[step]["tflops_per_s"] * rows[step]["step_time_s"] * 1e12
        assert flops == pytest.approx(2 * 2 * count * 4 * 2)  # forward, and backward to the weight alone
    texts = [note["text"] for note in recorded.events(mon.run_dir, "note")]
    texts = [text for text in texts if not text.startswith("GPU")]  # the sampler's, in its thread: maybe in time
    assert len(texts) == 2 and "no peak is known of CPU" in texts[0] and "different shapes" in texts[1]


def test_peaks_are_found_by_name_and_precision() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("Tesla V100-PCIE-32GB", "float16") == 112e12
    assert peak_flops("Tesla V100-SXM2-16GB", "bfloat16") is None
    assert peak_flops("NVIDIA L40S", "tf32") == 183e12 and peak_flops("NVIDIA L40", "tf32") is None
    assert peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU", "float16") is None
    assert peak_flops("NVIDIA H100 NVL", "bfloat16") is None  # not the SXM's: it has another peak
    with pytest.raises(ValueError, match="peak_flops is -1"):
        monitor.attach(MLP.made(), torch.optim.SGD(MLP.made().parameters()), peak_flops=-1)
