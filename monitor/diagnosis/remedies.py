"""What to change: a patch of our trainer's configuration, and the same as a snippet for a loop of the user's own."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from monitor.diagnosis.causes import replayed
from monitor.diagnosis.rule import Finding, Remedy
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number, steps

MOST_SKIPPED = 20
"""Batches; a rise that goes on for longer is no longer theirs. Our judgement."""
TOLD_APART = 0.9
"""Confidence from which a cause needs no further experiment. Our judgement."""


def remedy_for(finding: Finding, signals: Signals, fallback: str) -> Remedy:
    """What to do about ``finding``, by its likeliest named cause; ``fallback`` is the rule's own sentence.

    When the cause is not told apart ("unknown" leads), the text says so and gives the change for the likeliest one.
    """
    named = next((cause.id for cause in finding.causes if cause.id != "unknown"), None)
    make = _BY_CAUSE.get(named or "")
    if make is None:
        return Remedy(fallback)
    remedy = changes_only(make(finding, signals), signals)
    text = remedy.text
    if finding.causes[0].id == "unknown":
        text = f"The cause is not certain; if it is {named}: {text[0].lower()}{text[1:]}"
    return Remedy(text + _replay(finding, signals), remedy.config_patch, remedy.snippet)


def _replay(finding: Finding, signals: Signals) -> str:
    """The command that tells a bad batch from a bad state; empty where they are told apart or it cannot be had."""
    causes = {cause.id: cause.confidence for cause in finding.causes}
    if "bad-batch" not in causes or max(causes.values()) >= TOLD_APART:
        return ""
    saved = [event for event in signals.events("checkpoint") if (event.step or 0) < finding.first_step]
    ours = configured(signals, "task", "kind") and configured(signals, "checkpoint")
    if not (saved and ours and signals.facts.path) or replayed(signals, finding.onset_step, finding.last_step):
        return ""
    command = f"gradiometer replay {shlex.quote(signals.facts.path)} --step {finding.first_step}"
    return f" To tell a bad batch from a bad state: {command}."


def changes_only(remedy: Remedy, signals: Signals) -> Remedy:
    """The remedy without what the run's recorded configuration says already, or has no such key for."""
    config = signals.facts.config
    if config is None or not remedy.config_patch:
        return remedy
    patch = {key: value for key, value in remedy.config_patch.items() if _is_change(config, key.split("."), value)}
    if patch:
        return Remedy(remedy.text, patch, remedy.snippet)
    left = " The run's configuration has no value left to change for this; the code is below." if remedy.snippet else ""
    return Remedy(remedy.text + left, {}, remedy.snippet)


def _is_change(config: Any, path: list[str], value: Any) -> bool:
    for key in path:
        if not isinstance(config, dict) or key not in config:
            return False
        config = config[key]
    both = isinstance(value, int | float) and isinstance(config, int | float)
    return not (math.isclose(value, config, rel_tol=1e-6) if both else value == config)


def clip_in_force(signals: Signals) -> float | None:
    """The clip limit that the run trains with: as configured, else as last recorded; None without clipping."""
    given = configured(signals, "clip", "max_norm")
    if isinstance(given, int | float) and math.isfinite(given) and given > 0:
        return float(given)
    value = signals["clip_max_norm"].value
    value = value[np.isfinite(value) & (value > 0)]
    return float(value[-1]) if len(value) else None


def configured(signals: Signals, *path: str) -> Any:
    """The value at ``path`` of the run's recorded configuration; None when it is not there."""
    value: Any = signals.facts.config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def peak_lr(signals: Signals) -> float | None:
    """The configured peak learning rate, else the highest one recorded; None when neither is known."""
    given = configured(signals, "optimizer", "lr")
    if isinstance(given, int | float) and math.isfinite(given) and given > 0:
        return float(given)
    value = signals["lr"].value
    value = value[np.isfinite(value) & (value > 0)]
    return float(value.max()) if len(value) else None


def clip_limit(finding: Finding, signals: Signals) -> float:
    """Twice the usual gradient norm before the event, never above the limit in force; 1 when no norm is known."""
    norm = signals["grad_norm_preclip"].between(None, finding.onset_step - 1).tail(200).value
    norm = norm[np.isfinite(norm) & (norm > 0)]
    limit = 2 * float(np.median(norm)) if len(norm) else 1.0
    in_force = clip_in_force(signals)
    return in_force if in_force is not None and in_force <= 1.05 * limit else float(f"{limit:.2g}")


def clip_patch(limit: float, signals: Signals) -> dict[str, Any]:
    """The patch that clips at ``limit``; empty when the run clips there already."""
    return {} if clips_already(limit, signals) else {"clip.max_norm": limit}


def clips_already(limit: float, signals: Signals) -> bool:
    """Whether ``limit`` is the one in force."""
    in_force = clip_in_force(signals)
    return in_force is not None and math.isclose(in_force, limit, rel_tol=1e-6)


def before(finding: Finding) -> str:
    """Where to go back to."""
    return f"the last checkpoint before step {finding.onset_step}"


def _lower_lr(finding: Finding, signals: Signals) -> Remedy:
    lr = peak_lr(signals)
    patch: dict[str, Any] = {}
    goal = "half of what it is"
    if lr is not None:
        half = float(f"{lr / 2:.3g}")
        patch["optimizer.lr"] = half
        goal = f"{number(half)} at its peak"
    warmup = configured(signals, "schedule", "warmup_steps")
    longer = ""
    if isinstance(warmup, int) and warmup > 0 and finding.onset_step <= 3 * warmup:
        patch["schedule.warmup_steps"] = 2 * warmup
        longer = f" and the warm-up twice as long ({2 * warmup} steps)"
    return Remedy(
        f"Go back to {before(finding)} and go on with the learning rate at {goal}{longer}.",
        patch,
        'for group in optimizer.param_groups:\n    group["lr"] *= 0.5  # and halve the peak of the scheduler',
    )


def _clip(finding: Finding, signals: Signals) -> Remedy:
    limit = clip_limit(finding, signals)
    if clips_already(limit, signals):
        text = f"The gradient is clipped at {number(limit)} already; go back to {before(finding)}."
        return Remedy(text, {}, _clip_line(limit))
    return Remedy(
        f"Clip the gradient at {number(limit)}, about twice its usual norm, and go back to {before(finding)}.",
        clip_patch(limit, signals),
        _clip_line(limit),
    )


def _clip_line(limit: float) -> str:
    return f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={number(limit)})  # before optimizer.step()"


def skipped(onset: int, alarm: int) -> dict[str, Any]:
    """The patch that leaves out the batches from the onset up to the alarm, the first twenty of them.

    What a batch did shows at its own step or when evidence has added up. What is visible after the alarm is the
    consequence: weights that are NaN, or a loss on its way back. Batches left out for it would be lost for nothing.
    """
    return {"skip.after_step": onset - 1, "skip.batches": min(max(alarm - onset, 0) + 1, MOST_SKIPPED)}


def batches_of(patch: Mapping[str, Any]) -> str:
    """``the batch of step 7``, ``the 3 batches of steps 7 to 9``: what a patch of :func:`skipped` leaves out."""
    onset, left_out = patch["skip.after_step"] + 1, patch["skip.batches"]
    span = steps(onset, onset + left_out - 1)
    return f"the batch of {span}" if left_out == 1 else f"the {left_out} batches of {span}"


def _skip_batches(finding: Finding, signals: Signals) -> Remedy:
    left_out = skipped(finding.onset_step, finding.first_step)
    first, last = finding.onset_step, finding.onset_step + left_out["skip.batches"] - 1
    ids = signals["batch_id"].between(first, last).value
    listed = ", ".join(number(value) for value in ids[:8])
    named = f" (batch_id {listed})" if listed else ""
    limit = clip_limit(finding, signals)
    patch = {**left_out, **clip_patch(limit, signals)}
    clip = f", with the gradient clipped at {number(limit)}" if "clip.max_norm" in patch else ""
    one = first == last
    return Remedy(
        f"Look at {batches_of(left_out)}{named}. If {'it is' if one else 'they are'} broken, remove "
        f"{'it' if one else 'them'} from the data; else go back to {before(finding)} and skip "
        f"{'it alone' if one else 'them'}{clip}.",
        patch,
        f"if {f'step == {first}' if one else f'{first} <= step <= {last}'}:\n"
        f"    continue  # {'this batch' if one else 'these batches'} only, after resuming",
    )


def _inspect_layer(finding: Finding, signals: Signals) -> Remedy:
    layer = finding.layer or "the layer that moved first"
    limit = clip_limit(finding, signals)
    snippet = f'print(dict(model.named_parameters())["{finding.layer}"].grad.norm())' if finding.layer else ""
    clipping = f"Clipping at {number(limit)} bounds the damage of one such step"
    if clips_already(limit, signals):
        clipping = f"The clipping at {number(limit)} in force bounds the damage of one such step, but not the cause"
    lines = f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={number(limit)})"
    return Remedy(
        f"Look for what scales the gradient of {layer}: a hook, a custom backward, a loss term, the hardware of one "
        f"rank. {clipping}; go back to {before(finding)}.",
        clip_patch(limit, signals),
        f"{lines}\n{snippet}".strip(),
    )


def _leave_fp16(finding: Finding, signals: Signals) -> Remedy:
    return Remedy(
        "Train in bf16, whose exponent is as wide as that of fp32; where the hardware has none, keep softmax, norms "
        "and loss in fp32 and start from a lower loss scale.",
        {"precision.kind": "bf16"},
        'with torch.autocast("cuda", dtype=torch.bfloat16):  # and no GradScaler\n    loss = compute_loss(batch)',
    )


def _fresher_second_moment(finding: Finding, signals: Signals) -> Remedy:
    return Remedy(
        "Let Adam's second moment follow faster (beta2 0.95), or bound the update of a tensor by its RMS "
        f"(StableAdamW), and go back to {before(finding)}.",
        {"optimizer.beta2": 0.95},
        "optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))",
    )


def _restore_everything(finding: Finding, signals: Signals) -> Remedy:
    return Remedy(
        "Resume with the optimizer's moments, the scheduler, the gradient scaler, the random states and the data "
        "position, not with the weights alone.",
        {},
        'optimizer.load_state_dict(checkpoint["optimizer"])\nscheduler.load_state_dict(checkpoint["scheduler"])\n'
        'scaler.load_state_dict(checkpoint["scaler"])\ntorch.set_rng_state(checkpoint["rng"])',
    )


def _check_data(finding: Finding, signals: Signals) -> Remedy:
    return Remedy(
        f"Compare inputs and targets before and after step {finding.onset_step}: another source, another tokenizer, "
        f"pairs that no longer belong together. When the data are right, the learning rate is next.",
        {},
        "torch.manual_seed(0)\nfor inputs, targets in itertools.islice(loader, 3):\n    print(inputs[:2], targets[:2])",
    )


def _guard_input(finding: Finding, signals: Signals) -> Remedy:
    return Remedy(
        f"Check the batch of step {finding.first_step} for NaN, infinities and empty targets (a mean over no target is "
        f"NaN), and go back to {before(finding)}.",
        {},
        "assert torch.isfinite(inputs).all(), batch_id\n"
        "if not torch.isfinite(loss):\n    optimizer.zero_grad(); continue  # never step with a NaN",
    )


def _guard_operation(finding: Finding, signals: Signals) -> Remedy:
    place = f" near {finding.layer}" if finding.layer else ""
    return Remedy(
        f"Find the operation{place} that is undefined at its input: sqrt, log, division or norm at 0, softmax over a "
        f"row that is masked throughout. Add an epsilon inside it and go back to {before(finding)}.",
        {},
        "with torch.autograd.detect_anomaly():  # names the operation whose backward gives NaN; slow, for one step\n"
        "    loss = compute_loss(batch); loss.backward()",
    )


def _tame_explosion(finding: Finding, signals: Signals) -> Remedy:
    clip, lower = _clip(finding, signals), _lower_lr(finding, signals)
    lr = lower.config_patch.get("optimizer.lr")
    rate = f"set the peak learning rate to {number(lr)}" if lr is not None else "halve the learning rate"
    limit = clip_limit(finding, signals)
    first = f"Clip the gradient at {number(limit)}, about twice its usual norm, {rate}"
    if clips_already(limit, signals):
        first = f"The gradient is clipped at {number(limit)} already: {rate}"
    return Remedy(
        f"{first}, and go back to {before(finding)}.",
        {**clip.config_patch, **lower.config_patch},
        f"{clip.snippet}\n{lower.snippet}",
    )


_BY_CAUSE: dict[str, Callable[[Finding, Signals], Remedy]] = {
    "bad-batch": _skip_batches,
    "lr-too-high": _lower_lr,
    "corrupted-gradient": _inspect_layer,
    "gradient-explosion": _tame_explosion,
    "fp16-overflow": _leave_fp16,
    "stale-second-moment": _fresher_second_moment,
    "wrong-resume": _restore_everything,
    "data-change": _check_data,
    "non-finite-input": _guard_input,
    "undefined-operation": _guard_operation,
}
