"""First weights from a file: a mistake is told in one message."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from monitor.errors import ConfigError
from tests.trainer.conftest import Desk, assert_same
from trainer.config import ModelConfig
from trainer.tasks.gpt import GPT
from trainer.tasks.weights import load_weights

SMALL = ModelConfig(n_layer=1, n_head=2, d_model=16, tied_head=True)


def test_weights_come_from_a_file_or_a_checkpoint_folder(tmp_path: Path) -> None:
    model = GPT(SMALL, 8)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    for source in (tmp_path, tmp_path / "model.safetensors"):
        other = GPT(SMALL, 8)
        load_weights(other, str(source))
        assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_a_resume_needs_the_first_weights_no_more(desk: Desk, tmp_path: Path) -> None:
    base = desk.train("steps=1")
    file = shutil.copy(base.place.checkpoints / "00000001" / "model.safetensors", tmp_path / "base.safetensors")
    whole = desk.train("steps=4", f"model.weights={file}")
    half = desk.train("steps=2", f"model.weights={file}")
    file.unlink()
    assert_same(whole.weights(), desk.resume(half, ["steps=4"]).weights())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no file "),
        (lambda path: path.mkdir(), "there is no file "),
        (lambda path: path.write_bytes(b"not tensors"), "cannot be read: "),
        (
            lambda path: safetensors.torch.save_model(GPT(SMALL, 9), str(path)),
            "made by another model (Error(s) in ",
        ),
    ],
    ids=["missing", "empty folder", "other file", "other model"],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "weights"
    make(path)
    with pytest.raises(ConfigError) as caught:
        load_weights(GPT(SMALL, 8), str(path))
    assert str(caught.value).startswith(f"model.weights = {path}: ")
    assert message in str(caught.value)
