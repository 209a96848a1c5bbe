"""The norms of one optimizer step: which layers were taken at which moment, and what that says once on the host."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from monitor.hook.norms import Norms
from monitor.hook.probe import Decoded, Reading

Scale = float | Tensor
"""The loss scale: a number, or a tensor that stays on its device."""


@dataclass(slots=True)
class Piece:
    """The norms of some layers at one moment of one step, and what was done to these gradients next."""

    rows: Sequence[int] | None
    """Row in the layer table of each gradient given; -1 for a tensor that is not in it. None: all rows in order."""
    norms: Norms
    divisor: Scale = 1.0
    """The loss scale still contained in ``norms``."""
    coef: Tensor | None = None
    """Factor the gradients were multiplied by afterwards; None when they were left alone."""
    max_norm: float | None = None
    """The L2 limit of that clipping."""


@dataclass(slots=True)
class StepNorms:
    """Everything taken in one optimizer step."""

    layers: int
    before: list[Piece]
    """The pieces that make up the pre-clip norms; none when pre-clip is not known."""
    after: Piece | None
    """Measured again before the optimizer, when ``before`` does not tell what clipping left."""
    whole: bool = True
    """False when some layers' gradients changed unseen, so that the norms of the whole gradient are not known."""
    after_known: bool = True
    """False when only pre-clip is known."""
    by_value: tuple[float | None, ...] = ()
    """The limit of each clip by value; None for one of gradients that still were multiplied by the loss scale, and for
    what the loop did to them itself."""

    def tensors(self) -> list[Tensor]:
        return [tensor for piece in self._pieces() for tensor in _tensors(piece)]

    def reading(self) -> Reading:
        """The tensors and what to make of them."""
        return Reading(self.tensors(), self._decoded)

    def _decoded(self, arrays: list[np.ndarray]) -> Decoded:
        values, norms, present = self.decode(arrays)
        stat = norms if norms is None or present is None else (norms, present)
        return Decoded(values, {} if stat is None else {"grad_norm_preclip": stat})

    def decode(self, arrays: list[np.ndarray]) -> tuple[dict[str, float], np.ndarray | None, np.ndarray | None]:
        """Scalars by name; pre-clip norms float32[L]; present bool[L], or None when every layer has one.

        ``arrays`` are the values of ``tensors()``. Without pre-clip norms both arrays are None.
        """
        supply = iter(arrays)
        read = {id(piece): _Host(piece, supply) for piece in self._pieces()}
        values: dict[str, float] = {}
        row = present = None
        if any(host.failed for host in read.values()):
            return values, row, present
        if self.before:
            hosts = [read[id(piece)] for piece in self.before]
            row, present = _layer_row(self.layers, hosts)
            if self.whole:
                values["grad_norm_preclip"] = _hypot([host.total for host in hosts])
            if self.whole and self.after_known and self.after is None:
                values.update(_clipped(hosts))
        if self.after is not None:
            after = read[id(self.after)]
            values["grad_norm_postclip"] = after.total
            if row is not None and not self.by_value:
                values.update(_common_factor(row, present, after, self.layers))
        if self.by_value and None not in self.by_value:
            values["clip_value"] = min(limit for limit in self.by_value if limit is not None)
        return values, row, present

    def overflows(self) -> bool:
        """Whether a total that is on the host is not finite; nobody waits for one on a device."""
        totals = [piece.norms.total for piece in self._pieces()]
        return not all(math.isfinite(total.item()) for total in totals if total.get_device() < 0)

    def _pieces(self) -> list[Piece]:
        return [*self.before, *((self.after,) if self.after else ())]


def _tensors(piece: Piece) -> list[Tensor]:
    tensors = [piece.norms.each if piece.norms.exact is None else piece.norms.exact, piece.norms.total]
    if piece.coef is not None:
        tensors.append(piece.coef)
    if isinstance(piece.divisor, Tensor):
        tensors.append(piece.divisor)
    if piece.norms.failed is not None:
        tensors.append(piece.norms.failed)
    return tensors


class _Host:
    """One piece with its values on the host, unscaled."""

    __slots__ = ("clipped", "coef", "failed", "max_norm", "norms", "rows", "total")

    def __init__(self, piece: Piece, supply: Iterator[np.ndarray]) -> None:
        norms = next(supply)
        total = float(next(supply))
        self.clipped = piece.coef is not None
        self.coef = float(next(supply)) if self.clipped else 1.0
        divisor = float(next(supply)) if isinstance(piece.divisor, Tensor) else piece.divisor
        self.failed = piece.norms.failed is not None and bool(next(supply))
        self.max_norm = piece.max_norm
        if piece.norms.repaired is not None:
            norms = piece.norms.repaired
        if not math.isfinite(total) or piece.norms.exact is not None:
            # The sum of squares of finite norms can overflow too, and half precision rounds the total.
            total = math.sqrt(float(np.dot(wide := norms.astype(np.float64), wide)))
        if divisor != 1.0:
            norms = norms / divisor
            total /= divisor
        if piece.norms.order is not None:
            grouped, norms = norms, np.empty_like(norms)
            norms[np.asarray(piece.norms.order)] = grouped
        self.norms = norms
        self.total = total
        self.rows = piece.rows


def _hypot(totals: list[float]) -> float:
    return totals[0] if len(totals) == 1 else math.sqrt(sum(total * total for total in totals))


def _layer_row(layers: int, hosts: list[_Host]) -> tuple[np.ndarray, np.ndarray | None]:
    if len(hosts) == 1 and hosts[0].rows is None:
        return _float32(hosts[0].norms), None
    row = np.zeros(layers, np.float32)
    present = np.zeros(layers, bool)
    for host in hosts:
        rows = np.arange(layers) if host.rows is None else np.asarray(host.rows, dtype=np.int64)
        known = rows >= 0
        row[rows[known]] = _float32(host.norms)[known]
        present[rows[known]] = True
    return row, None if present.all() else present


def _float32(norms: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a norm above 3.4e38 is an infinity in the layers' precision
        return norms.astype(np.float32, copy=False)


def _clipped(hosts: list[_Host]) -> dict[str, float]:
    values = {"grad_norm_postclip": _hypot([host.total * host.coef for host in hosts])}
    if len(hosts) == 1 or not any(host.clipped for host in hosts):
        values["clip_coef"] = hosts[0].coef
    if len(hosts) == 1 and hosts[0].max_norm is not None:
        values["clip_max_norm"] = hosts[0].max_norm
    return values


def _common_factor(row: np.ndarray, present: np.ndarray | None, after: _Host, layers: int) -> dict[str, float]:
    """``clip_coef`` when every layer shrank by the same factor, else nothing: it was not a clip by the global norm."""
    after_row, after_present = _layer_row(layers, [after])
    both = np.ones(layers, bool) if present is None else present.copy()
    if after_present is not None:
        both &= after_present
    usable = both & (row > 0) & np.isfinite(row) & np.isfinite(after_row)
    if not usable.any():
        return {}
    ratio = after_row[usable].astype(np.float64) / row[usable]
    middle = float(np.median(ratio))
    return {"clip_coef": middle} if np.allclose(ratio, middle, rtol=1e-3, atol=0.0) else {}
