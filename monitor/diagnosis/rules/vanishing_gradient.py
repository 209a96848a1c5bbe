"""The gradient does not reach part of the model."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.lasting import Stretch, first_run, measured, named, stretches
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number
from monitor.signals import LayerMatrix

LEAST_LAYERS = 6
"""Tensors that a profile over depth needs."""
LEAST_STEPS = 20


def vanishing_gradient(
    signals: Signals, *, zero_rows: int = 20, ratio: float = 1e-4, order: float = 0.6, rows: int = 20
) -> Verdict:
    """A tensor's gradient is exactly zero for good, or gradients fade from the output to the input of the model.

    Why it matters: what gets no gradient does not learn, and the loss does not say so.

    Stays silent: on tensors that are frozen, which have no gradient at all; on those that were zero from the start or
    now and then (experts, embeddings of rare tokens, a bias in front of a norm); on a profile that is low in the middle
    only; in the first 20 steps.

    Thresholds: ``zero_rows``, measurements at exactly 0 running, after a tensor had a gradient in nine tenths of those
    before; ``ratio``, of the median norm of the first third of the tensors to that of the last third, in ``rows``
    measurements running, with a rank correlation of norm and depth above ``order``. AutoTrainer compares first and last
    layer at 1e-3; healthy small transformers of ours lie above 1e-2. Our judgement.

    Source: Zhang et al. 2021, AutoTrainer, https://arxiv.org/abs/2103.01681; Bengio et al. 1994.
    """
    matrix = signals.layers("grad_norm_preclip")
    assert matrix is not None  # the engine asks for it
    if len(matrix.step) < zero_rows:
        return Abstained(
            f"{count(len(matrix.step), 'row')} of gradient norms per layer, at least {zero_rows} are needed"
        )
    value = measured(matrix)
    cut = [s for s in stretches(matrix, value == 0, zero_rows) if _had_one(value, matrix, s) and s.to_the_end]
    found = [_cut_off(cut)] if cut else []
    if len(matrix.names) >= LEAST_LAYERS:
        fading = _fading(matrix, value, ratio, order, rows)
        found += [fading] if fading else []
    return found


def _had_one(value: np.ndarray, matrix: LayerMatrix, stretch: Stretch) -> bool:
    before = value[matrix.step < stretch.onset, stretch.column]
    before = before[np.isfinite(before)]
    return len(before) >= 10 and float((before > 0).mean()) > 0.9


def _cut_off(cut: list[Stretch]) -> Finding:
    first = cut[0]
    together = [s for s in cut if s.onset <= first.onset + 5]
    return Finding(
        summary=f"The gradient of {named([s.layer for s in together])} is exactly 0 from step {first.onset} on",
        onset_step=first.onset,
        first_step=first.told,
        last_step=first.last,
        severity=Severity.WARNING,
        layer=together[-1].layer,
        evidence={
            "layers": [s.layer for s in together][:20],
            "layer_reason": "of the tensors without a gradient it is the nearest to the output",
        },
        causes=(
            Cause(
                "gradient-cut-off",
                0.7,
                supports=(
                    f"{count(len(together), 'tensor')} had gradients until step {first.onset - 1} and none since",
                ),
                against=("not recorded: whether units in front of it are dead",),
            ),
        ),
        remedy=Remedy(
            "Look for a detach(), a torch.no_grad(), a mask or a branch that leaves this part out of the loss, and for "
            "units that are always off in front of it.",
            {},
            "print([(n, p.grad.abs().max()) for n, p in model.named_parameters() if p.grad is not None])",
        ),
    )


def _fading(matrix: LayerMatrix, value: np.ndarray, ratio: float, order: float, rows: int) -> Finding | None:
    """Norms that fall from the output to the input by many orders of magnitude, for ``rows`` rows running."""
    usable = np.where(value > 0, value, np.nan)
    third = len(matrix.names) // 3
    enough = (np.isfinite(usable[:, :third]).sum(axis=1) >= 2) & (np.isfinite(usable[:, -third:]).sum(axis=1) >= 2)
    enough &= matrix.step > LEAST_STEPS
    if enough.sum() < rows:
        return None
    near, far = np.full(len(usable), np.nan), np.full(len(usable), np.nan)
    near[enough], far[enough] = (
        np.nanmedian(usable[enough, :third], axis=1),
        np.nanmedian(usable[enough, -third:], axis=1),
    )
    with np.errstate(invalid="ignore"):
        low = near < ratio * far
    first = first_run(low, rows)
    if first is None:
        return None
    told = first + rows - 1
    profile = np.nanmedian(np.log(usable[first : told + 1]), axis=0)
    if _rank_correlation(profile) < order:
        return None
    faded = float(np.median(near[first : told + 1] / far[first : told + 1]))
    lowest = int(np.nanargmin(profile))
    return Finding(
        summary=f"Gradients fade towards the input: those of the first third of the tensors are {number(faded)} of "
        "those of the last third",
        onset_step=int(matrix.step[first]),
        first_step=int(matrix.step[told]),
        last_step=int(matrix.step[np.flatnonzero(low)[-1]]),
        severity=Severity.WARNING,
        layer=matrix.names[lowest],
        evidence={"first_to_last": faded, "layer_reason": "its gradient is the smallest"},
        causes=(
            Cause("vanishing-gradient", 0.8, supports=(f"the first tensors get {number(faded)} of the last ones",)),
        ),
        remedy=Remedy(
            "Add residual connections or normalisation, use ReLU or GELU instead of sigmoid or tanh, initialise by "
            "He or Xavier.",
            {},
            "nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')",
        ),
    )


def _rank_correlation(profile: np.ndarray) -> float:
    """Spearman's, of the finite entries with their position; 0 with fewer than four."""
    keep = np.flatnonzero(np.isfinite(profile))
    if len(keep) < 4:
        return 0.0
    ranks = np.argsort(np.argsort(profile[keep]))
    return float(np.corrcoef(np.arange(len(keep)), ranks)[0, 1])


RULE = Rule(
    id="vanishing-gradient",
    severity=Severity.WARNING,
    needs=("layers:grad_norm_preclip",),
    check=vanishing_gradient,
    remedy="Find where the gradient is lost between the loss and the named layer.",
)
