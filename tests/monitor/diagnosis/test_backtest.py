"""Other thresholds: accepted by name, refused with what is accepted, and compared run by run."""

from __future__ import annotations

import pytest

from monitor.diagnosis.backtest import backtest
from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.rules import RULES
from monitor.diagnosis.settings import rule_named, thresholds_of, with_thresholds
from monitor.errors import ConfigError
from tests.monitor.diagnosis.cases.drawn import AT, changed, level, only

SPIKE = rule_named("loss-spike", RULES)


def test_a_lower_bar_finds_more_and_a_higher_one_less():
    small, large = (
        only(train_loss=changed(level(sd=0.002), slice(AT, AT + 4), 1.06)),
        only(train_loss=changed(level(), AT, 1.5)),
    )
    lower = backtest([("small", small), ("large", large)], SPIKE, {"effect": 0.04})
    higher = backtest([("small", small), ("large", large)], SPIKE, {"effect": 0.8})
    assert (lower.alarms("before"), lower.alarms("after")) == (1, 2)
    assert (higher.alarms("before"), higher.alarms("after")) == (1, 0)
    assert [run.changed for run in lower.runs] == [True, False]
    assert lower.runs_with_alarm("after") == 2
    assert lower.per_thousand_steps("after") == pytest.approx(1000 * 2 / (small.last_step + large.last_step))


def test_no_thresholds_change_nothing():
    result = backtest([("a", only(train_loss=changed(level(), AT, 1.5)))], SPIKE, {})
    assert result.alarms("before") == result.alarms("after") == 1 and not result.runs[0].changed


def test_a_rule_that_cannot_tell_says_why():
    (run,) = backtest([("short", only(train_loss=level()[:3]))], SPIKE, {"effect": 0.2}).runs
    assert run.abstained is not None and "3 losses" in run.abstained.reason


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_defaults_given_by_hand_give_the_rule_itself(rule):
    signals = only(train_loss=changed(level(), AT, 1.5))
    same = with_thresholds(rule, thresholds_of(rule))
    assert diagnose(signals, rules=[same]).to_dict() == diagnose(signals, rules=[rule]).to_dict()
    assert same.explanation == rule.explanation


def test_a_wrong_name_is_answered_with_those_there_are():
    with pytest.raises(ConfigError, match="Did you mean loss-spike"):
        rule_named("los-spike", RULES)
    with pytest.raises(ConfigError, match=r"no threshold 'z'.*effect=0\.08"):
        with_thresholds(SPIKE, {"z": 7})
    with pytest.raises(ConfigError, match="whole number"):
        with_thresholds(rule_named("non-finite", RULES), {"gap": 2.5})
