"""Units of a tanh or sigmoid that sit at their bounds."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.lasting import measured, named, stretches
from monitor.diagnosis.rule import Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals


def saturated_units(signals: Signals, *, saturated: float = 0.5, rows: int = 2) -> Verdict:
    """More than half of the units of a tanh or sigmoid are at their bounds for most samples.

    Why it matters: the derivative there is nearly zero, so that nothing in front of them learns.

    Stays silent: on shares below ``saturated``; gates and outputs are often near a bound. Information where it was so
    from the first measurement on.

    Thresholds: ``saturated``, share of units whose mean distance from the middle is above 0.85 of the way to the bound,
    in ``rows`` measurements running.

    Source: Glorot and Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html; TheDeepChecker's constants.
    """
    matrix = signals.modules("saturated_units_share")
    assert matrix is not None  # the engine asks for it
    value = measured(matrix)
    found = stretches(matrix, value > saturated, rows)
    if not found:
        return None
    first = found[0]
    together = [s for s in found if s.onset <= first.onset + 20]
    share = float(np.nanmax(value[matrix.step >= first.onset, first.column]))
    before = value[matrix.step < first.onset, first.column]
    became = bool(np.isfinite(before).any())
    cause = (
        Cause("saturation", 0.7, supports=(f"the share rose above {100 * saturated:.0f} % at step {first.onset}",))
        if became
        else Cause("poor-initialisation", 0.6, supports=("they were saturated from the first measurement on",))
    )
    return Finding(
        summary=f"{100 * share:.0f} % of the units of {named([s.layer for s in together])} are saturated",
        onset_step=first.onset,
        first_step=first.told,
        last_step=max(s.last for s in together),
        severity=Severity.WARNING if became else Severity.INFO,
        layer=first.layer,
        evidence={"saturated_share": share, "layer_reason": "the first of them"},
        causes=(cause,),
        remedy=Remedy(
            "Normalise what goes into the layer, start from smaller weights, lower the learning rate, or use another "
            "activation.",
            {},
            "nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain('tanh'))",
        ),
    )


RULE = Rule(
    id="saturated-units",
    severity=Severity.WARNING,
    needs=("modules:saturated_units_share",),
    check=saturated_units,
    remedy="Normalise the layer's input and start from smaller weights.",
)
