"""The gradient does not reach part of the model."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.context import loss_follows_policy
from monitor.diagnosis.lasting import Stretch, first_run, named, stretches
from monitor.diagnosis.primitives.medians import window_medians
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number
from monitor.signals import LayerMatrix

LEAST_LAYERS = 6
"""Tensors that a profile over depth needs."""
LEAST_STEPS = 20
STARVED_ROWS = 100
LEVEL_ROWS = 20
"""Rows that make a level. Both our judgement."""
DEAD_SHARE = 0.9
"""Of a module's units: a gradient that is exactly 0 for a whole tensor needs nearly all."""
LARGE_STEP = 0.1
"""Of the weights' norm, a hundred times the usual 1e-3; the rule on the size of updates has the same bar."""
BLOCK_ROWS = 4096
"""Rows that are looked at together: all of 100 000 x 200 as float64 are 160 MB, several times over."""


def vanishing_gradient(
    signals: Signals,
    *,
    zero_rows: int = 20,
    ratio: float = 1e-4,
    order: float = 0.6,
    rows: int = 20,
    starved: float = 1e-3,
) -> Verdict:
    """A tensor's gradient is exactly zero or gone for good, or gradients fade from the output to the model's input.

    Why it matters: what gets no gradient does not learn, and the loss does not say so.

    Stays silent: on tensors that are frozen, which have no gradient and of which no update is measured; on those that
    were zero or had none from the start or now and then (experts, alternating losses, embeddings of rare tokens, a bias
    in front of a norm); on a profile that is low in the middle only; in the first 20 steps.

    Thresholds: ``zero_rows``, measurements at exactly 0 running, after a tensor had a gradient in nine tenths of those
    before; as many without a gradient, to the end, after as many of which each had one, of a tensor that the optimizer
    is still to train and that has not moved since; ``ratio``, of the median norm of the first third of the tensors to
    that of the last third, in ``rows`` measurements running, with a rank correlation of norm and depth above ``order``.
    AutoTrainer compares first and last layer at 1e-3; healthy small transformers of ours lie above 1e-2. Our judgement.
    Where losses are minimised in turn, as a GAN's: the norm of one part of the model, by the first word of its names,
    below ``starved`` of its highest level, to the end, in 100 rows or more; 0.05 in healthy ones of ours. Not where a
    policy is trained. Not so told: a code that says nothing, as in a VAE whose divergence outweighs the rest, since the
    encoder's gradient there is small as at any minimum.

    Source: Arjovsky and Bottou 2017, https://arxiv.org/abs/1701.04862 (a perfect critic leaves no gradient);
    Zhang et al. 2021, AutoTrainer, https://arxiv.org/abs/2103.01681; Bengio et al. 1994.
    """
    matrix = signals.layers("grad_norm_preclip")
    assert matrix is not None  # the engine asks for it
    if len(matrix.step) < zero_rows:
        return Abstained(
            f"{count(len(matrix.step), 'row')} of gradient norms per layer, at least {zero_rows} are needed"
        )
    zero = (matrix.value == 0) & matrix.present
    cut = [s for s in stretches(matrix, zero, zero_rows) if _had_one(matrix, s) and s.to_the_end]
    found = [_cut_off(cut, _causes_of_zero(signals, cut))] if cut else []
    if gone := _gone(signals, matrix, zero_rows):
        found.append(_cut_off(gone, (_detached(_together(gone)),), "is not there any more"))
    if len(matrix.names) >= LEAST_LAYERS:
        fading = _fading(matrix, ratio, order, rows)
        found += [fading] if fading else []
    if signals.events("objectives") and not loss_follows_policy(signals):
        found += _starved(matrix, starved)
    return found


def _starved(matrix: LayerMatrix, share: float) -> list[Finding]:
    """Parts of the model that one of several losses, minimised in turn, has left without a gradient."""
    if len(matrix.step) < STARVED_ROWS + LEVEL_ROWS:
        return []
    parts = [name.partition(".")[0] for name in matrix.names]
    square = np.where(matrix.present & np.isfinite(matrix.value), matrix.value, 0).astype(np.float64) ** 2
    found = []
    for part in dict.fromkeys(parts):
        columns = [column for column, name in enumerate(parts) if name == part]
        norm = np.sqrt(square[:, columns].sum(axis=1))
        if len(columns) == len(parts) or len(columns) < 2:
            continue
        starts = np.arange(0, len(norm) - LEVEL_ROWS + 1)
        level = window_medians(norm, starts, starts + LEVEL_ROWS)
        highest = np.fmax.accumulate(level)
        enough = int(np.flatnonzero(level >= share * highest)[-1]) + 1
        if len(level) - enough >= STARVED_ROWS and level[enough:].all():
            found.append(_without_gradient(matrix, part, level, enough, float(highest[-1])))
    return found[:1]


def _without_gradient(matrix: LayerMatrix, part: str, level: np.ndarray, low: int, highest: float) -> Finding:
    first = low + LEVEL_ROWS // 2 - 1  # more than half of the rows of the first low level are low
    told = f"the norm of its gradient is {number(float(level[-1]))}, it was {number(highest)}"
    return Finding(
        summary=f"Of losses that are minimised in turn one has won: next to no gradient gets to {part} from step "
        f"{int(matrix.step[first])} on, {told.removeprefix('the norm of its gradient is ')}",
        onset_step=int(matrix.step[first]),
        first_step=int(matrix.step[low + LEVEL_ROWS + STARVED_ROWS - 2]),
        last_step=int(matrix.step[-1]),
        severity=Severity.WARNING,
        layer=next(name for name in matrix.names if name.partition(".")[0] == part),
        evidence={"part": part, "highest": highest, "layer_reason": f"the first tensor of {part}"},
        causes=(Cause("critic-too-good", 0.6, (told, "another loss of the same step is minimised")),),
        remedy=Remedy(
            "Give the weaker part more steps or a higher rate, smooth the critic's labels or penalise its gradient, "
            "and train the generator on -log D instead of log(1 - D).",
            {},
            "loss = F.binary_cross_entropy_with_logits(critic(drawn), torch.ones_like(critic(drawn)))",
        ),
    )


def _had_one(matrix: LayerMatrix, stretch: Stretch) -> bool:
    rows = matrix.step < stretch.onset
    before = matrix.value[rows, stretch.column][matrix.present[rows, stretch.column]]
    before = before[np.isfinite(before)]
    return len(before) >= 10 and float((before > 0).mean()) > 0.9


def _gone(signals: Signals, matrix: LayerMatrix, rows: int) -> list[Stretch]:
    """Tensors that always had a gradient and have had none since, although they are not frozen."""
    moved = signals.layers("update_norm")
    there = matrix.present[matrix.present.any(axis=1)]
    step = matrix.step[matrix.present.any(axis=1)]
    if moved is None or len(there) < 2 * rows:
        return []
    found = []
    for column in np.flatnonzero(there[0] & ~there[-rows:].any(axis=0)).tolist():
        first = int(np.argmin(there[:, column]))
        name = matrix.names[column]
        if first < rows or there[first:, column].any() or name not in moved.names:
            continue
        since = moved.step >= step[first]
        update = moved.value[since, moved.names.index(name)][moved.present[since, moved.names.index(name)]]
        if len(update) and not update.any():
            told = int(step[first + rows - 1])
            found.append(Stretch(name, column, int(step[first]), told, int(step[-1]), to_the_end=True))
    return sorted(found, key=lambda s: (s.onset, s.column))


def _together(cut: list[Stretch]) -> list[Stretch]:
    return [s for s in cut if s.onset <= cut[0].onset + 5]


def _detached(together: list[Stretch], confidence: float = 0.7, against: str = "") -> Cause:
    told = f"{count(len(together), 'tensor')} had gradients until step {together[0].onset - 1} and none since"
    return Cause("gradient-cut-off", confidence, (told,), (against,) if against else ())


def _causes_of_zero(signals: Signals, cut: list[Stretch]) -> tuple[Cause, ...]:
    """Units that are off for every sample let no gradient through, and steps that are too large put them there."""
    together, onset = _together(cut), cut[0].onset
    dead = signals.modules("dead_units_share")
    before = dead is not None and dead.step < onset
    if dead is None or not np.any(before) or np.all(before):
        return (_detached(together, against="not recorded: whether units in front of it are dead"),)
    usual = np.nanmedian(dead.value[before], axis=0)
    since = dead.value[~before][-1]
    worst = int(np.argmax(np.nan_to_num(since - usual)))
    if not (since[worst] >= DEAD_SHARE and usual[worst] <= 1 - DEAD_SHARE):
        return (_detached(together),)
    units = f"{100 * since[worst]:.0f} % of the units of {dead.names[worst]} are dead, {100 * usual[worst]:.0f} % were"
    steps = signals["update_to_weight_ratio"].between(onset - LEVEL_ROWS, onset).value
    size = float(np.max(steps[np.isfinite(steps)], initial=0.0))
    if size > LARGE_STEP:
        cause = Cause("lr-too-high", 0.8, (f"steps just before were up to {number(size)} of the weights' norm", units))
    else:
        cause = Cause("dying-relu", 0.7, (units,))
    return cause, _detached(together, 0.2, "units in front of it are dead")


def _cut_off(cut: list[Stretch], causes: tuple[Cause, ...], what: str = "is exactly 0") -> Finding:
    first, together = cut[0], _together(cut)
    return Finding(
        summary=f"The gradient of {named([s.layer for s in together])} {what} from step {first.onset} on",
        onset_step=first.onset,
        first_step=first.told,
        last_step=first.last,
        severity=Severity.WARNING,
        layer=together[-1].layer,
        evidence={
            "layers": [s.layer for s in together][:20],
            "layer_reason": "of the tensors without a gradient it is the nearest to the output",
        },
        causes=causes,
        remedy=_LOOK if causes[0].id == "gradient-cut-off" else _ALIVE,
    )


_LOOK = Remedy(
    "Look for a detach(), a torch.no_grad(), a mask or a branch that leaves this part out of the loss, and for "
    "units that are always off in front of it.",
    {},
    "print([(n, p.grad.abs().max()) for n, p in model.named_parameters() if p.grad is not None])",
)
_ALIVE = Remedy(
    "Dead units do not come back by themselves: begin again, or at a checkpoint from before, with a learning rate a "
    "tenth as high, or with an activation that does not die (GELU, leaky ReLU).",
    {},
    'for group in optimizer.param_groups:\n    group["lr"] *= 0.1',
)


def _fading(matrix: LayerMatrix, ratio: float, order: float, rows: int) -> Finding | None:
    """Norms that fall from the output to the input by many orders of magnitude, for ``rows`` rows running."""
    third = len(matrix.names) // 3
    near, far = _typical(matrix, slice(0, third)), _typical(matrix, slice(-third, None))
    known = np.isfinite(near) & np.isfinite(far) & (matrix.step > LEAST_STEPS)
    if known.sum() < rows:
        return None
    near[~known] = np.nan
    with np.errstate(invalid="ignore"):
        low = near < ratio * far
    first = first_run(low, rows)
    if first is None:
        return None
    told = first + rows - 1
    profile = np.nanmedian(np.log(_positive(matrix, slice(first, told + 1), slice(None))), axis=0)
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


def _typical(matrix: LayerMatrix, columns: slice) -> np.ndarray:
    """float64[T]: median of the positive norms among ``columns``; NaN with fewer than two of them."""
    typical = np.full(len(matrix.step), np.nan)
    for start in range(0, len(typical), BLOCK_ROWS):
        norms = _positive(matrix, slice(start, start + BLOCK_ROWS), columns)
        there = np.isfinite(norms).sum(axis=1)
        whole, some = there == norms.shape[1], there >= 2
        block = typical[start : start + BLOCK_ROWS]
        block[whole & some] = np.median(norms[whole & some], axis=1)  # many times faster than nanmedian
        if (some & ~whole).any():
            block[some & ~whole] = np.nanmedian(norms[some & ~whole], axis=1)
    return typical


def _positive(matrix: LayerMatrix, rows: slice, columns: slice) -> np.ndarray:
    """float64[R, N]: the norms, NaN where there is none, or none that is finite and above zero."""
    norms = matrix.value[rows, columns].astype(np.float64)
    with np.errstate(invalid="ignore"):
        norms[~(matrix.present[rows, columns] & (norms > 0) & (norms < np.inf))] = np.nan
    return norms


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
