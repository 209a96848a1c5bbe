"""Equal parameters have equal checksums, and any flipped bit has another."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from monitor.hook.checksum import Checksum
from monitor.hook.layers import layer_table
from tests.monitor.hook.problems import PROBLEMS


def _checksum(model: nn.Module) -> float:
    reading = Checksum(layer_table(model)).end_step()
    assert reading is not None
    return reading.decode([tensor.numpy() for tensor in reading.tensors]).scalars["parameter_checksum"]


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_copies_have_the_same_one(dtype: torch.dtype) -> None:
    model = PROBLEMS[0].made().to(dtype)
    assert _checksum(model) == _checksum(copy.deepcopy(model)) != _checksum(PROBLEMS[0].made(seed=1).to(dtype))


@given(st.data())
def test_one_flipped_bit_changes_it(data: st.DataObject) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    before = _checksum(model)
    parameter = data.draw(st.sampled_from(list(model.parameters())))
    flat = parameter.detach().view(-1).view(torch.int32)
    at, bit = data.draw(st.integers(0, flat.numel() - 1)), data.draw(st.integers(0, 31))
    flat[at] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert _checksum(model) != before


def test_it_survives_the_way_from_a_device_in_float32() -> None:
    reading = Checksum(layer_table(PROBLEMS[0].made())).end_step()
    assert reading is not None
    exact, packed = (
        reading.decode([t.to(kind).numpy() for t in reading.tensors]) for kind in (torch.int64, torch.float32)
    )
    assert exact.scalars == packed.scalars
    for one, other in zip(exact.layers["parameter_checksum"], packed.layers["parameter_checksum"], strict=True):
        assert (one == other).all()


def test_tensors_that_change_places_are_told_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    swapped = nn.Sequential(model[1], model[0])
    assert _checksum(model) != _checksum(swapped)
