"""The model trains in evaluation mode."""

from __future__ import annotations

from monitor.diagnosis.lasting import named
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import EventLike, Signals


def mode_mismatch(signals: Signals) -> Verdict:
    """Modules that act differently in training and evaluation are in the mode of the other one.

    Why it matters: in a training without it dropout drops nothing and batch normalisation uses old statistics, usually
    from the first evaluation on. In an evaluation without it the result is random and too bad, and held-out data get
    into the statistics.

    Stays silent: on models without such modules; on batch normalisation that alone is in evaluation mode, as in
    fine-tuning, where that is meant. Abstains where inputs and modes were not recorded.

    Thresholds: none; the monitor reads the flag of each module in the forward pass of a training step.

    Source: PyTorch documentation of Module.train and Module.eval; TheDeepChecker (Ben Braiek and Khomh 2023).
    """
    told = [event for event in signals.events("warning") if event.fields.get("about") == "mode"]
    if not told and "input_hash" not in signals:
        return Abstained("the modes of modules were not recorded", ("input_hash",))
    return [_finding(signals, event) for event in told if event.step is not None]


def _finding(signals: Signals, event: EventLike) -> Finding:
    given = event.fields.get("modules")
    modules = [str(name) for name in given] if isinstance(given, list | tuple) else []
    step = event.step or 0
    if event.fields.get("during") == "evaluation":
        what, cause = "The model is evaluated while modules act as in training", "training-mode"
        why, when = "the modules' training flag is on in an evaluation", "Call model.eval() before every evaluation."
    else:
        what, cause = "The model is trained while modules are in evaluation mode", "evaluation-mode"
        why = "the modules' training flag is off in a training step"
        when = "Call model.train() after every evaluation, before the next training step."
    return Finding(
        summary=f"{what}: {named(modules)}",
        onset_step=step,
        first_step=step,
        last_step=max(step, signals.last_step),
        severity=Severity.WARNING,
        layer=modules[0] if modules else None,
        evidence={"modules": modules[:20], "count": event.fields.get("count", len(modules))},
        causes=(Cause(cause, 0.9, supports=(why,)),),
        remedy=Remedy(
            when,
            {},
            "model.eval()\nvalidate(model)\nmodel.train()",
        ),
    )


RULE = Rule(
    id="mode-mismatch",
    severity=Severity.WARNING,
    needs=(),
    check=mode_mismatch,
    remedy="Call model.train() after every evaluation.",
)
