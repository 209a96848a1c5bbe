"""Findings while a real training goes on: told in the run, recorded in full, and given to the loop."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import monitor
from monitor.diagnosis.engine import diagnose
from monitor.hook import findings as module
from monitor.hook.findings import Findings
from monitor.runfile.reader import open_run

MOST_S = 120.0
"""For a machine that is busy with other things; seconds where it is not."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_AFTER_S", 0.0)


class Enough(Exception):
    pass


def train(folder: Path, on_critical: Any, spoil_at: int = 60) -> tuple[monitor.Run, bool]:
    """A small regression that loses its weights at a step; whether ``on_critical`` ended it by an exception."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(4096, 8)
    y = x[:, :1] * 2 + 0.1 * torch.randn(4096, 1)
    ended = False
    with monitor.attach(model, optimizer, run=folder, on_critical=on_critical) as mon:
        until = time.monotonic() + MOST_S
        try:
            while time.monotonic() < until:
                rows = torch.randint(0, 4096, (64,))
                loss = nn.functional.mse_loss(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                if mon.step_number == spoil_at:
                    with torch.no_grad():
                        next(model.parameters()).fill_(float("nan"))
                optimizer.step()
                mon.step(loss=loss)
                time.sleep(0.005)
        except Enough:
            ended = True
    (path,) = folder.iterdir()
    return open_run(path), ended


def test_a_critical_finding_reaches_the_run_and_the_loop(tmp_path: Path) -> None:
    given: list[Any] = []

    def stop(finding: Any) -> None:
        given.append(finding)
        raise Enough

    run, ended = train(tmp_path, stop)
    assert ended
    told = run.events("finding")
    assert told[0].fields["id"] == given[0]["id"] == "non-finite"
    afterwards = {(finding.id, finding.onset_step) for finding in diagnose(run).at_least("critical")}
    assert (told[0].fields["id"], told[0].fields["onset_step"]) in afterwards
    keys = [(event.fields["id"], event.fields["onset_step"], event.fields["severity"]) for event in told]
    assert len(set(keys)) == len(keys)
    frozen = [event.fields["reason"] for event in run.events("flight")]
    assert any(reason.startswith("finding ") for reason in frozen), frozen


def test_a_warning_word_warns_and_the_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mon_step = monitor.Monitor.step

        def counted(self: Any, *given: Any, **named: Any) -> None:
            mon_step(self, *given, **named)
            if any("critical finding" in str(one.message) for one in caught):
                seen.append(self.step_number)
                if len(seen) > 5:
                    raise Enough

        monkeypatch.setattr(monitor.Monitor, "step", counted)
        _, ended = train(tmp_path, "warn")
    assert ended and seen[-1] > seen[0], "steps after the warning"


def test_another_word_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="on_critical is 'halt'"):
        monitor.attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), run=tmp_path, on_critical=cast("Any", "halt")
        )


def test_the_process_ends_with_the_monitor_and_says_what_it_cannot_do(tmp_path: Path) -> None:
    problems: list[str] = []
    followed = Findings(tmp_path / "nothing here", 0, lambda finding: None, problems.append)
    until = time.monotonic() + MOST_S
    while not problems and time.monotonic() < until:
        followed.tend()
        time.sleep(0.05)
    followed.close()
    assert problems and "no such folder" in problems[0]
