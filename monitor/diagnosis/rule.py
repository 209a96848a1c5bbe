"""What a rule is, and the three answers it can give: a finding, silence, or "cannot tell"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monitor.diagnosis.view import Signals


class Severity(StrEnum):
    """How much a finding should worry the reader."""

    INFO = "info"
    """Worth knowing; a healthy run may show it."""
    WARNING = "warning"
    """Something left its healthy range; look at it before spending more compute."""
    CRITICAL = "critical"
    """The training is lost or about to be lost from this step on."""

    @property
    def rank(self) -> int:
        """0 for info, 1 for warning, 2 for critical."""
        return list(Severity).index(self)

    def at_least(self, other: Severity | str) -> bool:
        """Whether this is as bad as ``other`` or worse."""
        return self.rank >= Severity(other).rank


@dataclass(frozen=True, slots=True)
class Cause:
    """One explanation of a finding, weighed."""

    id: str
    confidence: float
    """In [0, 1]. A share of belief between the listed causes and "unknown". The fault benchmark says how often it was
    right: more often than it claims on faults of the catalogue, seldom on mistakes that no rule knows."""
    supports: tuple[str, ...] = ()
    """What speaks for it; ``for`` in the report's JSON."""
    against: tuple[str, ...] = ()
    """What speaks against it, and which measurement is missing; a missing one is named but never counted."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to change."""

    text: str
    config_patch: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys of ``trainer/config.py`` and their new values; empty when no key of ours expresses the change."""
    snippet: str = ""
    """The same change for a loop of the user's own, in PyTorch."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a rule saw. A rule fills what it measured; the engine adds id, causes and remedy."""

    summary: str
    onset_step: int
    """First step at which the event left its own baseline; earlier than ``first_step`` when evidence had to add up."""
    first_step: int
    """Step whose row made the rule speak: the step at which a live alarm is raised."""
    last_step: int
    """Last step at which the event was still visible."""
    severity: Severity | None = None
    """None takes the rule's own severity."""
    layer: str | None = None
    """The parameter tensor that moved first, when per-layer signals can tell."""
    rank: int | None = None
    """The process it happened in, when one rank alone shows it."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Numbers behind the summary; strings, numbers, booleans and lists of them."""
    id: str = ""
    causes: tuple[Cause, ...] = ()
    remedy: Remedy | None = None


@dataclass(frozen=True, slots=True)
class Abstained:
    """The rule cannot tell, which is not the same as healthy."""

    reason: str
    needs: tuple[str, ...] = ()
    """Signals that would have to be recorded; empty when they are there but too short."""
    id: str = ""


Verdict = Finding | Sequence[Finding] | Abstained | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of trouble and the pure function that looks for it."""

    id: str
    severity: Severity
    """Severity of its findings unless they say otherwise."""
    needs: tuple[str, ...]
    """Signals without which the rule abstains; ``"a|b"`` is satisfied by either. ``"layers:adam_rms"`` and
    ``"modules:dead_units_share"`` are statistics of layers and of modules."""
    check: Callable[[Signals], Verdict]
    remedy: str
    """One sentence, used when no cause suggests something more precise."""
    essential: bool = False
    """A run on which an essential rule abstains is not called healthy."""

    def missing(self, signals: Signals) -> tuple[str, ...]:
        """The needs that ``signals`` does not satisfy."""
        return tuple(need for need in self.needs if not any(_is_there(name, signals) for name in need.split("|")))

    @property
    def explanation(self) -> str:
        """The rule's docstring: what it sees, why it matters, when it stays silent, thresholds, source."""
        return self.check.__doc__ or ""


def _is_there(need: str, signals: Signals) -> bool:
    stream, _, stat = need.rpartition(":")
    if stream == "layers":
        return signals.layers(stat) is not None
    return signals.modules(stat) is not None if stream == "modules" else need in signals
