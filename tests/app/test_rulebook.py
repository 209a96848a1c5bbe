"""The rules on the command line: listed, explained, and tried with other thresholds on real runs."""

from __future__ import annotations

import json

import pytest

from monitor.diagnosis.rules import RULES
from tests.app.test_cli import ROOT, gradiometer

SAMPLES = ROOT / "sample_runs"


def test_every_rule_is_listed_with_what_it_looks_for():
    done = gradiometer("rules")
    assert done.returncode == 0, done.stderr
    assert [rule.id for rule in RULES if rule.id not in done.stdout] == []


def test_a_rule_is_explained_with_its_defaults():
    done = gradiometer("rules", "loss-spike")
    for part in ("Why it matters:", "Stays silent:", "Source:", "effect=0.08", "Remedy:"):
        assert part in done.stdout, done.stderr


def test_a_threshold_is_tried_on_the_sample_runs():
    done = gradiometer("backtest", SAMPLES, "--rule", "loss-spike", "--set", "effect=2", "--json")
    answer = json.loads(done.stdout)
    assert answer["alarms"]["after"] < answer["alarms"]["before"]
    assert answer["thresholds"] == {"effect": 2.0} and len(answer["runs"]) == len(list(SAMPLES.glob("*/run.json")))
    told = gradiometer("backtest", SAMPLES / "gpt-healthy", "--rule", "loss-spike").stdout
    assert "0 alarms in 0 of 1 runs" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rules", "los-spike"], "Did you mean loss-spike?"),
        (["backtest", SAMPLES, "--rule", "loss-spike", "--set", "z=7"], "no threshold 'z'"),
        (["backtest", SAMPLES, "--rule", "loss-spike", "--set", "effect"], "expected NAME=NUMBER"),
        (["backtest", ROOT / "nowhere", "--rule", "loss-spike"], "no such folder"),
    ],
)
def test_mistakes_are_answered_in_one_message(words, message):
    done = gradiometer(*words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
