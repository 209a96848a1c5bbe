"""Per-layer gradient norms in one fused pass, shared with clipping.

Stages, and where each number is taken:

    backward ... backward   gradients accumulate (and are reduced over ranks by DDP)
    [unscale_]              GradScaler divides them by the loss scale
    clip                    grad_norm_preclip: the norms that clipping needs anyway are the per-layer norms
                            grad_norm_postclip = grad_norm_preclip * clip_coef
    clip by value           grad_norm_preclip is taken before it, grad_norm_postclip before the optimizer steps: no one
                            factor says what it did, so there is no clip_coef; nor for what the loop does to the
                            gradients itself, where it says so (mon.gradients_will_change)
    optimizer.step          without clipping the norms are taken here, where pre-clip and post-clip are the same

An optimizer that is given a closure runs forward and backward inside its step: there the moment before the optimizer
uses the gradients is the return of the closure, and with several evaluations the last one counts.

Norms of gradients that are still multiplied by the loss scale are divided by it, so every norm is unscaled.

Something may change the gradients between backward and the optimizer without being seen (a clip function that was
imported by name, added noise). Each in-place change raises a tensor's version counter, so the
counters are noted when backward ends and compared before the optimizer steps. From the first such step on, norms are
also taken at the end of every backward, which is then the pre-clip stage; nothing measured after a change is ever
called pre-clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from monitor.guard import contained
from monitor.hook.layers import LayerTable
from monitor.hook.norms import repair_overflow, scale_gradients, take_norms
from monitor.hook.observe import ClipCall, ValueClipCall
from monitor.hook.ranks import is_sharded
from monitor.hook.sharded import ShardedNorms, on_one_mesh, scale_pieces
from monitor.hook.step_norms import Piece, Scale, StepNorms
from monitor.hook.timing import StepClock

PART = "per-layer gradient norms"

_PLAIN = frozenset((Tensor, torch.nn.Parameter))

_UNSEEN_CHANGE = (
    "gradients were changed between backward and the optimizer step by something that is not watched (a clip function "
    "imported by name before attach, added noise)"
)
_CLIPPED_SCALED = (
    "gradients are clipped while they are still multiplied by the loss scale: call scaler.unscale_(optimizer) first, "
    "or mon.clip_grad_norm_ or mon.clip_grad_value_, which do; norms are recorded unscaled"
)
_SEVERAL_BY_VALUE = (
    "gradients are clipped by value, or changed by the loop itself, and several optimizers use them: what that left is "
    "not known, and post-clip norms are absent"
)
_NO_GRADIENTS = (
    "backward ran, but none of the parameters that the model had at attach has a gradient: attach after the model has "
    "been moved, wrapped or sharded"
)


class Gradients:
    """Takes the norms of one model's gradients, once per optimizer step.

    Args:
        table: the model's parameters.
        optimizers: with several, each one's layers are taken when it steps (a GAN's two halves step at two moments).
        clock: told what is monitoring and what is clipping, for the step's time parts.
        tell: called with a sentence when the stage of the numbers changes; becomes an event.
    """

    def __init__(
        self,
        table: LayerTable,
        optimizers: Sequence[torch.optim.Optimizer],
        clock: StepClock,
        tell: Callable[[str], None],
    ) -> None:
        self._table = table
        self._rows_of = {} if len(optimizers) == 1 else {id(o): _rows_of(o, table) for o in optimizers}
        self._clock = clock
        self._tell = tell
        self._told: set[str] = set()
        self._at_backward = len(optimizers) == 1
        """Norms are taken at the end of backward. On in the first step, until it is known how the loop clips."""
        self._unseen_changes = False
        self._clipped_last = False
        self.sharded = ShardedNorms(table.names) if table.split or any(map(is_sharded, table.parameters)) else None
        """Some layers are DTensors: their norms are taken together with the other ranks."""
        self._sample = range(0, len(table), max(1, len(table) // 16))
        self._begin_step()

    def _begin_step(self) -> None:
        self._pieces: list[Piece] = []
        self._after: Piece | None = None
        """Taken before the optimizer stepped, where the pieces do not tell what is left after clipping."""
        self._whole = True
        self._after_known = True
        self._from_backward: Piece | None = None
        self._versions: tuple[Sequence[int], list[int]] | None = None
        self._covered = False
        self._by_value: list[float | None] = []
        self._kept = 0
        self._evaluated = False
        self._stepped = False
        self.micro_steps = 0
        self.unscaled = False

    # What the loop does ----------------------------------------------------------------------------------------------

    def backward_ended(self, scale: Scale) -> None:
        """Once per micro-step, gradients accumulated so far."""
        self.micro_steps += 1
        if self._evaluated:  # evaluated again: what an earlier evaluation left is gone
            del self._pieces[self._kept :]
            self._after = self._from_backward = None
            self._covered, self._after_known, self._evaluated = False, True, False
            self._by_value = []
        if self._at_backward and not self._table.split:  # stages end a backward at different moments: no meeting there
            self._from_backward = self._measure(scale) or self._from_backward
        # A loop that clips through us needs no full look at the counters: a few tell whether something else came first.
        self._note_versions(self._sample if self._clipped_last else range(len(self._table)))

    def was_unscaled(self) -> None:
        """GradScaler divided the gradients: a change that is known and meant."""
        self.unscaled = True
        if self._versions is not None:
            self._note_versions(self._versions[0])

    def were_scaled(self, scale: Scale) -> None:
        """What was measured in this step so far turns out to be multiplied by the loss scale."""
        for piece in [*self._pieces, *([self._from_backward] if self._from_backward else [])]:
            piece.divisor = scale
            piece.max_norm = None

    def clip(self, call: ClipCall, scale: Scale) -> Tensor:
        """Clip as ``torch.nn.utils.clip_grad_norm_`` does, bit for bit, and keep the norms that this needs.

        A training action: errors of the gradients themselves are raised as torch raises them.
        """
        before = self._clock.switch("monitor")
        try:
            rows = self._rows(call.parameters)
            taken = _grads(call.parameters, rows)
            if taken is not None and self.sharded is not None and call.norm_type == 2.0:
                return self._clip_sharded(call, *taken, scale)
            if taken is None or call.norm_type != 2.0 or call.foreach is False or not _plain(taken[0]):
                return self._clip_by_torch(call, taken)
            grads, rows = taken
            norms = take_norms(grads)
            if norms.sparse and call.original is not None:
                return call.run()  # torch refuses sparse gradients; the loop must hear so with or without us
            if call.error_if_nonfinite and not math.isfinite(norms.total.item()):  # SYNC: asked for by the caller
                return call.run()
            coef = torch.clamp(float(call.max_norm) / (norms.total + 1e-6), max=1.0)
            with contained(PART):
                repair_overflow(norms)
                self._keep(Piece(rows, norms, self._left(scale), coef, float(call.max_norm)), call.parameters)
            self._clock.switch("optimizer")
            scale_gradients(norms, coef)
            return norms.total
        finally:
            self._clock.switch(before)

    def clip_value(self, call: ValueClipCall, scale: Scale) -> None:
        """Clip as ``torch.nn.utils.clip_grad_value_`` does, and keep the norms from before it. A training action."""
        before = self._clock.switch("monitor")
        try:
            with contained(PART):
                self._before_change(call.parameters, call.clip_value, scale)
            self._clock.switch("optimizer")
            call.run()
        finally:
            self._clock.switch(before)

    def will_change(self, scale: Scale) -> None:
        """The loop changes the gradients next and has said so."""
        before = self._clock.switch("monitor")
        with contained(PART):
            self._before_change(self._table.parameters, None, scale)
        self._clock.switch(before)

    def before_optimizer(self, optimizer: torch.optim.Optimizer, scale: Scale) -> None:
        """Gradients are what ``optimizer`` is about to use, except for a loss scale still in them."""
        self._stepped = True
        rows = self._rows_of.get(id(optimizer))
        if self._by_value and self._after is None:
            if rows is None:
                self._after = self._measure(scale)
            else:
                self._after_known = False
                self._say("value", _SEVERAL_BY_VALUE)
        if self._covered:
            return
        self._covered = rows is None
        if self.micro_steps == 0:
            self._measure_unknown(scale, rows, "no backward() was seen before the optimizer step")
        elif self._pieces:
            self._take_rest(scale, rows)
        elif self._changed(rows):
            self._measure_unknown(scale, rows, _UNSEEN_CHANGE)
        else:
            self._add(self._from_backward or self._measure(scale, rows))

    def closure_begins(self) -> None:
        """Forward and backward run inside ``optimizer.step``, from here on maybe several times."""
        self._kept, self._evaluated = len(self._pieces), False

    def closure_evaluated(self) -> None:
        """Once each time; what is measured by now stands unless backward runs again."""
        self._evaluated = True

    def closure_ended(self) -> None:
        """A backward pass from here on is another one."""
        self._evaluated = False

    def end_step(self) -> StepNorms | None:
        """What was taken in the step that ends; None when nothing was."""
        if not self._covered and not self._pieces:
            # No step of the optimizer was seen (it is compiled): backward is what there is.
            self._add(self._from_backward)
        looked = self._stepped or self._at_backward
        if self.micro_steps and looked and not self._pieces and self._after is None and not self._told:
            self._say("no gradients", _NO_GRADIENTS)
        step = None
        if self._pieces or self._after is not None:
            step = StepNorms(
                len(self._table), self._pieces, self._after, self._whole, self._after_known, tuple(self._by_value)
            )
            self._clipped_last = bool(self._by_value) or any(piece.coef is not None for piece in self._pieces)
            self._at_backward = self._unseen_changes
        if self.micro_steps and not self._stepped and not self._rows_of:
            self._at_backward = True  # a compiled optimizer is never seen: the next step is measured in time
        self._begin_step()
        return step

    # How -------------------------------------------------------------------------------------------------------------

    def _measure(self, scale: Scale, rows: Sequence[int] | None = None) -> Piece | None:
        parameters = self._table.parameters
        taken = _grads(parameters if rows is None else [parameters[row] for row in rows], rows)
        if taken is None:
            return None
        grads, rows = taken
        if self.sharded is not None:
            every = range(len(parameters)) if rows is None else rows
            return Piece(rows, self.sharded.take(grads, every), self._left(scale))
        if not _plain(grads):
            kinds = sorted({type(grad).__name__ for grad in grads} - {"Tensor", "Parameter"})
            self._say("kind", f"gradients of type {', '.join(kinds)} are not measured; per-layer norms are absent")
            return None
        norms = take_norms(grads)
        repair_overflow(norms)
        norms.groups = []
        return Piece(rows, norms, self._left(scale))

    def _left(self, scale: Scale) -> Scale:
        """The loss scale that is still in the gradients."""
        return 1.0 if self.unscaled else scale

    def _add(self, piece: Piece | None) -> None:
        if piece is not None:
            self._pieces.append(piece)

    def _rows(self, parameters: Sequence[Tensor]) -> Sequence[int] | None:
        table = self._table
        if parameters is table.parameters or (
            len(parameters) == len(table) and all(a is b for a, b in zip(parameters, table.parameters, strict=True))
        ):
            return None
        return [table.index.get(id(parameter), -1) for parameter in parameters]

    def _keep(self, piece: Piece, parameters: Sequence[Tensor]) -> None:
        """Remember what a clip call took. Other layers, if any, are taken before the optimizer steps."""
        if isinstance(piece.divisor, Tensor) or piece.divisor != 1.0:
            self._say("scaled", _CLIPPED_SCALED)
            piece.max_norm = None
        earlier = next((other for other in self._pieces if _share_rows(other, piece)), None)
        if earlier is None:
            self._pieces.append(piece)
            self._covered = piece.rows is None or self._table.index.keys() <= set(map(id, parameters))
        elif earlier.rows == piece.rows and earlier.coef is not None and piece.coef is not None:
            # Clipped a second time: pre-clip is before the first, and both factors apply.
            earlier.coef, earlier.max_norm = earlier.coef * piece.coef, piece.max_norm
        else:
            self._after_known = False

    def _before_change(self, parameters: Sequence[Tensor], clip_value: float | None, scale: Scale) -> None:
        """Take the norms that are not taken yet, and note that those before the optimizer steps will be others."""
        every = range(len(self._table))
        done = {row for piece in self._pieces for row in (every if piece.rows is None else piece.rows)}
        named = self._rows(parameters)
        rows = [row for row in (every if named is None else named) if row >= 0 and row not in done]
        if rows:  # else clipped before already: pre-clip is before the first
            self._add(self._measure(scale, None if len(rows) == len(every) else rows))
        self._covered = named is None or self._table.index.keys() <= set(map(id, parameters))
        left = self._left(scale)
        if clip_value is not None and (isinstance(left, Tensor) or left != 1.0):
            self._say("scaled", _CLIPPED_SCALED)
            clip_value = None
        self._by_value.append(None if clip_value is None else float(clip_value))

    def _take_rest(self, scale: Scale, rows: Sequence[int] | None) -> None:
        """Some layers were taken already, by a clip call that named only them or with another optimizer."""
        done = {row for piece in self._pieces for row in piece.rows or ()}
        self._add(self._measure(scale, [row for row in rows or range(len(self._table)) if row not in done]))

    def _clip_by_torch(self, call: ClipCall, taken: tuple[list[Tensor], Sequence[int] | None] | None) -> Tensor:
        """For what the fused pass does not do: another norm, foreach=False, sharded gradients, no gradients at all."""
        norms = None
        with contained(PART):
            if taken is not None and _plain(taken[0]):
                norms = take_norms(taken[0])
                repair_overflow(norms)
                norms.groups = []
        self._clock.switch("optimizer")
        total = call.run()
        with contained(PART):
            if norms is not None and taken is not None:
                coef = torch.clamp(float(call.max_norm) / (total + 1e-6), max=1.0)
                max_norm = float(call.max_norm) if call.norm_type == 2.0 else None
                self._keep(Piece(taken[1], norms, 1.0, coef, max_norm), call.parameters)
        return total

    def _clip_sharded(self, call: ClipCall, grads: list[Tensor], rows: Sequence[int] | None, scale: Scale) -> Tensor:
        """Measure together with the other ranks; clip as torch does, or by that norm where torch cannot.

        torch refuses to clip DTensors of different meshes, or together with plain tensors (tensor parallel). A loop
        that calls torch's function must hear so, with or without us; ``mon.clip_grad_norm_`` clips.
        """
        assert self.sharded is not None
        norms = self.sharded.take(grads, range(len(grads)) if rows is None else rows)
        coef = torch.clamp(float(call.max_norm) / (norms.total + 1e-6), max=1.0)
        with contained(PART):
            self._keep(Piece(rows, norms, self._left(scale), coef, float(call.max_norm)), call.parameters)
        self._clock.switch("optimizer")
        if call.original is not None or on_one_mesh(grads):
            return call.run()
        if call.error_if_nonfinite and not math.isfinite(norms.total.item()):  # SYNC: asked for by the caller
            raise RuntimeError(
                f"The total norm of the gradients is {norms.total.item()}: not finite, cannot be clipped"
            )
        scale_pieces(grads, coef)
        return norms.total

    def _measure_unknown(self, scale: Scale, rows: Sequence[int] | None, reason: str) -> None:
        """The gradients are not as backward left them, so what is measured now is post-clip and nothing else."""
        if rows is not None:
            self._whole = False
            self._say("unseen", f"{reason}: pre-clip norms of the layers of one of several optimizers are not known")
            return
        self._after = self._measure(scale)
        if self._from_backward is not None:
            self._pieces.append(self._from_backward)
            told = "pre-clip norms are those at the end of backward, post-clip norms those before the optimizer step"
        elif self.micro_steps:
            told = (
                "pre-clip norms of this step are not known; from the next step on they are taken at the end of backward"
            )
        else:
            told = "only post-clip norms are known"
        self._at_backward = self._unseen_changes = self.micro_steps > 0
        self._say("unseen", f"{reason}: {told}")

    def _note_versions(self, rows: Sequence[int]) -> None:
        self._versions = rows, self._versions_of(rows)

    def _versions_of(self, rows: Sequence[int]) -> list[int]:
        parameters = self._table.parameters
        return [-1 if (grad := parameters[row].grad) is None else grad._version for row in rows]

    def _changed(self, only: Sequence[int] | None) -> bool:
        """Whether a gradient was written to since backward, as far as the counters noted then can tell."""
        if self._versions is None:
            return False
        rows, versions = self._versions
        now = self._versions_of(rows)
        if only is None:
            return now != versions
        changed = {row for row, a, b in zip(rows, versions, now, strict=True) if a != b}
        return not changed.isdisjoint(only)

    def _say(self, key: str, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._tell(text)


def _plain(grads: list[Tensor]) -> bool:
    """Ordinary tensors, not subclasses such as DTensor, whose norm is a collective operation."""
    return _PLAIN.issuperset(map(type, grads))


def _share_rows(a: Piece, b: Piece) -> bool:
    if a.rows is None or b.rows is None:
        return True
    return not {row for row in a.rows if row >= 0}.isdisjoint(b.rows)


def _rows_of(optimizer: torch.optim.Optimizer, table: LayerTable) -> list[int]:
    ids = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    return sorted(table.index[i] for i in ids if i in table.index)


def _grads(
    parameters: Sequence[Tensor], rows: Sequence[int] | None
) -> tuple[list[Tensor], Sequence[int] | None] | None:
    """The gradients that exist and the table rows they belong to; None when there is none."""
    grads = [grad for parameter in parameters if (grad := parameter.grad) is not None]
    if not grads:
        return None
    if len(grads) < len(parameters):
        rows = range(len(parameters)) if rows is None else rows
        rows = [row for row, parameter in zip(rows, parameters, strict=True) if parameter.grad is not None]
    return grads, rows
