"""One torch thread: the tests share two cores, and no number may depend on how many there are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from monitor import guard
from monitor.hook import observe


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    torch.set_num_threads(1)
    guard.forget_reports()
    yield
    assert not observe._listeners, "a test left a monitor attached"
    assert not observe._wrapped


@pytest.fixture
def not_strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[warnings.WarningMessage]]:
    """As a user has it: errors of the monitor become warnings, collected here."""
    monkeypatch.setattr(guard, "STRICT", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
