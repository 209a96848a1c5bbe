"""Batch or state: what the losses of one batch under earlier weights say about a loss spike. Without torch.

A batch that raises the loss also with weights from long before is what is wrong with it; one that is ordinary for them
met a model whose state had gone bad. Source: PaLM's restarts from other checkpoints on the same batches, Chowdhery et
al. 2022, https://arxiv.org/abs/2204.02311, section 5.1. Numbers here are our judgement unless a source is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["batch", "state", "not told apart"]

FAR = 100
"""Steps between the older weights and the step, where a checkpoint is that old: PaLM's distance."""
NEAR = 20
"""Weights that are fewer steps older are those of the spike's own time: what is high for them proves no bad batch."""
HIGH_Z = 6.0
"""Robust standard deviations beyond which a loss is raised."""
LEAST_RISE = 0.05
"""A raised loss is also higher by this share."""
SCALE_FLOOR = 0.01
"""Least robust standard deviation, as a share of the usual loss: a few losses may agree by chance."""
MAD_TO_SD = 1.4826
MOST_OF_RISE = 0.5
LITTLE_OF_RISE = 0.1
"""Shares of the recorded rise that the batch must show, and that clears it, with the older weights. Where it shows more
than a little with these, it may show most with the later: weights that have learnt less are surprised less."""
FEW_SHARE = 0.1
"""The share of a batch's samples that counts as a few."""


@dataclass(frozen=True, slots=True)
class Height:
    """A loss against what is usual; nats per token as a rule."""

    loss: float
    usual: float
    """Median of the others; NaN when none of them is finite."""
    z: float
    """Robust standard deviations above ``usual``; infinite for a loss that is not finite."""

    @property
    def raised(self) -> bool:
        """Whether the loss stands out; one that is not finite always does."""
        if not math.isfinite(self.loss):
            return True
        return self.z >= HIGH_Z and self.rise >= LEAST_RISE * abs(self.usual)

    @property
    def rise(self) -> float:
        return self.loss - self.usual


@dataclass(frozen=True, slots=True)
class Weighed:
    """The step's batch under the weights of one checkpoint, in training mode; and in evaluation mode."""

    step: int
    """Steps that these weights have behind them."""
    steps_before: int
    """How many steps earlier than the replayed step; 1 for the weights that it began with."""
    height: Height
    in_evaluation: Height


def height_among(loss: float, others: Sequence[float]) -> Height:
    """``loss`` against the losses of other batches under the same weights."""
    finite = np.array([other for other in others if math.isfinite(other)])
    usual = float(np.median(finite)) if len(finite) else math.nan
    spread = float(np.median(np.abs(finite - usual))) if len(finite) else 0.0
    return Height(loss, usual, _z(loss, usual, spread))


def height_after(loss: float, before: Sequence[float]) -> Height:
    """``loss`` against those of the steps before it, whose scatter is taken from differences, which no trend widens."""
    finite = np.array([other for other in before if math.isfinite(other)])
    usual = float(np.median(finite)) if len(finite) else math.nan
    spread = float(np.median(np.abs(np.diff(finite)))) / math.sqrt(2) if len(finite) > 1 else 0.0
    return Height(loss, usual, _z(loss, usual, spread))


def _z(loss: float, usual: float, spread: float) -> float:
    if not math.isfinite(loss):
        return math.inf
    scale = max(MAD_TO_SD * spread, SCALE_FLOOR * abs(usual), 1e-12)
    return (loss - usual) / scale


def share_of_few(samples: Sequence[float], usual: float) -> float:
    """The share of a batch's excess over ``usual`` that the highest tenth of its samples holds, at least one sample.

    1 when a few are to blame, about 0.1 when all are alike; NaN when no sample is above ``usual``.
    """
    excess = np.sort(np.nan_to_num(np.asarray(samples) - usual, nan=np.inf, posinf=np.inf).clip(min=0))[::-1]
    few = math.ceil(FEW_SHARE * len(excess))
    if len(excess) and math.isinf(excess[0]):
        excess = np.isinf(excess).astype(float)
    return float(excess[:few].sum() / excess.sum()) if excess.sum() > 0 else math.nan


def judge(step: int, recorded: Height, weights: Sequence[Weighed]) -> tuple[Verdict, str]:
    """What raised the loss of ``step``, and why we think so.

    Args:
        recorded: the loss as the run recorded it, against the steps before.
        weights: the older first; the later ones may be the same as the older, or left out.
    """
    old, later = weights[0], weights[-1]
    told = f"step {step}'s loss of {recorded.loss:.4g} (usual {recorded.usual:.4g})"
    if math.isnan(recorded.usual):
        return "not told apart", f"no step before step {step} has a finite loss to hold it against"
    if not recorded.raised:
        return "not told apart", f"{told} was not raised, so there is nothing to explain"
    if math.isnan(old.height.usual):
        return "not told apart", f"the weights of step {old.step} give no finite loss on other batches either"
    if later.steps_before == 1 and not later.height.raised and later.height.usual < _halfway(recorded):
        return "not told apart", (
            f"{told} does not come out again: with the very weights that it began with, those of step {later.step}, "
            f"the batch gives {later.height.loss:.4g}. Neither the data nor the weights are to blame, but what "
            "happened in that step: a batch changed on its way to the model, a hook, the hardware; or the data are "
            "others now"
        )
    if old.height.raised and old.steps_before < NEAR:
        return "not told apart", (
            f"the batch is high ({_heights(old)}), but the oldest weights there are, those of step {old.step}, are "
            f"only {old.steps_before} steps older; at least {NEAR} are needed to clear the state"
        )
    share, share_later = (_share(one.height, recorded) for one in (old, later))
    if old.height.raised and (share >= MOST_OF_RISE or (share > LITTLE_OF_RISE and share_later >= MOST_OF_RISE)):
        return "batch", f"the batch is high also with weights {old.steps_before} steps older: {_heights(old)}"
    if not old.height.usual < _halfway(recorded):
        return "not told apart", (
            f"the weights of step {old.step} are too little trained to tell: they give {old.height.usual:.4g} on "
            f"ordinary batches, and step {step} had {recorded.loss:.4g}"
        )
    if old.height.raised and share > LITTLE_OF_RISE:
        return "not told apart", (
            f"with weights {old.steps_before} steps older the batch is high ({_heights(old)}), but "
            f"shows only {100 * share:.0f} % of the rise"
        )
    told = f"shows {100 * share:.0f} % of the rise" if old.height.raised else "is ordinary"
    since = _since(later, old)
    return "state", f"with weights {old.steps_before} steps older the batch {told}: {_heights(old)}{since}"


def _share(height: Height, recorded: Height) -> float:
    """How much of the recorded rise is there, 1 for all of it; a loss that is not finite is any rise."""
    if not math.isfinite(height.loss):
        return 1.0
    return height.rise / recorded.rise if math.isfinite(recorded.loss) else float(height.raised)


def _halfway(recorded: Height) -> float:
    """What ordinary batches must stay below for a spike of this height to be seen above them."""
    return recorded.usual + recorded.rise / 2 if math.isfinite(recorded.loss) else math.inf


def _heights(one: Weighed) -> str:
    return f"{one.height.loss:.4g} against {one.height.usual:.4g} for others, z {one.height.z:.3g}"


def _since(later: Weighed, old: Weighed) -> str:
    """Where between the older weights and the step the state went bad."""
    if later.step == old.step:
        return ""
    if later.height.raised:
        return f"; it is high with those of step {later.step}: {_heights(later)}"
    if later.height.usual >= (1 + LEAST_RISE) * old.height.usual:
        return f"; with those of step {later.step} every batch is high: {later.height.usual:.4g} for others"
    return (
        f"; with those of step {later.step} too ({_heights(later)}), which leaves the {later.steps_before} steps since"
    )
