"""Two real ranks: each one's own gradient, how long it takes and waits, and where their parameters come apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.runfile.ranks import rank_table
from monitor.runfile.reader import Run, open_run
from tests.monitor.hook.on_ranks import POKED, SLOW_STEP
from tests.monitor.hook.torchrun import run_ranks
from tests.monitor.hook.twin import total

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each of two ranks found, by kind of training."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = folder / "runs"
    runs.mkdir()
    run_ranks(folder, Path(__file__).with_name("on_ranks.py").read_text(), 2, str(runs))
    return [torch.load(runs / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


def _run(ranks: Ranks, kind: str) -> Run:
    return open_run(ranks[0][kind]["run"])


@pytest.mark.parametrize("kind", ["plain", "accumulated", "views"])
def test_each_rank_has_its_own_norms_beside_the_reduced_ones(ranks: Ranks, kind: str) -> None:
    run = _run(ranks, kind)
    for rank, of_rank in enumerate(ranks):
        own, reduced = of_rank[kind]["own"], of_rank[kind]["reduced"]
        layers = run.layers("grad_norm_local", rank=rank)
        assert layers.step.tolist() == list(range(1, 11))
        assert layers.present.all()
        np.testing.assert_allclose(layers.value, own[:10], rtol=2e-5, atol=1e-8)
        series = run.series("grad_norm_local", rank=rank)
        np.testing.assert_allclose(series.value, [total(norms) for norms in own[:10]], rtol=1e-5)
        after = run.series("grad_norm_preclip", rank=rank)
        np.testing.assert_allclose(after.value, [total(norms) for norms in reduced], rtol=1e-5)
    both = [run.series("grad_norm_local", rank=rank).value for rank in (0, 1)]
    assert (both[0] != both[1]).all()  # else this test could not tell local from reduced


@pytest.mark.parametrize("kind", ["plain", "accumulated", "synced", "views", "sharded once", "sharded always"])
def test_the_weights_are_bitwise_those_without_it(ranks: Ranks, kind: str) -> None:
    for of_rank in ranks:
        for ours, bare in zip(of_rank[kind]["weights"], of_rank[kind]["bare"], strict=True):
            assert torch.equal(ours, bare)


def test_nothing_is_left_in_the_model(ranks: Ranks) -> None:
    for of_rank in ranks:
        assert of_rank["plain"]["hooks"] == of_rank["views"]["hooks"] == 0
        assert of_rank["sharded once"]["comms"] == ["DefaultReduceScatter"]


@pytest.mark.parametrize("kind", ["synced", "sharded always"])
def test_a_gradient_reduced_in_every_micro_step_is_nobodys_own(ranks: Ranks, kind: str) -> None:
    run = _run(ranks, kind)
    assert "grad_norm_local" not in {*run.names, *run.layer_stats, *run.module_stats}
    assert len(run.series("first_gradient_s", rank=1)) > 0
    (note,) = [event for event in run.events("note") if "grad_norm_local is absent" in event.fields["text"]
               and event.rank == 0]  # fmt: skip
    assert "several times in a step" in note.fields["text"]


def test_groups_of_fsdp2_report_this_ranks_own_norm(ranks: Ranks) -> None:
    run = _run(ranks, "sharded once")
    for rank, of_rank in enumerate(ranks):
        found = of_rank["sharded once"]
        modules = run.modules("grad_norm_local", rank=rank)
        shown = [name for name, there in zip(modules.names, modules.present[0], strict=True) if there]
        assert shown == ["blocks.0", "blocks.1"]
        for step, own in enumerate(found["own"]):
            by_name = dict(zip(found["names"], own, strict=True))
            for block in shown:
                norm = total([value for name, value in by_name.items() if name.startswith(f"{block}.")])
                assert modules.value[step, modules.names.index(block)] == pytest.approx(norm, rel=1e-5)
            assert run.series("grad_norm_local", rank=rank).value[step] == pytest.approx(total(own), rel=1e-5)


def test_noise_scale_from_ranks_is_that_of_the_closed_form(ranks: Ranks) -> None:
    run = _run(ranks, "noisy")
    found = np.concatenate([run.series("gradient_noise_scale", rank=rank).value[200:] for rank in (0, 1)])
    assert np.median(found) == pytest.approx(ranks[0]["noisy"]["expected"], rel=0.3)


def test_no_noise_scale_where_the_reduced_gradient_may_not_be_the_mean(ranks: Ranks) -> None:
    run = open_run(ranks[0]["hooked"])
    assert len(run.series("grad_norm_local", rank=1)) > 0
    for kind in (ranks[0]["hooked"], ranks[0]["joined"]["run"]):
        assert "gradient_noise_scale" not in open_run(kind).names


def test_the_slow_rank_shows_in_its_own_time_and_the_others_wait(ranks: Ranks) -> None:
    run = _run(ranks, "plain")
    first = [run.series("first_gradient_s", rank=rank) for rank in (0, 1)]
    comm = [run.series("comm_s", rank=rank) for rank in (0, 1)]
    at = SLOW_STEP - 1
    assert first[1].step[at] == SLOW_STEP
    assert first[1].value[at] > 0.5
    assert first[1].value[at] - first[0].value[at] > 0.3  # rank 0 was at most as late as this machine made it
    assert comm[0].value[comm[0].step == SLOW_STEP] > 0.3  # who waits communicates: never the way to name the slow one


def test_communication_is_a_span_of_which_a_part_is_exposed(ranks: Ranks) -> None:
    run = _run(ranks, "plain")
    for rank in (0, 1):
        span, exposed, share = (
            run.series(name, rank=rank) for name in ("comm_s", "comm_exposed_s", "comm_overlap_share")
        )
        assert span.step.tolist() == exposed.step.tolist() == share.step.tolist()
        assert len(span) >= 8  # DDP takes no time of its very first steps
        assert ((exposed.value >= 0) & (exposed.value <= span.value)).all()
        np.testing.assert_allclose(share.value, 1 - exposed.value / span.value)
        steps = run.series("backward_s", rank=rank)
        backward = dict(zip(steps.step.tolist(), steps.value.tolist(), strict=True))
        for step, value in zip(span.step.tolist(), span.value.tolist(), strict=True):
            assert value < backward[step] + 0.05  # several buckets, one span: it lies within backward


def test_events_mark_the_moments_that_ddps_own_timers_mark(ranks: Ranks) -> None:
    for of_rank in ranks:
        *steps, left = of_rank["events"]
        assert left == {"hooks": 0}
        told = [step for step in steps if step["marks"]]
        assert len(told) >= 3  # from the first step on whose buckets are known
        for step in told:
            sent, ready, back = step["marks"]
            of_ddp_sent, of_ddp_ready, of_ddp_back = step["ddp"]
            later = [moment for moment in step["there"] if moment > sent]
            # DDP sends the first bucket after the hook of its last gradient, and before that of the next gradient.
            assert sent <= of_ddp_sent <= later[1]
            assert max(step["there"][:-1]) <= ready <= of_ddp_ready
            assert of_ddp_back <= back
            assert later[1:], "all gradients are in one bucket, so that the first is any"
            exposed = (back - ready) * 1e-9
            assert step["values"] == [
                {
                    "comm_s": pytest.approx((back - sent) * 1e-9),
                    "comm_exposed_s": pytest.approx(exposed),
                    "comm_overlap_share": pytest.approx(1 - exposed / ((back - sent) * 1e-9)),
                }
            ]


def test_ranks_with_uneven_data_end_under_join(ranks: Ranks) -> None:
    run = _run(ranks, "joined")
    assert [run.series("grad_norm_preclip", rank=rank).step[-1] for rank in (0, 1)] == [14, 8]
    assert run.series("grad_norm_local", rank=0).step[-1] >= 10
    for a, b in zip(ranks[0]["joined"]["weights"], ranks[1]["joined"]["weights"], strict=True):
        assert torch.equal(a, b)


def test_the_table_of_ranks_names_the_slow_rank(ranks: Ranks) -> None:
    table = rank_table(_run(ranks, "plain"), window=1)
    assert table.ranks == (0, 1)
    row = table.first_step.tolist().index(SLOW_STEP)
    assert table.median["first_gradient_s"][row].argmax() == 1
    assert table.median["train_loss"][row].tolist() == [0.0, 1.0]
    assert (table.median["grad_norm_local"][row] > 0).all()
    assert (table.count["backward_s"] == 1).all()


def test_a_weight_poked_on_one_rank_is_found_and_named(ranks: Ranks) -> None:
    table = rank_table(open_run(ranks[0]["poked"]))
    assert table.compared.tolist() == [5, 10, 15]
    assert table.differ.tolist() == [10, 15]
    assert table.apart[0].layers == (POKED,)
    assert rank_table(_run(ranks, "plain")).differ.size == 0
