"""What a training does when the rules have found something critical: ``monitor.on_critical``.

    warn         say so
    checkpoint   and save now, where keep_last deletes nothing, marked as saved after the finding
    stop         and leave at the end of the step, with such a checkpoint
    rewind       go back to the newest checkpoint before the incident and on from there with the remedy's configuration,
                 as a new attempt; when that cannot be, or has been tried ``monitor.rewinds`` times, stop

Each way back is an event (``rewind``), and so is what came of it (``rewind_outcome``): gone, moved or came back, as
``monitor/diagnosis/verdict.py`` has it.

Rank 0 alone is told of a finding; that there is one goes to all ranks with the flag that asks to stop, so that they
act at the same step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitor.diagnosis.rule import Severity
from monitor.diagnosis.verdict import Trouble
from monitor.errors import ConfigError
from trainer.commit import Checkpoint, newest_before
from trainer.config import TrainConfig, with_values
from trainer.place import Place

MOST_SAVED = 3
"""Checkpoints of one attempt that nothing deletes; a training in trouble all the time must not fill the disk."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """Where a training goes back to, and what is changed there."""

    checkpoint: Checkpoint
    trouble: Trouble
    """What is gone back before."""
    patch: Mapping[str, Any]
    config: TrainConfig
    """With the patch."""


class Critical:
    """The critical findings that the loop has not answered yet. Empty on all ranks but the first."""

    def __init__(self, config: TrainConfig, rewinds: int = 0, mended: Trouble | None = None) -> None:
        """``mended`` is what this attempt has gone back before."""
        self.mended = mended
        self._config = config
        self._rewinds = rewinds
        self._findings: list[Mapping[str, Any]] = []
        self._saved = 0

    def note(self, finding: Mapping[str, Any]) -> None:
        """The monitor has found something; called between two steps."""
        self._findings.append(finding)

    def change(self, config: TrainConfig) -> None:
        """The configuration was changed while training; a remedy is one of what it is now."""
        self._config = config

    @property
    def pending(self) -> bool:
        """Whether the loop has something to do at the end of this step."""
        action = self._config.monitor.on_critical
        return bool(self._findings) and action != "warn" and not (action == "checkpoint" and self._saved >= MOST_SAVED)

    def take(self) -> dict[str, Any] | None:
        """The first of the findings with the earliest onset among them, which are answered together; None without."""
        if not self._findings:
            return None
        self._saved += 1
        found, self._findings = self._findings, []
        return {**found[0], "incident_step": min(_onset(finding) for finding in found)}

    def way_back(self, finding: Mapping[str, Any], place: Place) -> Rewind | str:
        """Where to go back to; a string says why there is no way."""
        patch = finding["config_patch"]
        onset = finding["incident_step"]
        if self._rewinds < 1:
            return "it has been rewound as often as monitor.rewinds allows"
        if not patch:
            return "no configuration field is known to help, and the same steps would end the same"
        try:
            config = with_values(self._config, patch)
        except ConfigError as error:
            return f"the remedy is refused: {error}"
        if config == self._config:
            return "the configuration is already as the remedy wants it"
        found = newest_before(place.checkpoints, onset, attempt=place.attempt, start_step=place.start_step)
        if found is None:
            return f"there is no complete checkpoint of before step {onset}"
        return Rewind(found, trouble_of(finding), patch, config)


def trouble_of(finding: Mapping[str, Any]) -> Trouble:
    """The finding as what its return is recognised by."""
    kinds = frozenset({str(finding["id"])})
    return Trouble(_onset(finding), finding["first_step"], kinds, Severity(finding["severity"]), finding["layer"])


def said(finding: Mapping[str, Any]) -> str:
    """The finding in words, for a message and the exit record."""
    return f"critical finding {finding['id']} from step {finding['onset_step']}: {finding['text']}"


def _onset(finding: Mapping[str, Any]) -> int:
    return finding.get("incident_step", finding["onset_step"])
