"""All probes of what flows through the model together: no harm, no trace, no graph break, nothing that waits."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from monitor.hook.modules import module_probes
from monitor.hook.outputs import Hooks
from monitor.runfile.reader import open_run
from monitor.signals import CATALOGUE, MODULE_CATALOGUE
from tests.monitor.hook.problems import CNN, GPT, MLP_DROPOUT, Problem
from tests.monitor.hook.test_activations import TRANSLATOR
from tests.monitor.hook.watching import hooks, watched

ROOT = Path(__file__).parents[3]
STEPS = 12


def _train(problem: Problem, folder: Path | None, precision: torch.dtype | None, micro_steps: int):
    model = problem.made(seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    mon = watched(folder, model, optimizer, module_probes(model)) if folder else None
    for step in range(1, STEPS + 1):
        if step == 11 and mon:
            mon._probes.arm()
        optimizer.zero_grad()
        for micro in range(micro_steps):
            with torch.autocast("cpu", precision, enabled=precision is not None):
                loss = problem.loss(model, *problem.batch(step * 10 + micro)) / micro_steps
            loss.backward()
        optimizer.step()
        if mon:
            mon.step(loss=loss)
    if mon:
        mon.close()
    return model, optimizer, torch.get_rng_state(), mon


@pytest.mark.parametrize(("precision", "micro_steps"), [(None, 1), (torch.bfloat16, 2)], ids=["fp32", "bf16, 2 micro"])
@pytest.mark.parametrize("problem", [MLP_DROPOUT, CNN, GPT, TRANSLATOR], ids=lambda problem: problem.name)
def test_same_seed_same_bits(tmp_path: Path, problem: Problem, precision: torch.dtype | None, micro_steps: int) -> None:
    watched_model, watched_optimizer, watched_rng, mon = _train(problem, tmp_path, precision, micro_steps)
    model, optimizer, rng, _ = _train(problem, None, precision, micro_steps)
    states = zip(watched_model.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    for a, b in zip(watched_optimizer.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert torch.equal(watched_rng, rng)
    assert hooks(watched_model) == 0
    run = open_run(mon.run_dir)
    assert {"activation_rms", "activation_absmax"} <= set(run.module_stats) <= set(MODULE_CATALOGUE)
    assert {"input_mean", "log_z_mean"} <= set(run.names) & set(CATALOGUE)


def test_the_evaluation_between_two_steps_meets_no_hook(tmp_path: Path) -> None:
    model = TRANSLATOR.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(tmp_path, model, optimizer, module_probes(model)) as mon:
        TRANSLATOR.loss(model, *GPT.batch(0)).backward()
        optimizer.step()
        mon.step()
        assert hooks(model) == 1  # the monitor's own, on the model
        copied, saved = copy.deepcopy(model), io.BytesIO()
        torch.save(model, saved)
    assert hooks(model) == 0
    assert torch.equal(copied.eval()(GPT.batch(1)[0]), model.eval()(GPT.batch(1)[0]))


def test_a_copy_made_within_a_step_knows_nothing_of_the_monitor(tmp_path: Path) -> None:
    model = GPT.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(tmp_path, model, optimizer, module_probes(model)) as mon:
        loss = GPT.loss(model, *GPT.batch(0))
        saved = io.BytesIO()
        torch.save(model, saved)
        copied = copy.deepcopy(model)
        assert b"monitor" not in saved.getvalue().replace(b"tests.monitor.hook.problems", b"")
        seen = [len(probe._order) for probe in mon._probes.probes if hasattr(probe, "_order")]
        GPT.loss(copied, *GPT.batch(1))
        assert [len(probe._order) for probe in mon._probes.probes if hasattr(probe, "_order")] == seen
        loss.backward()
        optimizer.step()
        mon.step()


def test_a_model_that_is_one_module_has_no_table_of_modules(tmp_path: Path) -> None:
    model = nn.Linear(10, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(tmp_path, model, optimizer, module_probes(model)) as mon:
        MLP_DROPOUT.loss(model, *MLP_DROPOUT.batch(0)).backward()
        optimizer.step()
        mon.step()
    run = open_run(mon.run_dir)
    assert run.module_stats == ()
    assert len(run.series("log_z_mean")) == 1


def test_distributed_data_parallel_is_seen_through(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        _, _, _, alone = _train(GPT, tmp_path, None, 1)
        problem = Problem("ddp", lambda: nn.parallel.DistributedDataParallel(GPT.made(seed=3)), GPT.batch, GPT.loss)
        _, _, _, parallel = _train(problem, tmp_path, None, 1)
    finally:
        torch.distributed.destroy_process_group()
    one, two = open_run(alone.run_dir), open_run(parallel.run_dir)
    for stat in ("activation_rms", "attention_logit_bound"):
        a, b = one.modules(stat), two.modules(stat)
        assert a.names == b.names
        np.testing.assert_array_equal(a.value, b.value)
        np.testing.assert_array_equal(a.present, b.present)
    np.testing.assert_array_equal(one.series("log_z_mean").value, two.series("log_z_mean").value)


def test_a_forward_that_fails_within_a_step_leaves_the_next_one_measured(tmp_path: Path) -> None:
    model = GPT.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(tmp_path, model, optimizer, module_probes(model)) as mon:
        with pytest.raises(IndexError):
            model(torch.full((2, 4), 1000))
        with pytest.raises(RuntimeError):
            model(torch.zeros((2, 40), dtype=torch.int64))
        GPT.loss(model, *GPT.batch(0)).backward()
        optimizer.step()
        mon.step()
    assert hooks(model) == 0
    assert open_run(mon.run_dir).modules("attention_logit_bound").step.tolist() == [1]


def test_a_hook_that_is_compiled_is_nothing() -> None:
    seen: list[float] = []
    layer, hook_set = nn.Linear(3, 2), Hooks()
    saw = lambda _index, _module, _args, _kwargs, output: seen.append(output.detach().sum().item())  # noqa: E731
    hook_set.after(saw, [(0, layer)])
    hook_set.before(lambda *_: seen.append(0.0), [(0, layer)])
    compiled = torch.compile(layer, backend=lambda graph, _: graph, fullgraph=True)
    assert torch.equal(compiled(torch.ones(1, 3)), functional.linear(torch.ones(1, 3), layer.weight, layer.bias))
    assert seen == []
    layer(torch.ones(1, 3))
    assert len(seen) == 2
    hook_set.remove()
    assert hooks(layer) == 0


_COMPILED = """
import sys, torch
from monitor.hook.modules import module_probes
from monitor.hook.outputs import Hooks
from monitor.runfile.reader import open_run
from tests.monitor.hook.problems import GPT
from tests.monitor.hook.watching import watched

torch.set_num_threads(1)

def train(order, run):
    model = GPT.made(seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    graphs = []
    def backend(graph, inputs):
        graphs.append(graph)
        return graph
    torch._dynamo.reset()
    def compile_blocks():
        for block in model.blocks:
            block.compile(backend=backend, fullgraph=True)
    mon, called = None, model
    if order == "blocks in place":
        compile_blocks()
    elif order == "blocks":
        for at, block in enumerate(model.blocks):
            model.blocks[at] = torch.compile(block, backend=backend, fullgraph=True)
    elif order.startswith("attach"):
        called = torch.compile(model, backend=backend, fullgraph=True)
    if run:
        attached = called if order == "attach compiled" else model
        mon = watched(run, attached, optimizer, module_probes(attached))
    if order == "blocks in place, later":
        compile_blocks()
    for step in range(1, 13):
        optimizer.zero_grad()
        loss = GPT.loss(called, *GPT.batch(step))
        loss.backward()
        optimizer.step()
        if mon:
            mon.step(loss=loss)
    if mon:
        mon.close()
        run = open_run(mon.run_dir)
        if run.module_stats:
            rms = run.modules("activation_rms")
            print(order, [name for name, there in zip(rms.names, rms.present[-1]) if there])
        else:
            print(order, "logits" if "log_z_mean" in run.names else "nothing")
    return [p.detach().clone() for p in model.parameters()], len(graphs)

for order in ("attach compiled", "attach raw", "blocks", "blocks in place", "blocks in place, later"):
    alone, graphs_alone = train(order, None)
    weights, graphs = train(order, sys.argv[1])
    assert graphs == graphs_alone, (order, graphs, graphs_alone)
    assert all(torch.equal(a, b) for a, b in zip(weights, alone)), order
"""


def test_torch_compile_full_graph(tmp_path: Path) -> None:
    """No graph break, no extra graph, the same bits; what is outside the graphs is measured."""
    script = tmp_path / "compiled.py"
    script.write_text(_COMPILED)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "attach compiled logits",
        "attach raw nothing",
        "blocks ['token', 'blocks.0', 'blocks.1', 'norm', 'head']",
        "blocks in place ['token', 'norm', 'head']",
        "blocks in place, later ['token', 'norm', 'head']",
    ]
