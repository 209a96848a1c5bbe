"""The loss goes up and down from step to step while it falls: the learning rate is at the edge of stability."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.context import loss_is_signed
from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.remedies import peak_lr
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, percent

BLOCK_ROWS = 100


def oscillation(
    signals: Signals, *, correlation: float = 0.4, blocks: int = 2, amplitude: float = 0.002, least_rows: int = 200
) -> Verdict:
    """Losses of neighbouring steps lie on opposite sides of the trend, far more often than noise would have it.

    Why it matters: steps overshoot across a valley and back. Training goes on at this edge and full-batch descent even
    seeks it, so it is no alarm; it does say that a higher learning rate will not help.

    Stays silent: on noise, however large: its neighbours are uncorrelated; on a rising loss, which slow-divergence
    tells of; on losses logged at intervals. Always information. Sources of data that take turns look the same; the
    cosine of consecutive gradients tells them apart where it was recorded.

    Thresholds: ``correlation``, by which the autocorrelation at one step of the detrended log loss is below zero in
    ``blocks`` blocks of 100 rows running (noise: a standard deviation of 0.1); ``amplitude``, its smallest standard
    deviation, relative to the loss; ``least_rows``, losses that are needed. Design notes F08 have 0.3 for large
    batches; the others are our judgement.

    Source: Cohen et al. 2021, https://arxiv.org/abs/2103.00065 (edge of stability).
    """
    loss = signals["train_loss"]
    if loss_is_signed(signals):
        return Abstained("a loss that is zero or negative has no relative amplitude")
    keep = np.isfinite(loss.value) & (loss.value > 0)
    step, log = loss.step[keep], np.log(loss.value[keep])
    if len(step) < least_rows:
        return Abstained(f"{count(len(step), 'loss')} recorded, at least {least_rows} are needed")
    if np.median(np.diff(step)) > 1:
        return Abstained("the loss is logged at intervals, so that neighbouring steps are not known")
    whole = len(log) // BLOCK_ROWS
    block = log[: whole * BLOCK_ROWS].reshape(whole, BLOCK_ROWS)
    rest = _detrended(block)
    spread = rest.std(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        lag = (rest[:, 1:] * rest[:, :-1]).sum(axis=1) / (rest**2).sum(axis=1)
    level = block.mean(axis=1)
    falling = np.concatenate([[True], level[1:] < level[:-1]])
    first = first_run((lag < -correlation) & (spread > amplitude) & falling, blocks)
    if first is None:
        return None
    told = slice(first, first + blocks)
    size, against = float(np.sqrt(2) * spread[told].mean()), float(lag[told].mean())
    onset, fired = int(step[first * BLOCK_ROWS]), int(step[(first + blocks) * BLOCK_ROWS - 1])
    lr = peak_lr(signals)
    lower = float(f"{0.8 * lr:.3g}") if lr else None
    return Finding(
        summary=f"The loss goes up and down by {percent(size)[1:]} from step to step while it falls: autocorrelation "
        f"{number(against)} from one step to the next",
        onset_step=onset,
        first_step=fired,
        last_step=fired,
        severity=Severity.INFO,
        evidence={"autocorrelation": against, "amplitude": size},
        causes=_causes(signals, onset, fired),
        remedy=Remedy(
            "None is needed while the loss falls"
            + (f"; a peak learning rate of {number(lower)} would calm it." if lower else "; a lower rate calms it."),
            {"optimizer.lr": lower} if lower else {},
            'for group in optimizer.param_groups:\n    group["lr"] *= 0.8',
        ),
    )


def _detrended(block: np.ndarray) -> np.ndarray:
    """float64[B, R]: each block without its own straight line."""
    t = np.arange(block.shape[1]) - (block.shape[1] - 1) / 2
    slope = block @ t / (t @ t)
    return block - block.mean(axis=1, keepdims=True) - slope[:, None] * t


def _causes(signals: Signals, onset: int, fired: int) -> tuple[Cause, ...]:
    cosine = signals["grad_cosine"].between(onset, fired).value
    cosine = cosine[np.isfinite(cosine)]
    if not len(cosine):
        missing = ("not recorded: grad_cosine, which would tell overshooting from data that takes turns",)
        return (Cause("overshooting", 0.4, ("neighbouring losses alternate",), missing),)
    usual = float(np.median(cosine))
    said = f"the cosine of consecutive gradients is {number(usual)}"
    over, turns = ((said,), ()) if usual < -0.1 else ((), (said,))
    return tuple(
        sorted(
            (
                Cause("overshooting", 0.7 if over else 0.2, ("neighbouring losses alternate", *over), turns),
                Cause("alternating-data", 0.2 if over else 0.6, ("neighbouring losses alternate", *turns), over),
            ),
            key=lambda cause: -cause.confidence,
        )
    )


RULE = Rule(
    id="oscillation",
    severity=Severity.INFO,
    needs=("train_loss",),
    check=oscillation,
    remedy="None is needed while the loss falls; a lower learning rate calms it.",
)
