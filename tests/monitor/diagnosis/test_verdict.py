"""What became of an incident, on rows made here: the words, when they are given, and what they may not depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.experiments import experiments
from monitor.diagnosis.rule import Severity
from monitor.diagnosis.verdict import LEAST_AT_END, Outcome, Trouble, Word, continued, judge, ranked, steps_needed
from monitor.diagnosis.view import Signals

STEPS, FORK, ONSET = 400, 190, 200


def losses(seed: int = 0, *, spike: int | None = None, level: float = 1.0) -> np.ndarray:
    """float64[400]: a loss that falls with noise; five steps four times as high from ``spike`` on, then ``level``."""
    rng = np.random.default_rng(seed)
    loss = (1.5 + 2.0 * np.exp(-np.arange(STEPS) / 120)) * np.exp(rng.normal(0, 0.01, STEPS))
    if spike is not None:
        loss[spike - 1 : spike + 4] *= 4.0
        loss[spike + 4 :] *= level
    return loss


def run(loss: np.ndarray, first: int = 1) -> Signals:
    steps = np.arange(1, STEPS + 1)
    rate = np.full(STEPS, 1e-3)
    norm = np.exp(np.random.default_rng(9).normal(0, 0.05, STEPS))
    rows = {"train_loss": loss, "lr": rate, "grad_norm_preclip": norm}
    return Signals.from_arrays({name: (steps[first - 1 :], value[first - 1 :]) for name, value in rows.items()})


PARENT = run(losses(spike=ONSET))


def trouble() -> Trouble:
    report = diagnose(PARENT).to_dict()
    (incident,) = report["incidents"]
    found = Trouble.of(incident, report["findings"])
    assert found.onset_step == ONSET and "loss-spike" in found.kinds
    return found


TROUBLE = trouble()


def judged(child: np.ndarray, *, until: int = STEPS, ended: bool = False, parent: Signals = PARENT) -> Outcome:
    signals = continued(parent, run(child, FORK + 1).until(until), FORK)
    return judge(TROUBLE, signals, FORK, before=parent, ended=ended)


def test_gone_is_said_when_enough_steps_have_been_trained_without_it_and_not_before() -> None:
    needed = steps_needed(TROUBLE)
    assert judged(losses(1), until=ONSET + needed - 1).word == "not decided"
    outcome = judged(losses(1), until=ONSET + needed)
    assert (outcome.word, outcome.past, outcome.step) == ("gone", needed, ONSET + needed)
    assert outcome.loss == pytest.approx(np.median(losses(1)[ONSET + needed - 20 : ONSET + needed]))
    assert outcome.loss_before == pytest.approx(np.median(losses()[ONSET - 21 : ONSET - 1]))


def test_a_training_that_ends_soon_after_the_onset_is_judged_on_twenty_steps_and_no_fewer() -> None:
    for past, word in ((LEAST_AT_END - 1, "not decided"), (LEAST_AT_END, "gone")):
        outcome = judged(losses(1), until=ONSET + past, ended=True)
        assert outcome.word == word, outcome.text


def test_the_same_incident_at_the_same_steps_came_back_and_later_it_moved() -> None:
    again, later = judged(losses(1, spike=ONSET + 3)), judged(losses(1, spike=ONSET + 90))
    assert (again.word, again.onset_step) == ("came back", ONSET + 3)
    assert (later.word, later.onset_step) == ("moved", ONSET + 90)
    assert judged(losses(1, spike=ONSET + 3), until=ONSET + 12).word == "came back"  # told at once, not at the end


def test_what_no_rule_speaks_of_is_not_gone_while_the_loss_is_above_what_it_was() -> None:
    raised = losses(1)
    raised[FORK:] = raised[FORK - 20] * np.linspace(1.0, 1.25, STEPS - FORK)
    outcome = judged(raised)
    assert outcome.word != "gone"


def test_a_signal_that_the_child_does_not_record_leaves_its_incident_undecided() -> None:
    unseen = replace(TROUBLE, kinds=frozenset({"dead-units"}))
    outcome = judge(unseen, continued(PARENT, run(losses(1), FORK + 1), FORK), FORK, before=PARENT)
    assert outcome.word == "not decided" and "dead-units cannot be looked for" in outcome.text


def test_the_child_is_seen_with_its_parents_past_and_not_with_its_future() -> None:
    seen = continued(PARENT, run(losses(1), FORK + 1), FORK)["train_loss"]
    assert seen.step.tolist() == list(range(1, STEPS + 1))
    assert seen.value.tolist() == [*losses(spike=ONSET)[:FORK], *losses(1)[FORK:]]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(1, 99),
    until=st.integers(FORK + 1, STEPS),
    spike=st.one_of(st.none(), st.integers(ONSET, 350)),
    broken=st.floats(0.1, 50.0),
)
def test_the_word_follows_from_what_was_trained_and_not_from_how_the_broken_run_went_on(
    seed: int, until: int, spike: int | None, broken: float
) -> None:
    child = losses(seed, spike=spike)
    other = losses(spike=ONSET)
    other[ONSET + 5 :] *= broken
    live, again = judged(child, until=until), judged(child, until=until, parent=run(other))
    assert (live.word, live.past) == (again.word, again.past)
    assert live.past == max(0, until - ONSET)
    if live.word == "gone":
        assert live.past >= steps_needed(TROUBLE)
        assert spike is None or spike > until


def test_a_trouble_is_read_as_it_was_written_and_what_is_none_is_refused() -> None:
    assert Trouble.read(TROUBLE.record()) == TROUBLE
    for broken in ({}, {**TROUBLE.record(), "severity": "worst"}, {**TROUBLE.record(), "kinds": "loss-spike"}):
        with pytest.raises(ValueError, match=r"missing|is none"):
            Trouble.read(broken)


def test_what_mended_it_ranks_first_and_of_those_the_lowest_loss() -> None:
    words: list[tuple[Word, float]] = [
        ("came back", 1.0),
        ("gone", 2.0),
        ("not decided", 0.5),
        ("gone", 1.5),
        ("moved", 0.1),
    ]
    outcomes = [Outcome(word, "", 0, 0, 0, loss) for word, loss in words]
    assert ranked(outcomes) == [3, 1, 2, 4, 0]


def test_a_warning_where_it_was_critical_is_bounded_and_the_loss_decides() -> None:
    critical = replace(TROUBLE, severity=Severity.CRITICAL)
    child = losses(1, spike=ONSET + 3)
    signals = continued(PARENT, run(child, FORK + 1), FORK)
    assert judge(critical, signals, FORK, before=PARENT).word == "gone"


def test_the_recommended_change_is_tried_first_and_without_one_the_batches_are_left_out() -> None:
    config = {"optimizer": {"lr": 0.002}, "clip": {"max_norm": 1.0}}
    incident = {
        "onset_step": 200,
        "first_step": 205,
        "last_step": 260,
        "remedy": {"config_patch": {"optimizer.lr": 0.001}},
    }
    found = experiments(incident, config)
    assert [one.key for one in found] == ["remedy", "skip-batches", "tighter-clip", "again"], (
        "half the rate stands there"
    )
    assert found[1].patch == {"skip.after_step": 199, "skip.batches": 6}
    assert found[1].text == "without the 6 batches of steps 200 to 205"
    bare = {**incident, "remedy": {"config_patch": {}}}
    late = experiments({**bare, "first_step": 390}, {})[0]
    assert late.patch == {"skip.after_step": 199, "skip.batches": 20}
    # Weights that are NaN stay so to the end, by one batch: whatever follows is its consequence.
    at_once = experiments({**bare, "first_step": 200, "last_step": 390}, {})[0]
    assert at_once.patch == {"skip.after_step": 199, "skip.batches": 1}
    assert at_once.text == "without the batch of step 200"
