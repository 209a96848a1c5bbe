"""Progress for people: times are given, nothing sleeps."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from trainer.progress import LiveLine, PlainLines, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_every_few_seconds_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = PlainLines(steps=10, every_s=4.0, clock=clock)
    for step in range(1, 11):
        clock.now += 1.0
        lines.step(step, tokens=2048, lr=1e-3, loss=3.0 - step / 10, grad_norm=0.5)
    assert capsys.readouterr().out.splitlines() == [
        "step 4/10  loss 2.6000  lr 1.00e-03  grad norm 0.5  2,048 tokens/s  6 s left",
        "step 8/10  loss 2.2000  lr 1.00e-03  grad norm 0.5  2,048 tokens/s  2 s left",
        "step 10/10  loss 2.0000  lr 1.00e-03  grad norm 0.5  2,048 tokens/s  0 s left",
    ]


def test_a_resumed_run_counts_its_own_steps_only(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = PlainLines(steps=100, every_s=4.0, clock=clock)
    for step in range(51, 55):
        clock.now += 1.0
        lines.step(step, tokens=10, lr=1e-3, loss=1.0, grad_norm=None)
    assert capsys.readouterr().out == "step 54/100  loss 1.0000  lr 1.00e-03  10 tokens/s  46 s left\n"


def test_loss_is_read_from_the_device_only_when_shown() -> None:
    class Loss:
        reads = 0

        def __float__(self) -> float:
            Loss.reads += 1
            return 1.0

    clock = Clock()
    lines = PlainLines(steps=100, every_s=4.0, clock=clock)
    for step in range(1, 9):
        clock.now += 1.0
        lines.step(step, tokens=10, lr=1e-3, loss=Loss(), grad_norm=None)
    assert Loss.reads == 2


def test_terminal_gets_one_live_line_and_messages_above_it() -> None:
    clock = Clock()
    screen = io.StringIO()
    live = LiveLine(10, 0, Console(file=screen, force_terminal=True, width=120), clock)
    live.say("held-out loss 2.5 [not markup]")
    for step in range(1, 11):
        clock.now += 1.0
        live.step(step, tokens=2048, lr=1e-3, loss=2.0, grad_norm=0.5)
    live.close()
    shown = screen.getvalue()
    assert "held-out loss 2.5 [not markup]" in shown
    assert "10/10" in shown and "loss 2.0000" in shown and "2,048 tokens/s" in shown
