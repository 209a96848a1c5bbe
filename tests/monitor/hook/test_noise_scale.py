"""The noise scale of gradients whose noise is known in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import monitor
from monitor.runfile.reader import open_run


@pytest.mark.parametrize("micro_steps", [2, 4])
@pytest.mark.parametrize("mean_of", ["losses", "nothing"])
def test_it_is_that_of_the_closed_form(tmp_path: Path, micro_steps: int, mean_of: str) -> None:
    """loss = mean of x·w has the gradient mean(x): |G|² = |mu|², tr(Σ) of one sample = d s²."""
    width, samples, mu, spread = 50, 8, 0.3, 1.0
    model = torch.nn.Linear(width, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    with monitor.attach(model, optimizer, run=tmp_path, detail="full", budget=1.0) as mon:
        for _ in range(1000):
            for _ in range(micro_steps):
                x = mu + spread * torch.randn(samples, width, generator=generator)
                loss = model(x).mean()
                (loss / micro_steps if mean_of == "losses" else loss).backward()
            mon.clip_grad_norm_(1e-3)
            optimizer.step()
            optimizer.zero_grad()
            mon.step()
    found = open_run(mon.run_dir).series("gradient_noise_scale").value
    expected = width * spread**2 / (width * mu**2) / (samples * micro_steps)
    assert np.median(found[len(found) // 4 :]) == pytest.approx(expected, rel=0.3)


def test_without_accumulation_there_is_none(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for _ in range(40):
            model(torch.ones(2, 3)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            mon.step()
    assert "gradient_noise_scale" not in open_run(mon.run_dir).names
