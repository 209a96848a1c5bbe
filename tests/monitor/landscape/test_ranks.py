"""Two real ranks share one surface out, under DistributedDataParallel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.monitor.hook.torchrun import run_module


def test_ranks_share_a_surface_out_and_all_have_the_whole(tmp_path: Path) -> None:
    run_module("tests.monitor.landscape.on_ranks", 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["same"] and second["same"]
    assert np.array_equal(first["loss"], first["alone"]) and first["loss"] == second["loss"]
    # The second was interrupted at its third point: what both had done was shared, and only the rest done again.
    assert (first["partly"], second["partly"]) == (False, True)
    assert first["taken"] == second["taken"] and np.sum(first["taken"]) == 13 + 2
    assert first["calls"] + second["calls"] == 25 + 1
    assert "lie in pieces on several ranks" in first["said"]
