"""Trainable parameters that do not train."""

from __future__ import annotations

from monitor.diagnosis.lasting import named
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import EventLike, Signals
from monitor.diagnosis.wording import count

REASONS = {
    "missing_gradients": (
        "have no gradient",
        Cause(
            "not-in-graph", 0.8, supports=("trainable, given to the optimizer, and without a gradient from the start",)
        ),
        Remedy(
            "Look for a detach(), a torch.no_grad() or a module that forward never calls; freeze what is meant to rest "
            "with requires_grad_(False).",
            {},
            "print([name for name, p in model.named_parameters() if p.requires_grad and p.grad is None])",
        ),
    ),
    "not_in_optimizer": (
        "have gradients and are in no optimizer",
        Cause("not-in-optimizer", 0.9, supports=("they have gradients, and no parameter group holds them",)),
        Remedy(
            "Build the optimizer after the model has its last shape (after replacing a head, adding adapters, moving "
            "or wrapping it), or add the parameters with optimizer.add_param_group.",
            {},
            "optimizer = torch.optim.AdamW(model.parameters(), lr=lr)  # after every change of the model",
        ),
    ),
    "unmoved": (
        "stay bit for bit what they were",
        Cause(
            "updates-lost", 0.7, supports=("with gradients and a learning rate, the optimizer's step changed nothing",)
        ),
        Remedy(
            "Keep the weights in float32 (autocast for the forward pass), and check that the optimizer changes the "
            "same tensors that the model uses.",
            {},
            "print({p.dtype for p in model.parameters()}, optimizer.param_groups[0]['lr'])",
        ),
    ),
}
"""By what the monitor found out, exactly and in several steps running (the field ``about`` of its warnings)."""


def unmoved_parameters(signals: Signals) -> Verdict:
    """Parameters that are meant to train and do not: no gradient, in no optimizer, or never changed by a bit.

    Why it matters: the rest of the model learns around them, so the loss goes down and nothing looks wrong.

    Stays silent: on parameters that are frozen, whose learning rate is 0, or that had a gradient before (experts,
    alternating losses). Abstains where gradients per layer were not recorded: another tool's log cannot show it.

    Thresholds: none; the monitor compares bits, in three measured steps running (ten in half precision).

    Source: SageMaker Debugger's UnchangedTensor (three saves); TrainCheck (OSDI 2025), three of whose incidents are
    this.
    """
    told = [event for event in signals.events("warning") if event.fields.get("about") in REASONS]
    if not told and signals.layers("grad_norm_preclip") is None:
        return Abstained("gradients per layer were not recorded", ("layers:grad_norm_preclip",))
    return [_finding(signals, event) for event in told if event.step is not None]


def _finding(signals: Signals, event: EventLike) -> Finding:
    what, cause, remedy = REASONS[str(event.fields["about"])]
    given = event.fields.get("layers")
    layers = [str(name) for name in given] if isinstance(given, list | tuple) else []
    step = event.step or 0
    return Finding(
        summary=f"{count(len(layers), 'trainable tensor').capitalize()} {what}: {named(layers)}",
        onset_step=step,
        first_step=step,
        last_step=max(step, signals.last_step),
        severity=Severity.WARNING,
        layer=layers[0] if layers else None,
        evidence={"layers": layers[:20], "count": len(layers)},
        causes=(cause,),
        remedy=remedy,
    )


RULE = Rule(
    id="unmoved-parameters",
    severity=Severity.WARNING,
    needs=(),
    check=unmoved_parameters,
    remedy="Print which parameters have a gradient and which the optimizer holds.",
)
