"""The statistics of layers and modules that the heatmap can show: their words, their order, and the scale that fits.

A norm lives on a logarithmic scale, a share on a linear one from zero, a number with a sign on one that is the same on
both sides of zero. What a cell keeps of its steps follows: the largest, the smallest, or what is farthest from zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from monitor.runfile.reader import Run
from monitor.runfile.thinned import Extents
from monitor.runfile.zoom import LongMatrix, LongSignal, long_matrix
from monitor.signals import LAYER_CATALOGUE, MODULE_CATALOGUE, LayerMatrix, Signal, SignalSpec

MODULES_PREFIX = "modules."
"""What a statistic of modules has before its name where the address or a question names one."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How one statistic is shown."""

    group: str
    title: str
    scale: str = "log"
    """``log``; ``linear`` from zero; ``signed``: linear, the same on both sides of zero."""
    keep: str = "largest"
    """What a cell shows of several steps: ``largest``, ``smallest``, or ``farthest`` from zero."""
    limit: float | None = None
    """The end of a scale that is known beforehand; None takes it from the values."""


LAYER_MEASURES: dict[str, Measure] = {
    "grad_norm_preclip": Measure("Gradients", "Gradient norm before clipping"),
    "grad_norm_postclip": Measure("Gradients", "Gradient norm after clipping"),
    "grad_norm_local": Measure("Gradients", "Gradient norm of this rank alone"),
    "grad_abs_max": Measure("Gradients", "Largest gradient entry"),
    "grad_zero_share": Measure("Gradients", "Share of zero gradient entries", "linear"),
    "grad_nonfinite_share": Measure("Gradients", "Share of non-finite gradient entries", "linear"),
    "grad_cosine": Measure("Gradients", "Cosine with the gradient of the step before", "signed", "farthest", 1.0),
    "weight_norm": Measure("Weights and updates", "Norm of the weights"),
    "update_norm": Measure("Weights and updates", "Norm of the update"),
    "update_to_weight_ratio": Measure("Weights and updates", "Update-to-weight ratio"),
    "update_cosine": Measure("Weights and updates", "Cosine of update and descent", "signed", "farthest", 1.0),
    "adam_rms": Measure("Adam", "Adam's RMS of g²/v"),
    "adam_floor_share": Measure("Adam", "Share of entries held back by Adam's ε", "linear"),
    "parameter_checksum": Measure("Ranks", "Checksum of the weights", "linear"),
}

MODULE_MEASURES: dict[str, Measure] = {
    "grad_norm_local": Measure("Gradients", "Gradient norm of this rank alone, by group of parameters"),
    "activation_rms": Measure("Activations", "RMS of the output"),
    "activation_absmax": Measure("Activations", "Largest magnitude of the output"),
    "activation_mean": Measure("Activations", "Mean of the output", "signed", "farthest"),
    "activation_zero_share": Measure("Activations", "Share of zeros in the output", "linear"),
    "activation_nonfinite": Measure("Activations", "Non-finite values in the output"),
    "dead_units_share": Measure("Activations", "Share of dead units", "linear"),
    "saturated_units_share": Measure("Activations", "Share of saturated units", "linear"),
    "attention_logit_bound": Measure("Attention", "Bound of the attention logits"),
    "attention_logit_max": Measure("Attention", "Largest attention logit"),
    "attention_entropy_min": Measure("Attention", "Entropy of the most concentrated head", "linear", "smallest"),
    "attention_entropy_mean": Measure("Attention", "Mean entropy over heads", "linear", "smallest"),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One statistic that a run has."""

    stream: str
    """``layers`` or ``modules``."""
    stat: str

    @property
    def key(self) -> str:
        """How the address and the charts' route call it."""
        return (MODULES_PREFIX if self.stream == "modules" else "") + self.stat

    @property
    def measure(self) -> Measure:
        """How it is shown; a statistic that no table knows by the words in its name."""
        known = (MODULE_MEASURES if self.stream == "modules" else LAYER_MEASURES).get(self.stat)
        if known:
            return known
        scale = "linear" if self.stat.endswith("_share") else "signed" if self.stat.endswith("_cosine") else "log"
        group = "Other of modules" if self.stream == "modules" else "Other of layers"
        title = self.stat.replace("_", " ").capitalize()
        if scale == "signed":
            return Measure(group, title, scale, "farthest", 1.0)
        return Measure(group, title, scale)

    @property
    def spec(self) -> SignalSpec | None:
        """Its row of the catalogue; None for one that is not there."""
        return (MODULE_CATALOGUE if self.stream == "modules" else LAYER_CATALOGUE).get(self.stat)

    @property
    def label(self) -> str:
        """Group, title, and the unit if there is one."""
        unit = f" ({self.spec.unit})" if self.spec and self.spec.unit != "1" else ""
        return f"{self.measure.group}: {self.measure.title}{unit}"

    @property
    def explained(self) -> str:
        """What it is, how often it is measured and at what cost; empty for one that no catalogue has."""
        return self.spec.explained if self.spec else ""


def choices(run: Run) -> list[Choice]:
    """What the heatmap of ``run`` can show, group by group; nothing is read for it but names."""
    found: list[Choice] = []
    for stream, stats, table in (
        ("layers", run.layer_stats, LAYER_MEASURES),
        ("modules", run.module_stats, MODULE_MEASURES),
    ):
        known = [stat for stat in table if stat in stats]
        found += [Choice(stream, stat) for stat in (*known, *sorted(set(stats) - set(known)))]
    return found


def chosen(run: Run, key: str | None) -> Choice | None:
    """The statistic called ``key``; the first there is for an unknown one; None when there are none."""
    there = choices(run)
    return next((choice for choice in there if choice.key == key), there[0] if there else None)


def matrix_of(run: Run, choice: Choice, attempt: int | None = None) -> LayerMatrix | LongMatrix:
    """The values of ``choice`` along the current line, or of one attempt; of steps left out what its measure keeps."""
    if attempt is not None:
        own = run.peaks(choice.stat, stream=choice.stream, attempt=attempt)
        return _measured(own) if choice.stream == "modules" else own
    if choice.stream == "layers" and (long := long_matrix(run, choice.stat)):
        return long
    if choice.measure.keep != "largest":
        parts = run.extents(choice.stat, stream=choice.stream, windows=False)
        if parts and len({part.names for part in parts}) == 1:
            own = _kept(parts, choice)
            return _measured(own) if choice.stream == "modules" else own
    matrix = run.peaks(choice.stat, stream=choice.stream)
    return _measured(matrix) if choice.stream == "modules" else matrix


def whole_matrix(matrix: LayerMatrix | LongMatrix, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows ``low..high``: int64[T] steps, float32[T, L] values, bool[T, L] whether each was measured."""
    if isinstance(matrix, LongMatrix) and high > low:
        return matrix.step[low:high], *matrix.rows(low, high)
    if isinstance(matrix, LongMatrix):
        nothing = np.empty((0, len(matrix.names)), np.float32)
        return matrix.step[:0], nothing, nothing.astype(bool)
    return matrix.step[low:high], matrix.value[low:high], matrix.present[low:high]


def is_sparse(signal: Signal | LongSignal) -> bool:
    """Whether so few steps were measured that the points say more than the line between them."""
    return 0 < len(signal) < 200 and int(signal.step[-1] - signal.step[0]) >= 2 * len(signal)


def layer_curve(matrix: LayerMatrix | LongMatrix, layer: str) -> Signal | LongSignal | None:
    """One column of ``matrix`` as a signal, without the steps it was not measured at; None for an unknown layer."""
    if isinstance(matrix, LongMatrix):
        return matrix.curve(layer)
    if layer not in matrix.names:
        return None
    column = matrix.names.index(layer)
    measured = matrix.present[:, column]
    return Signal(layer, matrix.step[measured], matrix.value[measured, column].astype(float), matrix.unit)


def _measured(matrix: LayerMatrix) -> LayerMatrix:
    """Without the modules that never had the statistic: only those that attend have an entropy."""
    there = np.asarray(matrix.present.any(axis=0))
    if there.all() or not there.any():
        return matrix
    return replace(
        matrix,
        names=tuple(name for name, own in zip(matrix.names, there.tolist(), strict=True) if own),
        value=matrix.value[:, there],
        present=matrix.present[:, there],
        nonfinite=None if matrix.nonfinite is None else matrix.nonfinite[:, there],
    )


def _kept(parts: Sequence[Extents], choice: Choice) -> LayerMatrix:
    """The intervals of a thinned statistic as rows, each with the value that its measure keeps."""
    lowest, highest = (np.concatenate([getattr(part, name) for part in parts]) for name in ("min", "max"))
    bad = np.concatenate([part.nonfinite for part in parts])
    value = np.where(bad > 0, np.float32(np.nan), kept(lowest, highest, choice.measure.keep))
    return LayerMatrix(
        choice.stat,
        np.concatenate([part.step for part in parts]),
        parts[0].names,
        value.astype(np.float32),
        (bad > 0) | np.isfinite(highest),
        choice.spec.unit if choice.spec else "1",
        np.concatenate([part.since for part in parts]),
        bad,
    )


def kept(lowest: np.ndarray, highest: np.ndarray, keep: str) -> np.ndarray:
    """Of the extremes of each cell the one that ``keep`` names; NaN where a cell has none."""
    if keep == "largest":
        return highest
    return lowest if keep == "smallest" else np.where(np.abs(lowest) > np.abs(highest), lowest, highest)


def negated(matrix: LayerMatrix) -> LayerMatrix:
    """``matrix`` with the signs turned, so that what finds its largest value finds the smallest."""
    return replace(matrix, value=-matrix.value)
