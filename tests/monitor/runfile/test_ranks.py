"""The table of ranks against plain loops over what was written, and on runs that lack things."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from monitor.errors import RunError
from monitor.runfile.ranks import DETAILED, MOST_WINDOWS, rank_table
from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run

Rows = dict[int, dict[str, float]]
LAYERS = ("a", "b", "c")


def written(folder: Path, ranks: dict[int, Rows], layers: dict[int, dict[int, list[float]]] | None = None) -> Run:
    """A run of one attempt: rank to step to values."""
    path = create_run(folder)
    begin_attempt(path)
    for rank, rows in ranks.items():
        writer = RankWriter(path, 0, rank)
        writer.define_layers(LAYERS, [(1,)] * 3)
        for step, values in rows.items():
            writer.scalars(step, float(step), values)
            if layers and step in layers[rank]:
                writer.layers(step, float(step), {"parameter_checksum": np.array(layers[rank][step], np.float32)})
        writer.close()
    return open_run(path)


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_medians_and_counts_are_those_of_a_plain_loop(tmp_path: Path, window: int) -> None:
    random = np.random.default_rng(0)
    ranks: dict[int, Rows] = {rank: {} for rank in (0, 1, 3)}
    for rank, rows in ranks.items():
        for step in range(1, 60):
            if random.random() < 0.8:
                rows[step] = {"step_time_s": random.random(), "train_loss": math.nan if step == 20 else random.random()}
                if step % 10 == 0 and rank:
                    rows[step]["first_gradient_s"] = random.random()
    table = rank_table(written(tmp_path, ranks), window=window, first_step=3, last_step=50)
    assert table.ranks == (0, 1, 3)
    assert set(table.median) == {"step_time_s", "train_loss", "first_gradient_s"}
    seen = 0
    for row, (first, last) in enumerate(zip(table.first_step, table.last_step, strict=True)):
        assert last - first == window - 1
        for at, rank in enumerate(table.ranks):
            for name in table.median:
                values = [
                    one[name] for step, one in ranks[rank].items()
                    if max(first, 3) <= step <= min(last, 50) and name in one
                ]  # fmt: skip
                assert table.count[name][row, at] == len(values)
                expected = math.nan if not values or any(map(math.isnan, values)) else statistics.median(values)
                np.testing.assert_equal(table.median[name][row, at], expected)
                seen += len(values)
    assert seen > 200


def test_without_a_window_there_are_as_many_rows_as_one_looks_at(tmp_path: Path) -> None:
    few = written(tmp_path / "few", {0: {step: {"train_loss": 1.0} for step in range(1, 50)}})
    assert len(rank_table(few).first_step) == 49
    many = written(tmp_path / "many", {0: {7 * step: {"train_loss": 1.0} for step in range(1, 2000)}})
    assert MOST_WINDOWS / 2 < len(rank_table(many).first_step) <= MOST_WINDOWS


def test_ranks_that_hold_the_same_are_equal_and_one_that_does_not_is_named(tmp_path: Path) -> None:
    checksums = {step: {0: 5.0, 1: 5.0, 2: 5.0 if step < 30 else 6.0} for step in (10, 20, 30, 40)}
    ranks = {rank: {step: {"parameter_checksum": of[rank]} for step, of in checksums.items()} for rank in range(3)}
    del ranks[0][40]
    own = {rank: {step: [1.0, 2.0, 3.0] for step in checksums} for rank in range(3)}
    own[2][30] = [1.0, 9.0, 3.0]
    table = rank_table(written(tmp_path, ranks, own))
    assert table.compared.tolist() == [10, 20, 30, 40]
    assert table.differ.tolist() == [30, 40]
    first, second = table.apart
    assert (first.step, first.checksums, first.odd, first.layers) == (30, (5.0, 5.0, 6.0), (2,), ("b",))
    assert (second.checksums, second.odd, second.layers) == ((None, 5.0, 6.0), (), ())  # one against one


def test_of_many_differing_steps_the_first_are_told_in_full(tmp_path: Path) -> None:
    ranks = {rank: {step: {"parameter_checksum": float(rank)} for step in range(1, 100)} for rank in (0, 1)}
    table = rank_table(written(tmp_path, ranks))
    assert len(table.differ) == 99
    assert [one.step for one in table.apart] == list(range(1, DETAILED + 1))


def test_one_rank_has_nobody_to_be_compared_with(tmp_path: Path) -> None:
    table = rank_table(written(tmp_path, {0: {1: {"train_loss": 1.0, "parameter_checksum": 3.0}}}))
    assert len(table.compared) == len(table.differ) == 0


def test_a_run_that_has_nothing_gives_an_empty_table(tmp_path: Path) -> None:
    path = create_run(tmp_path)
    with pytest.raises(RunError, match="no attempt yet"):
        rank_table(open_run(path))
    begin_attempt(path)
    table = rank_table(open_run(path))
    assert (table.ranks, table.median, table.apart, len(table.first_step)) == ((), {}, (), 0)


def test_what_cannot_be_asked_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = written(tmp_path, {0: {1: {"train_loss": 1.0}, 2: {"train_loss": 1.0}}})
    with pytest.raises(RunError, match=r"no attempt 4\. Its attempts are: 0"):
        rank_table(run, attempt=4)
    with pytest.raises(ValueError, match="window is 0"):
        rank_table(run, window=0)
    assert len(rank_table(run, window=10**30).first_step) == 1
    monkeypatch.setattr("monitor.runfile.ranks.MOST_CELLS", 1)
    with pytest.raises(RunError, match=r"Ask for fewer steps .* or a larger window"):
        rank_table(run, window=1)
