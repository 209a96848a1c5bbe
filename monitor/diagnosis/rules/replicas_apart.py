"""Ranks that should hold the same parameters do not."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.lasting import named
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals


def replicas_apart(signals: Signals) -> Verdict:
    """The parameters of one rank differ from those of the others, bit for bit.

    Why it matters: from there on each rank trains a model of its own and the averaged gradient is that of none; the
    loss may look normal for thousands of steps.

    Stays silent: with one process; on sharded parameters, which differ by design and have no common checksum.

    Thresholds: none; checksums of bits, every 100 steps.

    Source: design notes F34; BLOOM chronicles (layer norms apart between tensor-parallel ranks).
    """
    if len(signals.ranks) < 2:
        return None
    sums = {rank: signals.of_rank(rank)["parameter_checksum"] for rank in signals.ranks}
    sums = {rank: series for rank, series in sums.items() if len(series)}
    if len(sums) < 2:
        return Abstained("fewer than two ranks recorded a checksum of their parameters", ("parameter_checksum",))
    steps = np.unique(np.concatenate([series.step for series in sums.values()]))
    agreed: int | None = None
    for step in steps.tolist():
        here = {rank: float(v[0]) for rank, series in sums.items() if len(v := series.between(step, step).value)}
        if len(here) < 2:
            continue
        if len(set(here.values())) > 1:
            return _finding(signals, step, agreed, here)
        agreed = step
    return None


def _finding(signals: Signals, step: int, agreed: int | None, here: dict[int, float]) -> Finding:
    held = list(here.values())
    most = max(set(held), key=held.count)
    odd = [rank for rank, value in here.items() if value != most] if 2 * held.count(most) > len(held) else []
    layers = _layers(signals, step, list(here))
    since = f"between steps {agreed} and {step}" if agreed is not None else f"at step {step} or before"
    who = f"rank {', '.join(map(str, odd))} differs" if odd else f"ranks {', '.join(map(str, here))} differ"
    return Finding(
        summary=f"The ranks' parameters came apart {since}: {who}" + (f", first in {named(layers)}" if layers else ""),
        onset_step=(agreed or 0) + 1,
        first_step=step,
        last_step=signals.last_step,
        severity=Severity.CRITICAL,
        layer=layers[0] if layers else None,
        rank=odd[0] if len(odd) == 1 else None,
        evidence={"ranks": odd, "layers": layers[:20], "last_equal_step": agreed},
        causes=(Cause("replica-desync", 0.8, supports=("the checksums of the parameters' bits differ",)),),
        remedy=Remedy(
            "Go through the DistributedDataParallel wrapper in every forward pass, let all ranks take the same "
            "branches, "
            "load the same checkpoint on each (or broadcast it), and go back to a checkpoint from before.",
            {},
            "for p in model.parameters():\n    torch.distributed.broadcast(p.data, src=0)",
        ),
    )


def _layers(signals: Signals, step: int, ranks: list[int]) -> list[str]:
    """The tensors whose own checksums differ at ``step``."""
    first: dict[str, float] = {}
    found: dict[str, None] = {}
    for rank in ranks:
        matrix = signals.of_rank(rank).layers("parameter_checksum")
        row = np.flatnonzero(matrix.step == step) if matrix is not None else np.zeros(0, int)
        if matrix is None or len(row) == 0:
            continue
        for name, value, there in zip(matrix.names, matrix.value[row[0]], matrix.present[row[0]], strict=True):
            if there and first.setdefault(name, float(value)) != float(value):
                found[name] = None
    return list(found)


RULE = Rule(
    id="replicas-apart",
    severity=Severity.CRITICAL,
    needs=(),
    check=replicas_apart,
    remedy="Broadcast the parameters of one rank and find what let them differ.",
)
