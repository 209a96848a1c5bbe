"""What the rules see: empty signals, cuts, gates and the situation of a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monitor.diagnosis.context import early_bar, gate_steps, gradient_moved, lr_jump_steps, span, warmup_end
from monitor.diagnosis.view import Mark, Signals
from monitor.diagnosis.wording import count, number, percent, times
from monitor.runfile.begin import begin_attempt, create_run
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter
from tests.monitor.diagnosis.cases.drawn import changed, level, loss_and_norm, norms, only


def test_an_unknown_signal_is_empty_and_not_there():
    signals = only(a=np.ones(3), b=np.zeros(0))
    assert "a" in signals and "b" not in signals and "c" not in signals
    assert len(signals["c"]) == 0 and signals.layers("grad_norm_preclip") is None
    assert signals.last_step == 3 and Signals.from_arrays({}).last_step == 0


def test_until_cuts_everything():
    names = ("w",)
    signals = Signals.from_arrays(
        {"a": np.arange(10.0)},
        layers={"grad_norm_preclip": (names, np.ones((10, 1)))},
        events=[Mark("resume", 3), Mark("resume", 7), Mark("note", None)],
    ).until(5)
    matrix = signals.layers("grad_norm_preclip")
    assert len(signals["a"]) == signals.last_step == 5 and matrix is not None and len(matrix.step) == 5
    assert [event.step for event in signals.events("resume")] == [3]
    assert signals.until(9).last_step == 5 and signals.until(None) is signals
    assert signals.until(0).layers("grad_norm_preclip") is None


def test_values_are_computed_once_per_view():
    calls = []
    signals = only(a=np.ones(3))
    for _ in range(2):
        signals.remember("key", lambda: calls.append(1))
    signals.until(2).remember("key", lambda: calls.append(2))
    assert calls == [1, 2]


def test_gates_come_from_restarts_events_and_tokens():
    lr = np.array([1.0] * 10 + [0.1] * 10 + [1.0] * 20)
    tokens = np.cumsum([100.0] * 30 + [200.0] * 10)
    signals = Signals.from_arrays({"lr": lr, "tokens": tokens}, events=[Mark("data_stage", 5), Mark("lr_change", 8)])
    assert gate_steps(signals) == (5, 21, 31)
    assert gate_steps(Signals.from_arrays({"train_loss": lr}, events=[Mark("lr_change", 8)])) == (8,)


def test_a_jump_to_a_new_height_is_no_gate():
    lr = np.array([1e-3] * 20 + [3e-2] * 20)
    signals = only(lr=lr)
    assert gate_steps(signals) == () and lr_jump_steps(signals) == (21,)
    steps_of_a_warmup = only(lr=np.array([1e-5, 1e-4, 1e-3, 1e-3]))
    assert lr_jump_steps(steps_of_a_warmup) == () and warmup_end(steps_of_a_warmup) == 3


def test_near_means_rows_where_a_log_is_sparse():
    dense, sparse = (
        only(train_loss=np.ones(50)),
        Signals.from_arrays({"train_loss": (np.arange(0, 5000, 100), np.ones(50))}),
    )
    assert span(dense, 20) == 20 and span(sparse, 20) == 300


def test_the_bar_falls_after_warm_up_and_a_prefix_has_the_same():
    lr = np.minimum(1.0, np.arange(1, 1001) / 100)
    step = np.arange(1, 1001)
    bar = early_bar(only(lr=lr), step, early=0.6, later=0.05)
    assert bar[199] == pytest.approx(0.6) and bar[299] == pytest.approx(0.325) and bar[-1] == pytest.approx(0.05)
    for cut in (30, 90, 150, 260, 700):
        np.testing.assert_array_equal(early_bar(only(lr=lr[:cut]), step[:cut], early=0.6, later=0.05), bar[:cut])


def test_given_an_event_a_smaller_rise_of_the_gradient_counts():
    signals = loss_and_norm(level(), changed(norms(sd=0.25), [198, 199], 3.5))
    assert gradient_moved(signals, 201) == 199
    assert gradient_moved(loss_and_norm(level(), norms(sd=0.25)), 201) is None
    assert gradient_moved(only(train_loss=level()), 201) is None


def test_numbers_are_told_with_sensible_digits():
    assert [number(x) for x in (3.0, 0.123456, 1e-9, float("nan"), float("inf"), -float("inf"))] == [
        "3", "0.123", "1e-09", "NaN", "+Inf", "-Inf",
    ]  # fmt: skip
    assert [times(x) for x in (3.94, 12.4, 1.2e5, float("inf"))] == ["x3.9", "x12", "x1.2e+05", "xinf"]
    assert [percent(x) for x in (0.0123, 0.184)] == ["+1.2 %", "+18 %"]
    assert [count(1, "loss"), count(2, "loss"), count(2, "step")] == ["1 loss", "2 losses", "2 steps"]


def test_modules_and_ranks_of_a_run_directory(tmp_path: Path):
    path = create_run(tmp_path, name="two ranks")
    attempt = begin_attempt(path, world_size=2)
    for rank in range(2):
        writer = RankWriter(path, attempt, rank)
        writer.define_modules(["act"])
        writer.system(1e9 + 2.5, {"rss_gib": 0.5 + rank})
        for step in (1, 2, 3):
            writer.scalars(step, 1e9 + step, {"train_loss": float(10 * rank + step)})
            writer.modules(step, 1e9 + step, {"dead_units_share": np.array([0.25 * rank], np.float32)})
        writer.close()
    signals = Signals.from_run(open_run(path)).until(2)
    assert signals.ranks == (0, 1)
    assert signals.of_rank(1)["train_loss"].value.tolist() == [11.0, 12.0]
    dead = signals.of_rank(1).modules("dead_units_share")
    assert dead is not None and dead.names == ("act",) and dead.value[:, 0].tolist() == [0.25, 0.25]
    memory = signals.of_rank(1).system("rss_gib")
    assert (memory.step.tolist(), memory.value.tolist()) == ([2], [1.5])
    assert len(signals.until(1).system("rss_gib")) == len(signals.system("gpu_util_pct")) == 0
    assert signals.modules("dead_units_share") is not None and signals.modules("activation_rms") is None
    with pytest.raises(KeyError):
        signals.of_rank(2)


def test_one_process_has_no_ranks_and_arrays_may_have_them():
    assert only(train_loss=level()).ranks == ()
    views = [Signals.from_arrays({"step_time_s": np.full(5, share)}) for share in (1.0, 2.0)]
    both = Signals.from_arrays({"train_loss": np.ones(5)}, ranks=views)
    assert both.ranks == (0, 1) and both.until(3).of_rank(1)["step_time_s"].value.tolist() == [2.0] * 3
