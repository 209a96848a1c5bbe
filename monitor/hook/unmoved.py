"""Trainable parameters that do not train: without a gradient, in no optimizer, or never changed by the step.

Exact, not statistical: a layer is named when the same thing held in several measured steps in a row and no other
reading is left. What is frozen on purpose (``requires_grad=False``, a learning rate of 0) is not named.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from monitor.hook.layers import LayerTable, plain_name
from monitor.hook.over_ranks import OverRanks
from monitor.hook.passes import LOW_PRECISION, owned_by
from monitor.hook.probe import Decoded, Probe, Reading
from monitor.hook.sharded import local

HALF_PATIENCE = 10
VISIBLE = 8.0
NEGLIGIBLE = 1e-3
"""Beside the root mean square of all layers' gradients. All three our judgement."""
PATIENCE = 3
"""Measured steps in a row. Amazon SageMaker Debugger's UnchangedTensor rule looks at as many."""
NAMED = 8
"""Layers that a message names; the event has up to ``LISTED`` of them in its field ``layers``."""
LISTED = 200


class Gradientless(Probe):
    """Warns of trainable parameters of an optimizer that never had a gradient, and of those with one in no optimizer,
    also of those that the model has got since it was attached.

    Counted from the start of the attempt, or from when the parameter was unfrozen. One that had a gradient before and
    has none now is not named: experts, alternating losses and early exits do that on purpose.
    """

    name = "parameters without gradients"
    every = 10
    first_steps = PATIENCE

    def __init__(
        self, table: LayerTable, optimizers: Sequence[torch.optim.Optimizer], model: nn.Module | None = None
    ) -> None:
        super().__init__()
        self._table = table
        self._model = model
        self._optimizers = tuple(optimizers)
        self._missing = [0] * len(table)
        """Measured steps without a gradient since it could have one; -1 when it had one, or has been told of."""
        self._loose = [0] * len(table)
        """Measured steps with a gradient and no optimizer; -1 when told of."""
        self._late: dict[str, int] = {}
        """The same of parameters that are not in the table, by name."""
        self._stepped: dict[int, None] = {}

    def begin(self) -> None:
        self._stepped = {}

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if id(optimizer) in self._stepped:
            return
        self._stepped[id(optimizer)] = None
        silent: list[int] = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                row = self._table.index.get(id(parameter))
                # Sharded by FSDP, a tensor may have nothing on this rank.
                trained = parameter.requires_grad and parameter.numel() > 0
                if row is not None and _counted(self._missing, row, trained, parameter.grad is None):
                    silent.append(row)
        replaced = [row for row in silent if self._was_replaced(row)]
        if replaced:
            self._tell(
                replaced, "not_in_optimizer",
                "parameters that the optimizer holds and the model has no more: the model got new ones after attach, "
                "which are in no optimizer",
                strangers=len(replaced),
            )  # fmt: skip
        silent = [row for row in silent if row not in replaced]
        if silent:
            self._tell(
                silent, "missing_gradients",
                f"trainable parameters without a gradient in {PATIENCE} measured steps: not in the graph of the loss "
                "(detached, unused, or under no_grad)",
            )  # fmt: skip

    def _was_replaced(self, row: int) -> bool:
        """Whether the model has another parameter by this name than when it was attached."""
        if self._model is None:
            return False
        present = {plain_name(name): one for name, one in self._model.named_parameters(remove_duplicate=False)}
        now = present.get(plain_name(self._table.names[row]))
        return now is not None and id(now) not in self._table.index

    def end_step(self) -> Reading | None:
        if not self._stepped:
            return None
        owned = {id(p) for o in self._optimizers for group in o.param_groups for p in group["params"]}
        loose = [
            row for row, parameter in enumerate(self._table.parameters)
            if id(parameter) not in owned
            and _counted(self._loose, row, parameter.requires_grad and parameter.grad is not None, True)
        ]  # fmt: skip
        if loose:
            strangers = len(owned - self._table.index.keys())
            replaced = (
                f" (which has {strangers} that the model has not: it was built before the model was changed)"
                if strangers else ""
            )  # fmt: skip
            self._tell(
                loose, "not_in_optimizer",
                f"trainable parameters with gradients, but in no optimizer given to attach{replaced}",
                strangers=strangers,
            )  # fmt: skip
        self._look_for_late_ones(owned)
        return None

    def _look_for_late_ones(self, owned: set[int]) -> None:
        """Parameters that came with the first batch or later. A replaced one has a name of the table, and is told of by
        what it replaced."""
        if self._model is None:
            return
        names = set(self._table.names)
        late = [
            plain_name(name) for name, one in self._model.named_parameters()
            if id(one) not in self._table.index and one.grad is not None and id(one) not in owned
        ]  # fmt: skip
        self._late = {name: self._late.get(name, 0) + 1 for name in late if name not in names}
        told = [name for name, times in self._late.items() if times == PATIENCE]
        if told:
            tell_of(
                self, told, "not_in_optimizer",
                "trainable parameters with gradients that the model got after attach, and that are in no optimizer "
                "given to it",
                step=self.watch.step,
            )  # fmt: skip

    def _tell(self, rows: list[int], about: str, text: str, **fields: int) -> None:
        tell(self, self._table, rows, about, text, step=self.watch.step, **fields)


def _counted(counts: list[int], row: int, eligible: bool, holds: bool) -> bool:
    """Count one measured step of ``row``; whether it is to be told of now."""
    if not eligible:
        counts[row] = 0
    elif not holds:
        counts[row] = -1
    elif counts[row] >= 0:
        counts[row] += 1
        if counts[row] == PATIENCE:
            counts[row] = -1
            return True
    return False


class Unmoved(Probe):
    """Warns of parameters that stay bit for bit what they were through steps that ought to have changed them.

    ``Directions`` hands in samples of every step that it measures. A layer is suspect when no sampled entry moved in
    ``PATIENCE`` such steps in a row, though some had a gradient and a learning rate large enough to show: in float32
    by ``VISIBLE`` roundings of the weight, so that the bias in front of a batch normalisation, whose gradient is
    rounding, is not meant. In half precision updates that are rounded away are the finding, so there it takes a
    gradient that is not negligible beside the others', and ``HALF_PATIENCE`` steps. The whole tensors of suspects are
    compared across the next step; no other layer is copied. A learning rate on a device is not waited for: its layers
    are not judged.
    """

    name = "parameters that never move"
    every = 20
    first_steps = 10
    over_ranks = True

    def __init__(self, table: LayerTable) -> None:
        super().__init__()
        self._table = table
        self._half = np.array([parameter.dtype in LOW_PRECISION for parameter in table.parameters], bool)
        self._epsilon = np.array([epsilon(parameter.dtype) for parameter in table.parameters])
        self._patience = np.where(self._half, HALF_PATIENCE, PATIENCE)
        self._still = np.zeros(len(table), np.int64)
        self._told = np.zeros(len(table), bool)
        self._suspects: frozenset[int] = frozenset()
        self._copies: dict[int, Tensor] = {}
        self._equal: list[tuple[int, Tensor]] = []

    def due(self, step: int, since_start: int) -> bool:
        if self.watch.over_ranks is not None and not super().due(step, since_start):
            return False  # compared where a reduction takes place anyway: ``Directions`` has the same cadence
        return bool(self._suspects)

    def reduces(self, step: int, since_start: int) -> bool:
        return False

    def looked_at(self, gradient: np.ndarray, weights: np.ndarray, ought: np.ndarray, change: np.ndarray) -> None:
        """Samples of one step, [L, n] each, steps in order, when they have arrived on the host.

        Args:
            ought: what each entry's update is expected to be, at least; NaN where that is not known.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            size = np.sqrt((gradient * gradient).mean(axis=1))
            visible = (gradient != 0) & (ought > VISIBLE * self._epsilon[:, None] * np.abs(weights))
            shows = np.where(self._half, (ought > 0).any(axis=1), visible.any(axis=1))
        self.judge((change != 0).any(axis=1), shows, size)

    def judge(self, moved: np.ndarray, shows: np.ndarray, size: np.ndarray) -> None:
        """What the samples of one step say, steps in order.

        Args:
            moved: bool[L], whether any entry changed.
            shows: bool[L], whether any ought to, visibly.
            size: float64[L], root mean square of the gradient.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            counts = size > NEGLIGIBLE * np.sqrt((size * size).mean())
        still = ~moved & ~self._told & shows & (counts | ~self._half)
        self._still[moved] = 0
        self._still[still] += 1
        self._suspects = frozenset(np.flatnonzero(self._still >= self._patience).tolist())

    def begin(self) -> None:
        self._copies, self._equal = {}, []

    @torch.no_grad()
    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if self._suspects:
            sharded = self.watch.over_ranks is not None
            for owned in owned_by(optimizer, self._table, only=self._suspects, sharded=sharded):
                rows = zip(owned.rows, owned.parameters, strict=True)
                self._copies.update((row, local(parameter).detach().clone()) for row, parameter in rows)

    @torch.no_grad()
    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = self._table.parameters
        self._equal += [(row, torch.eq(local(parameters[row]), copy).all()) for row, copy in self._copies.items()]
        self._copies = {}

    def end_step(self) -> Reading | None:
        suspects, self._suspects = self._suspects, frozenset()
        self._still[list(suspects)] = 0
        equal, self._equal, self._copies = self._equal, [], {}
        if not equal:
            return None
        step, ranks = self.watch.step, self.watch.over_ranks
        if ranks is not None:
            return self._added_up(ranks, equal)

        def decode(arrays: list[np.ndarray]) -> Decoded:
            self._tell([row for (row, _), same in zip(equal, arrays, strict=True) if same.item()], step)
            return Decoded()

        return Reading([same for _, same in equal], decode)

    def _added_up(self, ranks: OverRanks, equal: list[tuple[int, Tensor]]) -> Reading:
        """A layer has not moved where every rank that has it has looked, which they mostly do in the same step, and
        none has a piece that did."""
        step = self.watch.step
        for row, same in equal:
            ranks.add("changed", [row], same.logical_not().reshape(1))

        def decode(arrays: list[np.ndarray]) -> Decoded:
            changed, present = ranks.values(arrays[0])
            self._tell([row for row, _ in equal if present[row] and changed[row] == 0], step)
            return Decoded()

        return Reading(ranks.tensors("changed"), decode)

    def _tell(self, rows: list[int], step: int) -> None:
        if rows:
            self._told[rows] = True
            tell(
                self, self._table, rows, "unmoved",
                "parameters with gradients and a learning rate that an optimizer step did not change by a bit, nor "
                f"where sampled in {self._patience[rows].max()} measured steps before ({self._why(rows)})",
                step=step,
            )  # fmt: skip

    def _why(self, rows: list[int]) -> str:
        kinds = {self._table.parameters[row].dtype for row in rows}
        if kinds <= LOW_PRECISION:
            names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            return f"their updates are below the resolution of {names}; keep the weights in float32"
        return "what the optimizer changes is not what the model uses, or the updates are lost in rounding"


def epsilon(dtype: torch.dtype) -> float:
    """From 1 to the next number of this type; NaN for integers."""
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else np.nan


def tell(probe: Probe, table: LayerTable, rows: list[int], about: str, text: str, *, step: int, **fields: int) -> None:
    """A warning in the run that names layers."""
    tell_of(probe, [table.names[row] for row in rows], about, text, step=step, **fields)


def tell_of(probe: Probe, names: list[str], about: str, text: str, *, step: int, **fields: int) -> None:
    """The same, of layers that no table may have."""
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    probe.watch.warn(
        f"{text}: {shown}",
        step=step, about=about, layers=names[:LISTED], **fields,
    )  # fmt: skip
