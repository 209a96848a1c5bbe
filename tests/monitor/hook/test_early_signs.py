"""From an early sign on every step is measured; a restless training is not measured densely all the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import monitor
from monitor.hook.early_signs import FEWEST, SHARE_ARMED, WINDOW, EarlySigns, Outliers
from monitor.hook.probe import ARMED_STEPS, Decoded, Probes
from monitor.hook.timing import StepClock
from monitor.runfile.reader import open_run
from tests.monitor.hook.problems import MLP


class Watch:
    """Signs of a made-up training."""

    def __init__(self) -> None:
        self.signs = EarlySigns()
        self.probes = Probes([self.signs], StepClock())
        self.told: list[tuple[int, str]] = []
        self.probes.tell = lambda kind, **fields: self.told.append((fields["step"], fields["text"]))
        self.step = 0

    def row(self, steps: int = 1, *, layers: Any = None, modules: Any = None, **values: float) -> None:
        for _ in range(steps):
            self.step += 1
            self.probes.begin(self.step)
            self.signs.row_complete(self.step, Decoded(values, layers or {}, modules or {}))


def _steady(watch: Watch, steps: int = 100) -> None:
    noise = np.random.default_rng(0)
    for _ in range(steps):
        watch.row(
            grad_norm_preclip=float(np.exp(0.2 * noise.standard_normal())), train_loss=2.0, loss_scale=1024.0,
            layers={"adam_rms": np.array([1.0, 1 + 0.1 * noise.random()], np.float32)},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"grad_norm_preclip": 20.0}, "grad_norm_preclip 20 stands"),
        ({"train_loss": 5.0}, "train_loss 5 stands"),
        ({"loss_scale": 512.0}, "the loss scale fell from 1024 to 512"),
        ({"layers": {"adam_rms": np.array([1.0, 2.5], np.float32)}}, "2.5 times what Adam's second moment expects"),
    ],
)
def test_each_sign_arms_every_probe(row: dict[str, Any], words: str) -> None:
    watch = Watch()
    _steady(watch)
    assert watch.told == []
    watch.row(**{"grad_norm_preclip": 1.0, "train_loss": 2.0, "loss_scale": 1024.0, **row})
    ((step, text),) = watch.told
    assert (step, words in text) == (101, True), text
    watch.probes.begin(102)
    assert watch.probes.armed


def test_a_layer_that_passes_the_limit_now_and_then_is_no_sign() -> None:
    watch = Watch()
    for _ in range(50):
        watch.row(9, layers={"adam_rms": np.array([1.2], np.float32)})
        watch.row(layers={"adam_rms": np.array([2.5], np.float32)})
    assert watch.told == []


def test_a_loss_that_stays_higher_is_a_sign_though_no_step_is_an_outlier() -> None:
    noise = np.random.default_rng(0)
    for rise, told in ((1.08, False), (1.24, True)):
        watch = Watch()
        for step in range(1, 201):
            level = rise if step > 150 else 1.0
            watch.row(train_loss=float(level * np.exp(0.05 * np.clip(noise.standard_normal(), -1, 1))))
        assert [step for step, _ in watch.told] == ([155] if told else [])
        assert all("stood" in text for _, text in watch.told)


def test_attention_logits_that_double_are_a_sign() -> None:
    watch = Watch()
    for bound in (2.0, 5.0, 20.0):
        watch.row(modules={"attention_logit_bound": (np.array([bound, 0.0]), np.array([True, False]))})
        watch.row()
    assert watch.told == []
    watch.row(modules={"attention_logit_bound": (np.array([60.0, 0.0]), np.array([True, False]))})
    assert "doubled" in watch.told[0][1]


@pytest.mark.parametrize("resumed_at", [0, 1_000_000])
def test_a_restless_training_is_armed_for_a_bounded_share_of_its_steps(resumed_at: int) -> None:
    watch, armed = Watch(), 0
    watch.step = resumed_at
    for step in range(1, 6001):
        watch.row(loss_scale=float(2 ** (20 - step % 20)), grad_norm_preclip=1.0)
        armed += watch.probes.armed
    assert 2 * ARMED_STEPS <= armed <= ARMED_STEPS + SHARE_ARMED * 6000
    assert len(watch.told) == armed // ARMED_STEPS or len(watch.told) == armed // ARMED_STEPS + 1


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=3 * WINDOW))
def test_an_outlier_is_what_the_definition_says(values: list[float]) -> None:
    outliers = Outliers()
    kept: list[float] = []
    for value in values:
        z = outliers.add(value)
        window = np.array(kept[-WINDOW:])
        if not (np.isfinite(value) and value > 0):
            assert z == 0
            continue
        log = float(np.log(value))
        if len(window) < FEWEST or log <= window.max():
            assert z == 0
        else:
            middle = np.median(window)
            spread = 1.4826 * np.median(np.abs(window - middle))
            assert z == pytest.approx((log - middle) / max(spread, 1e-3))
        kept.append(log)


def test_a_spike_in_a_real_loop_is_followed_by_dense_measurements(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with monitor.attach(model, optimizer, run=tmp_path, budget=1.0) as mon:
        for number in range(1, 121):
            loss = MLP.loss(model, *MLP.batch(number % 8))
            (loss * (100 if number == 80 else 1)).backward()
            optimizer.step()
            optimizer.zero_grad()
            mon.step(loss=loss)
    run = open_run(mon.run_dir)
    (sign, *_) = run.events("early_sign")
    assert sign.step == 80
    steps = run.layers("weight_norm").step
    assert set(range(84, 121)) <= set(steps.tolist())  # a few steps later at most: rows arrive late
    assert len(steps[steps < 80]) < 20
