"""Ends a training whose held-out loss no longer falls."""

from __future__ import annotations

import math
from typing import Any

from trainer.config import EarlyStoppingConfig


class EarlyStopping:
    """Counts evaluations without progress; progress is a held-out loss lower than the last progress by ``min_delta``.

    A NaN is no progress.
    """

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self._config = config
        self._reference = math.inf
        self._waited = 0

    def evaluated(self, val_loss: float) -> str | None:
        """Take note of a held-out loss; why training is to end now, None when it goes on."""
        config = self._config
        if val_loss < self._reference - config.min_delta:
            self._reference, self._waited = val_loss, 0
        else:
            self._waited += 1
        if config.patience is None or self._waited < config.patience:
            return None
        by = f" by more than {config.min_delta:g}" if config.min_delta else ""
        return f"early stopping: the held-out loss has not fallen{by} in {self._waited} evaluations"

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self._reference, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._reference, self._waited = state["reference"], state["waited"]
