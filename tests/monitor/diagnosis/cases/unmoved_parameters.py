"""Cases of unmoved-parameters: what the monitor found out exactly."""

from __future__ import annotations

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, Case, layer_norms, level, only, with_layers
from tests.monitor.diagnosis.controls import LAYERS


def told(about: str | None, kind: str = "warning") -> Signals:
    fields = {"text": "...", "layers": list(LAYERS[2:4])} | ({"about": about} if about else {})
    return Signals.from_arrays(
        {"train_loss": level()},
        events=[Mark(kind, AT + 1, fields)],
        layers={"grad_norm_preclip": (LAYERS, layer_norms())},
    )


FIRES = (
    Case("no gradient", lambda: told("missing_gradients"), "warning", words="have no gradient"),
    Case("in no optimizer", lambda: told("not_in_optimizer"), "warning", words=LAYERS[2]),
    Case("never changed", lambda: told("unmoved"), "warning", words="bit for bit"),
)

NEAR_MISSES = (
    Case("a warning of something else", lambda: told("mode")),
    Case("a note that looks alike", lambda: told("unmoved", kind="note")),
    Case("nothing told", lambda: with_layers(level(), layer_norms())),
)

ABSTAINS = (Case("no gradients per layer", lambda: only(train_loss=level()), words="per layer"),)
