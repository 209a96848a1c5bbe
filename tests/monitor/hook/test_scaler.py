"""fp16 with a GradScaler: norms are unscaled, overflowed steps are rows, gradients are unscaled exactly once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import monitor
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import MLP
from tests.monitor.hook.twin import norms_of_grads, total

STEPS = 8
OVERFLOW = 4
"""The step whose loss is multiplied by so much that its gradients overflow."""

torch_clip = torch.nn.utils.clip_grad_norm_


def _train(run, way, *, tell_attach=True, optimizer_kind=torch.optim.SGD, monitored=True):
    """Eight steps with a scaler; ``way`` is how the loop clips. Returns monitor, model and the twin's numbers."""
    model = MLP.made()
    optimizer = optimizer_kind(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    truth = []
    mon = monitor.attach(model, optimizer, run=run, scaler=scaler if tell_attach else None) if monitored else None
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = MLP.loss(model, *MLP.batch(step))
        if step == OVERFLOW:
            loss = loss * 1e35
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        truth.append((norms_of_grads(model, scale), scale))
        if way == "monitor":
            mon.clip_grad_norm_(0.5) if mon else (scaler.unscale_(optimizer), torch_clip(model.parameters(), 0.5))
        elif way in ("unscale, monitor", "unscale, torch", "unscale"):
            scaler.unscale_(optimizer)
        if way == "unscale, monitor":
            mon.clip_grad_norm_(0.5) if mon else torch_clip(model.parameters(), 0.5)
        elif way in ("unscale, torch", "torch while scaled"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        if mon:
            mon.step(loss=loss)
    if mon:
        mon.close()
    return mon, model, truth


WAYS = ["none", "unscale", "monitor", "unscale, monitor", "unscale, torch", "torch while scaled"]


@pytest.mark.parametrize("tell_attach", [True, False], ids=["told", "not told"])
@pytest.mark.parametrize("way", WAYS)
def test_norms_are_unscaled_and_skipped_steps_are_rows(tmp_path, way, tell_attach):
    if way == "monitor" and not tell_attach:
        pytest.skip("mon.clip_grad_norm_ can only unscale with a scaler it was given")
    mon, _, truth = _train(tmp_path, way, tell_attach=tell_attach)
    rows, layers = recorded.scalars(mon.run_dir), recorded.layers(mon.run_dir)
    assert sorted(rows) == list(range(1, STEPS + 1))
    skipped = 0
    for step, (norms, scale) in enumerate(truth, 1):
        row = rows[step]
        assert row["loss_scale"] == scale
        if step == OVERFLOW:
            skipped += 1
            assert not math.isfinite(row["grad_norm_preclip"])
            assert not np.isfinite(np.array(layers[step], float)).all()
        else:
            np.testing.assert_allclose(layers[step], norms, rtol=1e-5)
            assert row["grad_norm_preclip"] == pytest.approx(total(norms), rel=1e-5)
            if "torch" in way or "monitor" in way:
                limit = 0.5 / scale if way == "torch while scaled" else 0.5
                assert row["grad_norm_postclip"] == pytest.approx(min(total(norms), limit), rel=1e-4)
            else:
                assert row["grad_norm_postclip"] == row["grad_norm_preclip"]
        assert row["skipped_steps"] == skipped
    scales = [row["loss_scale"] for row in rows.values()]
    assert scales[OVERFLOW] == scales[OVERFLOW - 1] / 2  # the row of a step holds the scale before its update()
    assert max(scales) > scales[0]  # and it grew
    warnings = [event["text"] for event in recorded.events(mon.run_dir, "warning")]
    if way == "torch while scaled":
        assert len(warnings) == 1
        assert "still multiplied by the loss scale" in warnings[0]
        assert all("clip_max_norm" not in row for row in rows.values())
    else:
        assert warnings == []


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_those_of_a_loop_without_the_monitor(tmp_path, way):
    _, ours, _ = _train(tmp_path, way)
    _, theirs, _ = _train(tmp_path, way, monitored=False)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_an_optimizer_that_skips_on_the_device(tmp_path):
    """Fused AdamW is called even when gradients overflowed; only the fallen scale tells that it did nothing."""

    def fused(parameters, lr):
        return torch.optim.AdamW(parameters, lr=lr, fused=True)

    mon, _, truth = _train(tmp_path, "none", optimizer_kind=fused)
    rows, layers = recorded.scalars(mon.run_dir), recorded.layers(mon.run_dir)
    assert [row["skipped_steps"] for row in rows.values()] == [0.0] * 3 + [1.0] * 5
    for step, (norms, _) in enumerate(truth, 1):
        if step != OVERFLOW:
            np.testing.assert_allclose(layers[step], norms, rtol=1e-5)


def test_a_disabled_scaler_is_no_scaler(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with monitor.attach(model, optimizer, run=tmp_path, scaler=scaler) as mon:
        scaler.scale(MLP.loss(model, *MLP.batch(0))).backward()
        expected = total(norms_of_grads(model))
        mon.clip_grad_norm_(10.0)
        scaler.step(optimizer)
        scaler.update()
        mon.step()
    row = recorded.scalars(mon.run_dir)[1]
    assert "loss_scale" not in row
    assert "skipped_steps" not in row
    assert row["grad_norm_preclip"] == pytest.approx(expected, rel=1e-5)


def test_clipping_twice_unscales_once(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with monitor.attach(model, optimizer, run=tmp_path, scaler=scaler) as mon:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(MLP.loss(model, *MLP.batch(0))).backward()
            expected = total(norms_of_grads(model, 256.0))
            mon.clip_grad_norm_(1e9)
            assert total(norms_of_grads(model)) == pytest.approx(expected, rel=1e-5)
            mon.clip_grad_norm_(1e9)
            assert total(norms_of_grads(model)) == pytest.approx(expected, rel=1e-5)
            scaler.step(optimizer)
            scaler.update()
            mon.step()
