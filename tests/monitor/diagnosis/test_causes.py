"""Causes follow what was measured around the event, and name what was not."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.rule import Cause, Finding
from monitor.diagnosis.rules import vanishing_gradient
from monitor.diagnosis.view import Facts, Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, changed, constant_lr, layer_norms, level, norms, put
from tests.monitor.diagnosis.cases.vanishing_gradient import died, zeroed
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


@pytest.mark.parametrize(("factor", "cause"), [(2.0, "data-change"), (1.0, "lr-too-high")])
def test_a_climb_from_where_the_inputs_are_others_is_a_change_of_the_data(factor: float, cause: str):
    row = np.arange(3 * STEPS) - 2 * STEPS
    spread = np.random.default_rng(0).normal(1, 0.01, 3 * STEPS) * np.where(row < 0, 1.0, factor)
    loss = level(steps=3 * STEPS) * np.exp(0.004 * np.clip(row, 0, None))
    series = {"train_loss": loss, "lr": constant_lr(3 * STEPS), "input_std": spread}
    assert finding_of("slow-divergence", Signals.from_arrays(series)).causes[0].id == cause


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


def finding_of(rule: str, signals: Signals) -> Finding:
    return next(finding for finding in diagnose(signals).findings if finding.id == rule)


def one_step_spike(*events: Mark, facts: Facts | None = None) -> Signals:
    """Loss and gradient raised at step 201 alone, and nothing that tells why."""
    series = {"train_loss": changed(level(), AT, 1.5), "grad_norm_preclip": changed(norms(), AT, 6.0)}
    return Signals.from_arrays(series, events=events, facts=facts)


def replay(verdict: object, step: int | None = AT + 1) -> Mark:
    return Mark("replay", step, {"verdict": verdict})


def test_a_replay_settles_batch_against_state():
    before = causes(one_step_spike())["bad-batch"]
    batch, state = (causes(one_step_spike(replay(verdict))) for verdict in ("batch", "state"))
    assert next(iter(batch)) == "bad-batch"
    assert batch["bad-batch"].confidence > max(0.95, before.confidence)
    assert "bad-batch" not in state
    assert any("a replay" in reason for reason in before.against)  # what would settle it, and is not there yet
    assert not any("a replay" in reason for reason in batch["bad-batch"].against)


def test_one_batch_to_blame_is_left_out_alone_though_the_loss_was_high_for_longer():
    (incident,) = diagnose(one_step_spike(replay("batch"))).incidents
    assert incident.first_step < incident.last_step and incident.remedy is not None
    assert incident.remedy.config_patch["skip.after_step"] == incident.onset_step - 1
    assert incident.remedy.config_patch["skip.batches"] == 1 + incident.first_step - incident.onset_step == 1
    assert f"the batch of step {incident.onset_step}" in incident.remedy.text
    assert "skip it alone" in incident.remedy.text


def test_a_replay_that_says_batch_outweighs_a_jump_of_the_learning_rate():
    lr = changed(constant_lr(), AT, 30.0)
    series = {"train_loss": changed(level(), AT + 1, 1.5), "grad_norm_preclip": changed(norms(), AT + 1, 6.0), "lr": lr}
    assert finding_of("loss-spike", Signals.from_arrays(series)).causes[0].id == "lr-too-high"
    replayed = finding_of("loss-spike", Signals.from_arrays(series, events=[replay("batch", AT + 2)]))
    assert replayed.causes[0].id == "bad-batch"


def test_the_last_replay_counts_and_one_of_another_step_or_of_nonsense_does_not():
    plain = causes(one_step_spike())
    assert next(iter(causes(one_step_spike(replay("state"), replay("batch"))))) == "bad-batch"
    elsewhere = causes(one_step_spike(replay("state", AT - 50), replay("state", None)))
    assert {name: cause.confidence for name, cause in elsewhere.items()} == {
        name: cause.confidence for name, cause in plain.items()
    }
    assert causes(one_step_spike(replay(["batch"])))["bad-batch"].confidence == plain["bad-batch"].confidence


def test_the_remedy_names_the_replay_where_it_can_tell_more():
    config = {"task": {"kind": "gpt"}, "checkpoint": {"every_steps": 50}}
    ours = Facts(path="my runs/one", config=config)
    saved = Mark("checkpoint", 100, {"path": "checkpoints/00000100"})
    command = f"gradiometer replay 'my runs/one' --step {AT + 1}"

    def remedy(*events: Mark, facts: Facts | None = ours) -> str:
        found = finding_of("loss-spike", one_step_spike(*events, facts=facts)).remedy
        assert found is not None
        return found.text

    assert command in remedy(saved)
    assert "replay" not in remedy(), "no checkpoint before it"
    assert "replay" not in remedy(Mark("checkpoint", 250)), "none before it"
    assert "replay" not in remedy(saved, facts=Facts(path="one", config={"lr": 1})), "not of our trainer"
    for verdict in ("batch", "state", "not told apart"):
        assert "replay" not in remedy(saved, replay(verdict)), "done already"


def decayed(decay: float) -> Signals:
    """Weights that grow by 2 % a step, with ``decay`` in all parameter groups."""
    step = np.arange(20, STEPS + 1, 20)
    norm = np.exp(0.02 * np.maximum(0, step - AT))
    told = Mark("optimizer", 1, {"groups": [{"weight_decay": decay}, {"weight_decay": 0.0}]})
    return Signals.from_arrays({"train_loss": level(), "weight_norm": (step, norm)}, events=[told])


@pytest.mark.parametrize(("decay", "cause"), [(0.1, "lr-too-high"), (-0.1, "weight-decay")])
def test_only_a_decay_below_zero_makes_weights_grow(decay: float, cause: str):
    assert finding_of("weight-norm", decayed(decay)).causes[0].id == cause


@pytest.mark.parametrize(("validation", "cause"), [(2.4, "unlike-losses"), (300.0, "poor-initialisation")])
def test_a_first_loss_far_above_a_guess_is_another_quantity_where_validation_is_below_it(validation: float, cause: str):
    series = {"train_loss": 64 * level(), "log_classes": np.full(STEPS, 5.55), "val_loss": ([100], [validation])}
    assert finding_of("initialisation", Signals.from_arrays(series)).causes[0].id == cause


@pytest.mark.parametrize(("ratio", "cause"), [(2e-5, "lr-too-low"), (1e-3, "labels-without-signal")])
def test_at_a_guess_the_size_of_updates_tells_a_low_rate_from_labels_without_signal(ratio: float, cause: str):
    loss = 5.55 * np.exp(np.random.default_rng(0).normal(0, 0.003, 400))
    step = np.arange(20, 401, 20)
    series = {
        "train_loss": loss,
        "log_classes": np.full(400, 5.55),
        "update_to_weight_ratio": (step, np.full(20, ratio)),
    }
    assert finding_of("not-learning", Signals.from_arrays(series)).causes[0].id == cause


def test_a_gradient_of_zero_is_laid_to_the_steps_that_killed_the_units_in_front_of_it():
    def told(signals: Signals) -> tuple[Cause, ...]:
        (finding,) = vanishing_gradient.RULE.check(signals)
        return finding.causes

    large = told(died(updates=0.9))
    assert [cause.id for cause in large] == ["lr-too-high", "gradient-cut-off"]
    assert large[0].supports[1] == "98 % of the units of act are dead, 4 % were" and large[1].against
    assert [cause.id for cause in told(died(updates=1e-3))] == ["dying-relu", "gradient-cut-off"]
    alive = told(died(updates=0.9, dead=0.05))
    assert [cause.id for cause in alive] == ["gradient-cut-off"] and not alive[0].against
    assert [cause.id for cause in told(died(updates=0.9, dead=np.nan))] == ["gradient-cut-off"]
    assert "not recorded" in told(zeroed(slice(AT, None)))[0].against[0]
