"""Detection primitives: exact check (E), robust spike (Z), anchored CUSUM (C) and context gate (G).

Each is a pure function of arrays that looks only backwards: its answer for a prefix of the data is its answer for the
whole, cut at the same place. That is what makes a live alarm and a post hoc finding the same thing. Positions are row
numbers of the series, not steps; a rule turns them into steps.

Defaults come from the simulation in the design notes (diagnosis.md, 1.1 and appendix D) unless it says otherwise here.
"""

from __future__ import annotations

from monitor.diagnosis.primitives.drift import Drift as Drift
from monitor.diagnosis.primitives.drift import DriftDetector as DriftDetector
from monitor.diagnosis.primitives.drift import DriftSettings as DriftSettings
from monitor.diagnosis.primitives.drift import DriftTrack as DriftTrack
from monitor.diagnosis.primitives.drift import anchored_cusum as anchored_cusum
from monitor.diagnosis.primitives.drift import turning_row as turning_row
from monitor.diagnosis.primitives.exact import episodes as episodes
from monitor.diagnosis.primitives.exact import nonfinite_rows as nonfinite_rows
from monitor.diagnosis.primitives.exact import word_for as word_for
from monitor.diagnosis.primitives.gate import jumps_to_new_height as jumps_to_new_height
from monitor.diagnosis.primitives.gate import restarts as restarts
from monitor.diagnosis.primitives.gate import rows_at as rows_at
from monitor.diagnosis.primitives.gate import steady_then_changed as steady_then_changed
from monitor.diagnosis.primitives.gate import warmup_rows as warmup_rows
from monitor.diagnosis.primitives.medians import MAD_TO_SD as MAD_TO_SD
from monitor.diagnosis.primitives.medians import expanding_median as expanding_median
from monitor.diagnosis.primitives.spike import Spike as Spike
from monitor.diagnosis.primitives.spike import SpikeDetector as SpikeDetector
from monitor.diagnosis.primitives.spike import SpikeSettings as SpikeSettings
from monitor.diagnosis.primitives.spike import SpikeTrack as SpikeTrack
from monitor.diagnosis.primitives.spike import robust_spikes as robust_spikes
from monitor.diagnosis.primitives.trend import level_around as level_around
from monitor.diagnosis.primitives.trend import rises as rises
