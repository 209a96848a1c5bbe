"""Findings that belong together are told as one incident, explained by the one behind the others."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.incidents import GAP_STEPS, LONG_STEPS, explaining, incidents
from monitor.diagnosis.rule import Cause, Finding, Severity
from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import changed, level, only
from tests.monitor.diagnosis.mishaps import bloom

NOTHING = Signals.from_arrays({})


def finding(id: str, onset: int, last: int, severity: str = "warning", cause: str = "unknown") -> Finding:
    return Finding(id, onset, onset, last, Severity(severity), id=id, causes=(Cause(cause, 0.9),))


def groups(*findings: Finding) -> list[list[str]]:
    return [[f.id for f in incident.findings] for incident in incidents(findings, NOTHING)]


def test_findings_close_in_time_are_one_incident():
    assert groups(finding("a", 100, 110), finding("b", 110 + GAP_STEPS, 200)) == [["a", "b"]]
    assert groups(finding("a", 100, 110), finding("b", 111 + GAP_STEPS, 200)) == [["a"], ["b"]]


def test_a_level_raised_to_the_end_does_not_gather_all_that_comes_later():
    assert groups(finding("a", 100, 9000), finding("b", 101 + LONG_STEPS + GAP_STEPS, 5000)) == [["a"], ["b"]]


def test_information_joins_an_incident_and_is_none_by_itself():
    assert groups(finding("note", 100, 110, "info")) == []
    assert groups(finding("note", 100, 110, "info"), finding("a", 105, 120)) == [["note", "a"]]
    (incident,) = incidents([finding("note", 90, 110, "info"), finding("a", 105, 120)], NOTHING)
    assert incident.onset_step == 105  # a note does not move the onset of what it is no explanation for


@pytest.mark.parametrize(
    ("told", "onset", "alarm", "root"),
    [
        ("loss-spike", 101, 101, "loss-spike"),
        ("loss-spike", 101, 110, "weight-norm"),
        ("loss-spike", 105, 105, "weight-norm"),
        ("slow-divergence", 101, 101, "weight-norm"),
    ],
    ids=["at-once", "slowly", "after-the-weights", "a-climb"],
)
def test_shrinking_weights_explain_no_loss_that_leapt_before_they_could(told: str, onset: int, alarm: int, root: str):
    loss = Finding("loss", onset, alarm, 200, Severity.CRITICAL, id=told, causes=(Cause("data-change", 0.5),))
    shrink = Finding(
        "weights", 101, 120, 200, Severity.WARNING, id="weight-norm", evidence={"before": 11.0, "after": 9.0},
        causes=(Cause("weight-decay", 0.7),),
    )  # fmt: skip
    assert explaining([loss, shrink]).id == root


def test_worst_first():
    told = incidents([finding("a", 100, 110), finding("b", 500, 510, "critical")], NOTHING)
    assert [incident.severity for incident in told] == ["critical", "warning"]


@pytest.mark.parametrize(
    ("chain", "root"),
    [
        ([("non-finite", 305, "critical", "gradient-explosion"), ("gradient-explosion", 300, "warning", "lr")],
         "gradient-explosion"),
        ([("non-finite", 305, "critical", "bad-batch"), ("gradient-explosion", 300, "warning", "lr")], "non-finite"),
        ([("a", 300, "critical", "b"), ("b", 300, "critical", "a")], "b"),
        ([("a", 300, "critical", "b"), ("b", 310, "warning", "c")], "a"),
    ],
    ids=["explained by an earlier one", "explained by itself", "a circle ends", "a later one explains nothing"],
)  # fmt: skip
def test_the_finding_behind_the_others_explains_them(chain, root):
    group = [finding(id, onset, onset + 5, severity, cause) for id, onset, severity, cause in chain]
    assert explaining(group).id == root


def test_a_published_spike_is_one_incident_with_its_layers_in_the_timeline():
    truth = bloom(np.random.default_rng(1000), 600, 200)
    report = diagnose(truth.signals)
    (incident,) = report.incidents
    assert all(f in incident.findings for f in report.at_least("warning"))
    moved = [d.signal for d in incident.timeline]
    assert moved.index("grad_norm_preclip") < moved.index("train_loss")
    told = report.to_dict()["incidents"][0]
    assert set(told) == {
        "id", "onset_step", "first_step", "last_step", "severity", "summary", "findings", "layer", "rank", "causes",
        "remedy", "timeline",
    }  # fmt: skip
    (explains,) = [finding for finding in incident.findings if finding.summary == incident.summary]
    assert told["id"] == explains.id
    assert [report.findings[index].id for index in told["findings"]] == [f.id for f in incident.findings]


def test_two_spikes_far_apart_are_two_incidents():
    report = diagnose(only(train_loss=changed(changed(level(steps=500), 150, 1.5), 350, 1.5)))
    assert [incident.onset_step for incident in report.incidents] == [151, 351]
    assert report.to_text().startswith("this run: 2 incidents, the first at step 151")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (finding("lr-schedule", 103, 103, cause="lr-too-high"), "lr-schedule"),
        (finding("odd-input", 101, 101, "info", cause="bad-batch"), "odd-input"),
        (finding("odd-input", 104, 104, "info", cause="bad-batch"), "loss-spike"),
        (finding("odd-input", 100, 300, cause="data-change"), "loss-spike"),
        (finding("dead-units", 130, 400, cause="dying-relu"), "dead-units"),
        (finding("dead-units", 130, 400, "info", cause="dying-relu"), "loss-spike"),
        (finding("vanishing-gradient", 130, 400, cause="gradient-cut-off"), "loss-spike"),
        (finding("overfitting", 100, 400, cause="overfitting"), "loss-spike"),
    ],
    ids=["rate", "batch", "batch-later", "same-cause", "dead", "few-dead", "cut-off-later", "no-explanation"],
)
def test_what_came_from_outside_or_has_a_place_explains_a_loss_that_says_no_more(other: Finding, expected: str):
    spike = Finding("loss", 101, 110, 200, Severity.CRITICAL, id="loss-spike", causes=(Cause("data-change", 0.9),))
    assert explaining([spike, other]).id == expected
