"""The numbers of a step against a slow independent twin: other precision, other code, one parameter at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import monitor
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import PROBLEMS
from tests.monitor.hook.torchrun import run_ranks
from tests.monitor.hook.twin import norms_by_autograd, norms_of_grads, total

MODES = {
    # name: (autocast dtype, scaler, micro-steps, tolerance of the gradients' arithmetic, relative to the global norm)
    "fp32": (None, False, 1, 2e-5),
    "fp32 x4 accumulation": (None, False, 4, 2e-5),
    "bf16 autocast": (torch.bfloat16, False, 1, 3e-2),
    "bf16 autocast x4 accumulation": (torch.bfloat16, False, 4, 3e-2),
    "fp16 with scaler": (torch.float16, True, 1, 4e-3),
    "fp16 with scaler x4 accumulation": (torch.float16, True, 4, 4e-3),
}


@pytest.mark.parametrize("clip", ["monitor", "torch", "none"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_unscaled_preclip_norms_agree_with_the_twin(tmp_path, problem, mode, clip):
    precision, scaled, micro_steps, tolerance = mode
    model = problem.made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
    exact, wide = [], []
    with monitor.attach(model, optimizer, run=tmp_path, scaler=scaler) as mon:
        for step in range(1, 4):
            batches = [step * 10 + micro for micro in range(micro_steps)]
            wide.append(norms_by_autograd(problem, model, batches))
            optimizer.zero_grad()
            for number in batches:
                with torch.autocast("cpu", precision, enabled=precision is not None):
                    loss = problem.loss(model, *problem.batch(number)) / micro_steps
                scaler.scale(loss).backward()
            exact.append(norms_of_grads(model, scaler.get_scale()))
            if clip == "monitor":
                mon.clip_grad_norm_(0.3)
            elif clip == "torch":
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            scaler.step(optimizer)
            scaler.update()
            mon.step(loss=loss)
    rows, layers = recorded.scalars(mon.run_dir), recorded.layers(mon.run_dir)
    for step in (1, 2, 3):
        # The same gradients, summed otherwise: only rounding between them.
        np.testing.assert_allclose(layers[step], exact[step - 1], rtol=1e-5, atol=1e-9)
        assert rows[step]["grad_norm_preclip"] == pytest.approx(total(exact[step - 1]), rel=1e-5)
        # Gradients of the same loss in float64: the mode's own precision between them.
        whole = total(wide[step - 1])
        assert rows[step]["grad_norm_preclip"] == pytest.approx(whole, rel=tolerance)
        np.testing.assert_allclose(layers[step], wide[step - 1], rtol=tolerance, atol=tolerance * whole)


_TWO_RANKS = """
import sys, torch, torch.distributed as dist
from pathlib import Path
import monitor
from tests.monitor.hook.problems import PROBLEMS
from tests.monitor.hook.twin import norms_of_grads

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
found = {}
for problem in PROBLEMS:
    for clip in (True, False):
        model = problem.made()
        ddp = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        seen = []
        with monitor.attach(ddp, optimizer, run=sys.argv[1], name=f"{problem.name}-{clip}") as mon:
            for step in range(1, 4):
                optimizer.zero_grad()
                for micro in range(2):
                    with ddp.no_sync() if micro == 0 else torch.enable_grad():
                        (problem.loss(ddp, *problem.batch(step * 10 + 2 * rank + micro)) / 2).backward()
                seen.append(norms_of_grads(model))
                if clip:
                    mon.clip_grad_norm_(0.3)
                optimizer.step()
                mon.step(loss=float(rank))
        found[problem.name, clip] = (str(mon.run_dir), mon.attempt, seen)
torch.save(found, f"{sys.argv[1]}/rank-{rank}.pt")
dist.destroy_process_group()
"""


def test_two_ranks_of_ddp(tmp_path):
    """Gradients are global: equal on both ranks and equal to the twin's on all four micro-batches together."""
    runs = tmp_path / "runs"
    runs.mkdir()
    run_ranks(tmp_path, _TWO_RANKS, 2, str(runs))
    found = [torch.load(runs / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert [folder.name for folder in runs.iterdir() if folder.is_dir()].__len__() == 6  # one run, not one a rank
    for problem in PROBLEMS:
        for clip in (True, False):
            run_dir, attempt, seen = found[0][problem.name, clip]
            assert found[1][problem.name, clip] == (run_dir, attempt, seen)
            run_dir = Path(run_dir)
            first = recorded.layers(run_dir, rank=0)
            assert first == recorded.layers(run_dir, rank=1)
            for step in (1, 2, 3):
                np.testing.assert_allclose(first[step], seen[step - 1], rtol=1e-5, atol=1e-9)
            if problem.name != "cnn":  # batch statistics are per rank there, so the joint batch is another function
                # step 1 is at the initial weights, which the twin can make again
                wide = norms_by_autograd(problem, problem.made(), [10, 11, 12, 13])
                np.testing.assert_allclose(first[1], wide, rtol=2e-5, atol=2e-5 * total(wide))
            assert recorded.scalars(run_dir, rank=1)[1]["train_loss"] == 1.0
            (note,) = [e for e in recorded.events(run_dir, "note") if "averaged over the ranks" in e["text"]]
            assert "train_loss is what this rank's caller passed" in note["text"]
    assert recorded.layer_names(run_dir)[0] == "token.weight" or "module" not in recorded.layer_names(run_dir)[0]
