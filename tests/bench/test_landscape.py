"""The benchmark of planes times as many plain passes as points, on the very same loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.bench.landscape import InTurns, gpt, loss_of, plane, product_over_gradient


def test_a_plane_in_turns_is_the_plane_and_each_line_has_its_plain_passes() -> None:
    model = gpt()
    assert 1.0e6 < sum(weight.numel() for weight in model.parameters()) < 1.1e6
    turns, surface = plane(model, 1, 3)
    assert surface.complete and (len(turns.plane), len(turns.plain)) == (2, 2)  # the last line has none behind it
    with torch.no_grad():
        assert surface.loss[1, 1] == pytest.approx(float(loss_of(model.eval(), 1)()))
    assert np.ptp(surface.loss) > 0 and product_over_gradient(model, 1) > 0


def test_a_ratio_is_the_median_over_lines_after_the_first() -> None:
    turns = InTurns(lambda: torch.zeros(()), 3)
    turns.plane, turns.plain = (
        [(9.0, 9.0), (2.0, 1.0), (1.0, 1.0), (4.0, 4.0)],
        [(1.0, 1.0), (1.0, 1.0), (1.0, 0.9), (1.0, 1.0)],
    )
    assert (turns.ratio(0), turns.ratio(1)) == (0.5, 0.9)
