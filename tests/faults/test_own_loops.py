"""The quickest of the loops of one's own: those whose false alarms were mended stay quiet, and broken ones are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import monitor
from monitor.diagnosis.rules import RULES
from tests.faults.cases import ids
from tests.faults.own_loops.__main__ import LOOPS, main
from tests.faults.own_loops.broken import BROKEN
from tests.faults.own_loops.broken_third import BROKEN_THIRD
from tests.faults.own_loops.parts import run

OF_THE_MACHINE = ids(
    "exposed-communication input-bound low-device-use machine-trouble memory-growth slower-steps stall"
)
"""Rules that speak of the machine and of the process, in which other tests run too."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name",
    [
        "vae", "gan", "reinforce", "l-bfgs", "fine-tuning", "distillation",
        "weighed-tasks", "vq-vae", "thawed", "reptile",
    ],
)  # fmt: skip
def test_no_alarm_in_a_healthy_loop_of_ones_own(name: str, tmp_path: Path) -> None:
    report = monitor.diagnose(run(LOOPS[name], tmp_path, seed=0))
    assert report.steps >= 60
    assert [finding for finding in report.at_least("warning") if finding.id not in OF_THE_MACHINE] == []


@pytest.mark.parametrize("name", ["rate-x60", "nan", "detached"])
def test_a_broken_loop_of_ones_own_is_told_from_its_step_on(name: str, tmp_path: Path) -> None:
    loop = LOOPS[name]
    path = run(loop, tmp_path, seed=0)
    assert loop.onset is not None
    assert loop.told(monitor.diagnose(path))
    assert not loop.told(monitor.diagnose(path, until_step=loop.onset - 1))


@pytest.mark.parametrize(
    "name", ["late-head", "softmax-over-batch", "rate-per-batch", "advantage-flipped", "sigmoid-twice"]
)
def test_a_mistake_from_the_first_step_on_is_told_with_its_cause(name: str, tmp_path: Path) -> None:
    loop = LOOPS[name]
    report = monitor.diagnose(run(loop, tmp_path, seed=0))
    assert loop.told(report)
    assert loop.explained(report)


def test_what_would_be_right_to_say_is_what_a_rule_can_say() -> None:
    known = {rule.id for rule in RULES}
    assert known >= OF_THE_MACHINE
    assert all(loop.right and known >= loop.right for loop in (*BROKEN, *BROKEN_THIRD))


def test_runs_that_are_kept_are_asked_about_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", "l-bfgs,nan", "--runs", str(tmp_path)]
    main(words)
    first, runs = capsys.readouterr().out, set(tmp_path.glob("*/*"))
    main(words)
    assert capsys.readouterr().out == first
    assert set(tmp_path.glob("*/*")) == runs
    assert "60 healthy steps" in first.splitlines()[-1]
    assert first.splitlines()[-1].endswith("1 of 1 broken loops told")
