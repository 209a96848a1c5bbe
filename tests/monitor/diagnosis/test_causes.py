"""Causes follow what was measured around the event, and name what was not."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.rule import Cause
from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, changed, constant_lr, layer_norms, level, norms, put
from tests.monitor.diagnosis.controls import LAYERS

EMBEDDING = ("token_embedding.weight", *LAYERS[1:])


def spike(lead: int = 4, **more: np.ndarray) -> dict[str, np.ndarray]:
    """The gradient grows over four steps and the loss follows ``lead`` steps later."""
    norm = changed(norms(), slice(AT, AT + 5), 4.0 ** np.arange(1, 6))
    return {
        "train_loss": changed(level(), slice(AT + lead, AT + 12), 1.8),
        "grad_norm_preclip": norm,
        "lr": constant_lr(),
        **more,
    }


def causes(signals: Signals) -> dict[str, Cause]:
    (incident,) = diagnose(signals).incidents
    return {cause.id: cause for cause in incident.causes}


def with_rms(highest: float) -> Signals:
    rms = np.ones((STEPS, len(LAYERS)))
    rms[AT - 2 : AT + 2, 0] = highest
    return Signals.from_arrays(
        spike(), layers={"adam_rms": (EMBEDDING, rms), "grad_norm_preclip": (EMBEDDING, layer_norms())}
    )


def test_a_large_rms_makes_the_second_moment_the_cause_and_a_usual_one_clears_it():
    guilty, cleared = causes(with_rms(40.0)), causes(with_rms(1.0))
    assert next(iter(guilty)) == "stale-second-moment"
    assert any(
        "RMS_t of token_embedding.weight reached 40" in reason for reason in guilty["stale-second-moment"].supports
    )
    assert "stale-second-moment" not in cleared or cleared["stale-second-moment"].confidence < 0.1


def test_a_large_update_speaks_for_the_learning_rate():
    small = causes(Signals.from_arrays(spike(update_to_weight_ratio=np.full(STEPS, 1e-3))))
    large = causes(Signals.from_arrays(spike(update_to_weight_ratio=np.full(STEPS, 0.09))))
    assert large["lr-too-high"].confidence > small["lr-too-high"].confidence
    assert any("0.09 of their norm" in reason for reason in large["lr-too-high"].supports)


@pytest.mark.parametrize(("factor", "words"), [(50.0, "is usual"), (1.0, "")])
def test_the_batch_is_blamed_with_its_fingerprint(factor: float, words: str):
    std = changed(np.random.default_rng(0).normal(1, 0.05, STEPS), AT, factor)
    series = {"train_loss": changed(level(), AT, 1.5), "grad_norm_preclip": changed(norms(), AT, 6.0), "input_std": std}
    blamed = causes(Signals.from_arrays(series))["bad-batch"]
    assert (
        any(words in reason for reason in blamed.supports) if words else all("usual" not in r for r in blamed.supports)
    )
    assert blamed.confidence > (0.9 if words else 0.4)


@pytest.mark.parametrize(
    ("origin", "cause"),
    [("input", "non-finite-input"), ("forward", "undefined-operation"), ("backward", "undefined-operation")],
)
def test_the_origin_that_the_monitor_saw_decides(origin: str, cause: str):
    fields = {"origin": origin, "where": None if origin == "input" else "blocks.1.act", "exact": True, "text": "seen"}
    series = {
        "train_loss": put(level(), slice(AT, None), np.nan),
        "grad_norm_preclip": put(norms(), slice(AT, None), np.nan),
    }
    signals = Signals.from_arrays(series, events=[Mark("nonfinite", AT + 1, fields)])
    finding = next(f for f in diagnose(signals).findings if f.id == "non-finite")
    assert finding.causes[0].id == cause
    assert finding.layer == (None if origin == "input" else "blocks.1.act")
