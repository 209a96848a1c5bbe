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
    # 1 + 8 + 5 losses, then a gradient and its product on rank 0 and 5 losses along update and gradient each.
    together, alone = zip(first["counts"], second["counts"], strict=True)
    assert first["sampled"][0] == first["sampled"][1] == second["sampled"][0] == second["sampled"][1]
    assert [direction for direction, *_ in first["sampled"][0]][2:] == ["update", "gradient"]
    assert alone == (25, 25) and together == (1 + 4 + 3 + 1 + 3 + 3, 1 + 4 + 2 + 2 + 2)
    assert (first["failed"], bool(second["failed"])) == ("", True)
    assert "lie in pieces on several ranks" in first["said"]
