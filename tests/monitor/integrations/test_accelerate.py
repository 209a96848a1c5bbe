"""A real Accelerate loop, with a monitor and as a plain tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from monitor.integrations.accelerate import GradiometerTracker
from monitor.runfile.reader import open_run
from tests.monitor.hook.problems import MLP


def _loader() -> DataLoader[Any]:
    x, y = MLP.batch(0)
    return DataLoader(TensorDataset(x.repeat(8, 1), y.repeat(8)), batch_size=len(x))


def test_a_watched_loop_is_measured_at_every_optimizer_step(tmp_path: Path) -> None:
    tracker = GradiometerTracker(tmp_path, name="loop")
    accelerator = Accelerator(cpu=True, log_with=tracker, gradient_accumulation_steps=2)
    accelerator.init_trackers("project", config={"lr": 0.1})
    model = MLP.made()
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), _loader())
    mon = tracker.watch(accelerator, model, optimizer)
    norms = []
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = MLP.loss(model, x, y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norms.append(float(accelerator.clip_grad_norm_(model.parameters(), 0.01)))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            mon.step(loss=loss)
            accelerator.log({"accuracy": 0.5, "note": "a text"})
    assert accelerator.get_tracker("gradiometer", unwrap=True) is mon
    accelerator.end_training()
    run = open_run(mon.run_dir)
    assert (run.name, run.state.word, run.last_step, run.config) == ("loop", "finished", 4, {"lr": 0.1})
    assert run.series("grad_norm_preclip").value.tolist() == pytest.approx(norms)
    assert run.series("accuracy").value.tolist() == [0.5] * 4


def test_without_a_monitor_it_records_what_is_logged(tmp_path: Path) -> None:
    tracker = GradiometerTracker(tmp_path)
    accelerator = Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("project", config={"lr": 0.1})
    accelerator.log({"loss": 2.0, "picture": object()}, step=1)
    accelerator.log({"eval_loss": 3.0}, step=1)
    accelerator.log({"loss": torch.tensor(1.5)})
    accelerator.end_training()
    assert tracker.run_dir is not None
    run = open_run(tracker.run_dir)
    assert (run.state.word, run.series("train_loss").value.tolist()) == ("finished", [2.0, 1.5])
    assert run.series("val_loss").step.tolist() == [1]
    assert run.problems == ()
