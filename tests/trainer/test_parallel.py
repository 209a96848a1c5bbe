"""Two processes (torchrun, gloo): the same training as one, stopped and resumed at one step on both ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from monitor.errors import ConfigError
from monitor.runfile.reader import Run, open_run
from tests.trainer.conftest import TINY, Desk, Uneven, assert_same
from tests.trainer.two_ranks import SAMPLED, UNEVEN
from trainer.config import load_config
from trainer.parallel import start_parallel
from trainer.tasks import TASKS

STEPS = 12
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """The runs that two_ranks.py makes: straight, whole and halved."""
    folder = tmp_path_factory.mktemp("two-ranks")
    config = load_config(None, [*TINY, f"task.data={texts}", f"steps={STEPS}", "parallel.processes=2"])
    (folder / "config.json").write_text(json.dumps(config.record()))
    words = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    command = [
        sys.executable,
        *words,
        "-m",
        "tests.trainer.two_ranks",
        str(folder / "runs"),
        str(folder / "config.json"),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


def named(runs: Path, name: str) -> Run:
    (path,) = (path for path in runs.iterdir() if f"-{name}-" in path.name)
    return open_run(path)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.path / "checkpoints" / f"{STEPS:08d}" / "model.safetensors")


def test_two_ranks_train_as_one_process_does(runs: Path, desk: Desk) -> None:
    alone = desk.train(f"steps={STEPS}")
    both = named(runs, "straight")
    assert both.series("train_loss").value == pytest.approx(alone.losses(), abs=1e-5)
    assert both.series("val_loss").value == pytest.approx(alone.run.series("val_loss").value, abs=1e-5)
    norm = "grad_norm_preclip"
    assert both.series(norm).value == pytest.approx(alone.run.series(norm).value, rel=1e-4)
    assert both.series("tokens").value.tolist() == alone.run.series("tokens").value.tolist()
    assert both.series("batch_id").value.tolist() == alone.run.series("batch_id").value.tolist()


def test_two_ranks_share_out_samples_of_the_landscape_and_train_on_the_same_bits(runs: Path, desk: Desk) -> None:
    both, alone = named(runs, "sampled"), desk.train(f"steps={STEPS}", *SAMPLED).run
    assert_same(weights(both), weights(named(runs, "straight")))
    for kind, each in (("perturbation", 1), ("curvature", 1), ("line", 3)):
        ours, theirs = (
            sorted(run.landscape(kind), key=lambda sample: (sample.step, sample.direction)) for run in (both, alone)
        )
        assert [sample.step for sample in ours] == [sample.step for sample in theirs] == each * [6] + each * [12]
        for mine, own in zip(ours, theirs, strict=True):
            assert (mine.direction, mine.baseline) == (own.direction, pytest.approx(own.baseline, rel=1e-4))
            assert mine.loss == pytest.approx(own.loss, rel=1e-2)
    for name in ("sharpness", "curvature_along_update", "landscape_loss_mean"):
        assert both.series(name).value == pytest.approx(alone.series(name).value, rel=1e-2), name


def test_two_ranks_weigh_unequal_numbers_of_tokens_as_one_process_does(
    runs: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = TASKS["gpt"]
    monkeypatch.setitem(TASKS, "gpt", lambda config: Uneven(gpt(config)))
    alone = desk.train(f"steps={STEPS}", *UNEVEN, "grad_accum_steps=1")
    both = named(runs, "uneven")
    assert both.series("tokens").value.tolist() == alone.run.series("tokens").value.tolist()
    assert both.series("tokens").value[-1] < STEPS * 16 * 32
    for name in ("train_loss", "grad_norm_preclip", "val_loss"):
        assert both.series(name).value == pytest.approx(alone.run.series(name).value, rel=1e-4), name
    for name, weight in weights(both).items():
        assert torch.allclose(weight, alone.weights()[name], atol=1e-5), name


def test_each_rank_writes_its_own_files_with_the_plain_names(runs: Path) -> None:
    run = named(runs, "straight")
    assert run.attempts[0].world_size == 2
    losses = [run.series("train_loss", rank=rank).value for rank in (0, 1)]
    assert np.array_equal(losses[0], losses[1])
    assert "blocks.0.mlp.up.weight" in run.layers("grad_norm_preclip").names
    assert run.state.word == "finished"


def test_stop_that_reaches_one_rank_stops_both_and_resuming_changes_no_bit(runs: Path) -> None:
    whole, halved = named(runs, "whole"), named(runs, "halved")
    first, second = halved.attempts
    assert first.exit is not None and first.exit["outcome"] == "stopped"
    assert first.exit["reason"] == "asked to stop by SIGTERM"
    assert (second.resume_step, second.parent) == (5, 0)
    assert halved.series("train_loss").value.tolist() == whole.series("train_loss").value.tolist()
    assert_same(weights(halved), weights(whole))


def test_checkpoint_holds_the_random_state_of_each_rank(runs: Path) -> None:
    folder = named(runs, "whole").path / "checkpoints" / f"{STEPS:08d}"
    states = [torch.load(folder / f"rank-{rank:05d}.pt", weights_only=True)["torch"] for rank in (0, 1)]
    assert not torch.equal(states[0], states[1])


def test_absent_device_is_a_message() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ConfigError, match="device = cuda, but torch finds no CUDA device here"):
        start_parallel(load_config(None).parallel, "cuda")
