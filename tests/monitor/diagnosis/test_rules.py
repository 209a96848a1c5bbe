"""Every rule fires, stays silent on near misses, abstains, and says what it is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor.diagnosis import rules as rules_package
from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.rule import Severity
from monitor.diagnosis.rules import RULES
from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases import ABSTAINS, FIRES, NEAR_MISSES
from tests.monitor.diagnosis.cases.drawn import AT, Case
from tests.monitor.diagnosis.cases.gradient_explosion import again_and_again
from tests.monitor.diagnosis.cases.loss_spike import outliers
from tests.monitor.diagnosis.cases.stale_second_moment import after_a_harmless_one
from tests.monitor.diagnosis.controls import LAYERS

BY_ID = {rule.id: rule for rule in RULES}
HEADINGS = ("Why it matters:", "Stays silent:", "Thresholds:", "Source:")


def named(table: dict[str, tuple[Case, ...]]) -> list:
    return [pytest.param(rule, case, id=f"{rule}-{case.name}") for rule, cases in table.items() for case in cases]


@pytest.mark.parametrize(("rule", "case"), named(FIRES))
def test_fires(rule: str, case: Case):
    findings = diagnose(case.make(), rules=[BY_ID[rule]]).findings
    assert findings, "expected a finding, there is none"
    first = findings[0]
    assert str(first.severity) == case.severity, first.summary
    assert case.words in first.summary
    if case.onset is not None:
        assert first.onset_step == case.onset, first.summary
    assert first.onset_step <= first.first_step <= first.last_step


def test_a_harmless_event_of_one_layer_does_not_hide_a_later_one_of_another():
    findings = diagnose(after_a_harmless_one(), rules=[BY_ID["stale-second-moment"]]).findings
    told = [(finding.onset_step, str(finding.severity), finding.layer) for finding in findings]
    assert sorted(told) == [(51, "info", LAYERS[1]), (AT + 1, "warning", LAYERS[2])]


@pytest.mark.parametrize(("rule", "case"), named(NEAR_MISSES))
def test_near_miss_stays_silent(rule: str, case: Case):
    report = diagnose(case.make(), rules=[BY_ID[rule]])
    assert not report.abstained
    least = min(BY_ID[rule].severity, Severity.WARNING, key=lambda severity: severity.rank)
    assert not report.at_least(least), [finding.summary for finding in report.findings]


@pytest.mark.parametrize(("rule", "case"), named(ABSTAINS))
def test_abstains(rule: str, case: Case):
    report = diagnose(case.make(), rules=[BY_ID[rule]])
    assert not report.findings
    (abstained,) = report.abstained
    assert abstained.id == rule and case.words in abstained.reason


@pytest.mark.parametrize(
    ("rule", "make"), [("gradient-explosion", again_and_again), ("loss-spike", outliers)], ids=["gradient", "loss"]
)
def test_what_a_training_does_again_and_again_without_harm_is_information_from_the_fourth_time_on(
    rule: str, make: Callable[[int], Signals]
):
    report = diagnose(make(5), rules=[BY_ID[rule]])
    told = sorted((finding.onset_step, str(finding.severity)) for finding in report.findings)
    assert [severity for _, severity in told] == ["warning"] * 3 + ["info"] * 2


@pytest.mark.parametrize("table", [FIRES, NEAR_MISSES, ABSTAINS], ids=["fires", "near misses", "abstains"])
def test_every_rule_has_cases(table: dict[str, tuple[Case, ...]]):
    lacking = [rule.id for rule in RULES if not table.get(rule.id)]
    assert not lacking


def test_the_registry_lists_the_folder():
    folder = {path.stem for path in Path(rules_package.__file__).parent.glob("[a-z]*.py")}
    assert {rule.check.__module__.rsplit(".", 1)[1] for rule in RULES} == folder
    assert len(BY_ID) == len(RULES)


def test_every_fault_of_the_catalogue_has_its_rule_or_names_what_is_missing():
    rows = re.findall(r"^    F(\d\d) .+?  +(.+)$", rules_package.__doc__ or "", re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 44))
    seen = [re.findall(r"[a-z]+(?:-[a-z]+)*", told.split(";")[0].split(" where ")[0]) for _, told in rows]
    assert all(seen)
    assert {rule for rules in seen for rule in rules} == set(BY_ID)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_explains_itself(rule):
    assert [heading for heading in HEADINGS if heading not in rule.explanation] == []
    thresholds = [p for p in inspect.signature(rule.check).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert [p.name for p in thresholds if f"``{p.name}``" not in rule.explanation] == []
    assert rule.id == rule.check.__name__.replace("_", "-")
    assert rule.remedy.endswith(".")


def test_severities_are_ordered():
    assert [s for s in Severity if s.at_least("warning")] == [Severity.WARNING, Severity.CRITICAL]
    assert Severity.INFO.at_least(Severity.INFO) and not Severity.INFO.at_least("critical")
