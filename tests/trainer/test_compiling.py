"""torch.compile: the same training, measured as without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from monitor.errors import ConfigError
from tests.trainer.conftest import Desk
from trainer.compiling import compiled
from trainer.config import CompileConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.skipif(
                    "GRADIOMETER_SLOW" not in os.environ, reason="GRADIOMETER_SLOW=1 compiles for a minute"
                ),
                pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),  # inductor's own import
            ],
        ),
    ],
)
def test_compiled_training_is_the_same_and_is_measured(desk: Desk, backend: str) -> None:
    common = ("steps=6", "grad_accum_steps=2", "evaluation.every_steps=3", "monitor.landscape_every=3", "ema.decay=0.9")
    plain = desk.train(*common)
    run = desk.train(*common, "compile.enabled=true", f"compile.backend={backend}").run
    for name in ("train_loss", "val_loss", "val_loss_ema", "grad_norm_preclip", "update_norm", "landscape_loss_mean"):
        series = run.series(name)
        assert series.step.tolist() == plain.run.series(name).step.tolist(), name
        assert series.value == pytest.approx(plain.run.series(name).value, rel=1e-4), name
    assert run.layers("grad_norm_preclip").names == plain.run.layers("grad_norm_preclip").names
    assert (run.series("forward_s").value > 0).all()
    assert not [event.fields for event in run.events("warning") if "forward" in event.fields["text"]]


def test_off_is_the_model_itself() -> None:
    model = nn.Linear(2, 2)
    assert compiled(model, CompileConfig(), CPU) is model


def test_missing_compiler_is_said_before_the_first_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    with pytest.raises(ConfigError, match=r"inductor needs a C\+\+ compiler on a CPU, and .*g\+\+ is not found. Inst"):
        compiled(nn.Linear(2, 2), CompileConfig(enabled=True), CPU)
