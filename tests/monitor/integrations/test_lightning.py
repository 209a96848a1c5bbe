"""A real Lightning Trainer: what the module logs itself is what the run must hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from monitor.integrations.lightning import GradiometerCallback
from monitor.runfile.reader import open_run

pytestmark = [
    # Lightning's own, with a torch that is newer than it.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    # Where Slurm is installed; Lightning says so each time that a training is not started by it.
    pytest.mark.filterwarnings("ignore:The `srun` command is available on your system:UserWarning"),
]


@pytest.fixture(autouse=True)
def _no_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a Slurm job Lightning would take the job's tasks for its own."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


class Digits(lightning.LightningModule):
    """Two layers; keeps what Lightning's own ``grad_norm`` says."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.norms: list[dict[str, float]] = []
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.hparams["fail_at"] == batch_idx:
            raise RuntimeError("a broken batch")
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        self.log("margin", loss * 2)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.norms.append({name: float(value) for name, value in grad_norm(self, norm_type=2).items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def _data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :4].argmax(1)), batch_size=8)


def _fit(folder: Path, *callbacks: Any, fail_at: int | None = None, **options: Any) -> Digits:
    lightning.seed_everything(0, verbose=False)
    module = Digits(fail_at)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, callbacks=[*callbacks],
        **options,
    )  # fmt: skip
    trainer.fit(module, _data(), _data())
    return module


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_losses_and_norms_are_those_of_the_library(tmp_path: Path, accumulation: int, clip: float | None) -> None:
    ours = GradiometerCallback(tmp_path / "runs", name="digits", tokens=lambda batch: len(batch[0]))
    module = _fit(tmp_path, ours, accumulate_grad_batches=accumulation, gradient_clip_val=clip)
    assert ours.monitor is not None
    run = open_run(ours.monitor.run_dir)
    steps = 16 // accumulation
    assert (run.name, run.state.word, run.last_step) == ("digits", "finished", steps)
    losses = np.array(module.losses).reshape(steps, accumulation).mean(1)
    np.testing.assert_allclose(run.series("train_loss").value, losses, rtol=1e-6)
    totals = [norms["grad_2.0_norm_total"] for norms in module.norms]
    np.testing.assert_allclose(run.series("grad_norm_preclip").value, totals, rtol=1e-4)
    matrix = run.layers("grad_norm_preclip")
    for column, name in enumerate(matrix.names):
        theirs = [norms[f"grad_2.0_norm/{name}"] for norms in module.norms]
        np.testing.assert_allclose(matrix.value[:, column], theirs, rtol=1e-4, atol=1e-4)  # theirs is rounded
    assert run.series("tokens").value[-1] == steps * accumulation * 8
    assert (run.series("clip_coef").value.min() < 1) == (clip is not None)
    assert run.series("val_loss").step.tolist() == [steps // 2, steps]
    assert "margin" in run.names
    assert not [event for event in run.events("warning") if "forward" in str(event.fields)]


def test_the_weights_are_bitwise_those_without_it(tmp_path: Path) -> None:
    with_it = _fit(tmp_path, GradiometerCallback(tmp_path / "runs"), gradient_clip_val=0.05)
    without = _fit(tmp_path, gradient_clip_val=0.05)
    assert all(torch.equal(a, b) for a, b in zip(with_it.parameters(), without.parameters(), strict=True))


def test_an_exception_ends_the_run_as_crashed(tmp_path: Path) -> None:
    ours = GradiometerCallback(tmp_path / "runs")
    with pytest.raises(RuntimeError, match="a broken batch"):
        _fit(tmp_path, ours, fail_at=3)
    assert ours.monitor is not None
    run = open_run(ours.monitor.run_dir)
    assert (run.state.word, run.last_step) == ("crashed", 3)
