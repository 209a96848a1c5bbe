"""Every way to spread a model over processes trains as one process does, and goes on from each other's checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from monitor.errors import ConfigError, RunError
from monitor.runfile.reader import Run, open_run
from tests.monitor.hook.torchrun import run_module
from tests.trainer.conftest import TINY, Desk, Trained, assert_same
from trainer.config import TrainConfig, load_config
from trainer.loop import Outcome
from trainer.parallel import Parallel
from trainer.parallel.tensor import split_layers
from trainer.parallel.zero1 import Zero1
from trainer.place import Place
from trainer.tasks import build_task

STEPS = 6
COMMON = (*TINY, "batch_size=8", "grad_accum_steps=2", f"steps={STEPS}", "checkpoint.keep_best=false")
MODES = {
    "zero1": ("parallel.mode=zero1",),
    "fsdp": ("parallel.mode=fsdp",),
    "tensor": ("parallel.mode=tensor",),
    "1f1b": ("parallel.mode=pipeline",),
    "gpipe": ("parallel.mode=pipeline", "parallel.schedule=gpipe"),
}
HALF, MORE = f"steps={STEPS // 2}", f"steps={STEPS + 2}"
CONSTANT = "schedule.kind=constant"
"""A schedule without an end is the same in a training of another length."""


def spread(folder: Path, texts: Path, processes: int, plan: list[list[str]]) -> Path:
    """The runs of ``plan`` on that many ranks."""
    config = load_config(None, [*COMMON, CONSTANT, f"task.data={texts}", f"parallel.processes={processes}"])
    (folder / "config.json").write_text(json.dumps(config.record()))
    (folder / "plan.json").write_text(json.dumps(plan))
    words = [str(folder / name) for name in ("runs", "config.json", "plan.json")]
    run_module("tests.trainer.layout_ranks", processes, *words)
    return folder / "runs"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """On two ranks: each mode straight through and in halves, and what else needs two."""
    dropout, fsdp = "model.dropout=0.2", "parallel.mode=fsdp"
    plan = [[name, *mode] for name, mode in MODES.items()]
    for name, mode in MODES.items():
        plan += [[f"half-{name}", *mode, HALF], [f"half-{name}", f"steps={STEPS}"]]
    plan += [["rough", fsdp, dropout], ["half-rough", fsdp, dropout, HALF], ["half-rough", f"steps={STEPS}"]]
    plan += [[f"bare-{name}", *MODES[name], "monitor.enabled=false"] for name in ("tensor", "1f1b")]
    plan += [["ddp", HALF], ["ddp", f"steps={STEPS}", fsdp]]
    plan += [["stable", "parallel.mode=zero1", "optimizer.kind=stable_adamw", HALF], ["stable", f"steps={STEPS}", fsdp]]
    plan += [["bf16", fsdp, "precision.kind=bf16"], ["uneven", fsdp, *uneven(texts)]]
    return spread(tmp_path_factory.mktemp("layouts"), texts, 2, plan)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """On four ranks: pieces of pieces, straight through and in halves."""
    both = ("parallel.mode=fsdp", "parallel.tensor_processes=2")
    plan = [["both", *both], ["half-both", *both, HALF], ["half-both", f"steps={STEPS}"]]
    return spread(tmp_path_factory.mktemp("grid"), texts, 4, plan)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Trained:
    return one_process(tmp_path_factory.mktemp("alone"), texts)


def one_process(folder: Path, texts: Path, *overrides: str) -> Trained:
    return Desk(folder, texts).train(*COMMON, CONSTANT, *overrides)


def uneven(texts: Path) -> list[str]:
    """A batch size with which all held-out examples make an odd number of batches."""
    val_size = build_task(load_config(None, [*COMMON, f"task.data={texts}"])).val_size
    size = next(size for size in range(64, 400, 4) if -(-val_size // (size // 4)) % 2)
    return [f"batch_size={size}", "evaluation.batches=1000", "steps=2"]


def named(runs: Path, name: str) -> Run:
    (path,) = (path for path in runs.iterdir() if path.name[16:-5] == name)
    return open_run(path)


def pieces(run: Run) -> dict[str, torch.Tensor]:
    """Weights and optimizer state at the end, by name and offset."""
    found = {}
    for file in sorted((run.path / "checkpoints" / f"{STEPS:08d}").glob("shard-*")):
        with safe_open(file, framework="pt") as opened:
            offsets = json.loads(opened.metadata()["DCP_SHARDING_INFO"])
            found |= {f"{name} {offsets[name]['saved_offsets']}": opened.get_tensor(name) for name in offsets}
    return found


def assert_trains_alike(run: Run, alone: Trained) -> None:
    one = alone.run
    norm = "grad_norm_preclip"
    for rank in range(run.attempts[0].world_size):
        assert run.series("train_loss", rank=rank).value == pytest.approx(alone.losses(), abs=1e-5)
        assert run.series(norm, rank=rank).value == pytest.approx(one.series(norm).value, rel=1e-4)
        layers, whole = run.layers(norm, rank=rank), one.layers(norm)
        columns = [whole.names.index(name) for name in layers.names]
        np.testing.assert_allclose(layers.value, whole.value[:, columns], rtol=2e-4, atol=1e-6)
    assert run.series("val_loss").value == pytest.approx(one.series("val_loss").value, abs=1e-5)
    assert run.series("tokens").value.tolist() == one.series("tokens").value.tolist()


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_as_one_does(runs: Path, alone: Trained, mode: str) -> None:
    assert_trains_alike(named(runs, mode), alone)


def test_pieces_of_pieces_train_as_one_process_does(grid: Path, alone: Trained) -> None:
    assert_trains_alike(named(grid, "both"), alone)


@pytest.mark.parametrize("name", [*MODES, "rough", "both"])
def test_resuming_changes_no_bit(runs: Path, grid: Path, name: str) -> None:
    where = grid if name == "both" else runs
    whole, halved = named(where, name), named(where, f"half-{name}")
    assert [attempt.resume_step for attempt in halved.attempts] == [0, STEPS // 2]
    assert halved.series("train_loss").value.tolist() == whole.series("train_loss").value.tolist()
    assert_same(pieces(halved), pieces(whole))
    assert [event.fields["remarks"] for event in halved.events("resume")] == [[]] * whole.attempts[0].world_size


@pytest.mark.parametrize("mode", ["tensor", "1f1b"])
def test_unmonitored_training_clips_by_the_same_norm(runs: Path, mode: str) -> None:
    assert_same(pieces(named(runs, f"bare-{mode}")), pieces(named(runs, mode)))


@pytest.mark.parametrize("mode", [*MODES, "both"])
def test_one_process_goes_on_from_pieces(
    runs: Path, grid: Path, tmp_path: Path, texts: Path, alone: Trained, mode: str
) -> None:
    resumed = go_on_alone(named(grid if mode == "both" else runs, mode), tmp_path, texts)
    further = Desk(tmp_path, texts).resume(copied(alone.run, tmp_path), [MORE])
    assert resumed.losses() == pytest.approx(further.losses(), abs=2e-5)
    (event,) = resumed.run.events("resume")
    assert any("sums are taken in another order" in remark for remark in event.fields["remarks"])


@pytest.mark.parametrize("name", ["ddp", "stable"])
def test_another_layout_goes_on_and_says_that_it_is_not_exact(
    runs: Path, tmp_path: Path, texts: Path, alone: Trained, name: str
) -> None:
    run = named(runs, name)
    one = alone if name == "ddp" else one_process(tmp_path, texts, "optimizer.kind=stable_adamw")
    assert run.series("train_loss").value == pytest.approx(one.losses(), abs=1e-5)
    remarks = run.events("resume")[0].fields["remarks"]
    assert len(remarks) == 1 and "then, fsdp over 2 processes now: sums are taken in another order" in remarks[0]


def test_evaluation_of_an_odd_number_of_batches_is_that_of_one_process(runs: Path, tmp_path: Path, texts: Path) -> None:
    one = one_process(tmp_path, texts, *uneven(texts))
    assert named(runs, "uneven").series("val_loss").value == pytest.approx(one.run.series("val_loss").value, abs=1e-5)


def test_bf16_weights_on_the_way_change_no_more_than_autocast_does(runs: Path, tmp_path: Path, texts: Path) -> None:
    one = one_process(tmp_path, texts, "precision.kind=bf16")
    assert named(runs, "bf16").series("train_loss").value == pytest.approx(one.losses(), abs=0.02)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.n_layer=1"], "it holds 8 tensors that the model has not, blocks.1"),
        (["model.n_layer=3"], "Missing key in checkpoint state_dict: blocks.2"),
        (["model.d_model=16"], r"has shape \[32, 32\], and the parameter \[16, 16\]"),
    ],
)
def test_pieces_of_another_model_are_refused(
    runs: Path, tmp_path: Path, texts: Path, overrides: list[str], reason: str
) -> None:
    with pytest.raises(RunError, match=f"does not fit this configuration.*{reason}"):
        go_on_alone(named(runs, "fsdp"), tmp_path, texts, *overrides)


def go_on_alone(run: Run, folder: Path, texts: Path, *overrides: str) -> Trained:
    """Two steps more in this process, of a copy."""
    whole = ["parallel.mode=ddp", "parallel.processes=1", "parallel.tensor_processes=1"]
    return Desk(folder, texts).resume(copied(run, folder), [MORE, *whole, *overrides])


def copied(run: Run, folder: Path) -> Trained:
    path = shutil.copytree(run.path, folder / run.path.name)
    return Trained(TrainConfig(), Place(path, 0), Outcome("finished", STEPS, ""))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=fsdp"], "spreads the model over processes and parallel.processes is 1; give parallel.processes = 2"),
        (["mode=ddp", "processes=4", "tensor_processes=2"], "belongs to parallel.mode = fsdp and the mode is ddp"),
        (["mode=fsdp", "processes=6", "tensor_processes=4"], "nearest that fits: 8"),
        (["mode=tensor", "processes=3"], r"model\.n_head that fits: 3"),
        (["mode=pipeline", "processes=8"], r"model\.n_layer is 4; use at most 4 processes"),
        (["mode=pipeline", "processes=2"], "Give grad_accum_steps = 2 or more, or parallel.schedule = gpipe"),
        (["mode=pipeline", "processes=2", "schedule=gpipe", "model.tied_head=true"], "tied_head = false"),
        (["mode=pipeline", "processes=2", "schedule=gpipe", "precision.kind=fp16"], "use bf16 or fp32"),
        (["mode=tensor", "processes=2", "task.kind=charmlp"], "it takes gpt. parallel.mode = ddp, zero1 and fsdp"),
        (
            ["mode=fsdp", "processes=2", "fault.kind=weight_scale", "fault.step=1"],
            "has in pieces; use parallel.mode = ddp, or",
        ),
        (
            ["mode=fsdp", "processes=2", "ema.decay=0.9", "clip.kind=value"],
            r"ema\.decay and clip\.kind .* ddp or zero1",
        ),
    ],
)
def test_what_cannot_be_spread_is_refused_with_what_can(overrides: list[str], message: str) -> None:
    full = [word if "." in word.split("=")[0] else f"parallel.{word}" for word in overrides]
    with pytest.raises(ConfigError, match=message):
        load_config(None, full)


def test_models_and_optimizers_without_a_plan_are_refused() -> None:
    layout = Zero1(TrainConfig(), Parallel(0, 2, torch.device("cpu")))
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"cannot split the state of LBFGS over processes\. It takes AdamW, Adam"):
        layout.optimizer(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ConfigError, match=r"how to split the layers of a Linear .* zero1 and fsdp are for every task"):
        split_layers(model, None)  # type: ignore[arg-type]
