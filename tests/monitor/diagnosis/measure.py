"""Figures of the rules on drawn curves: ``python -m tests.monitor.diagnosis.measure [--seeds 5000:5010] [--speed]``.

False alarms on the healthy controls, what is found of the mishaps, and (with --speed) the time for a long run. Drawn
curves rank rules against each other; they are no claim about real trainings.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import numpy as np

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.rule import Finding
from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.controls import CONTROLS
from tests.monitor.diagnosis.mishaps import MISHAPS, Mishap

STEPS = 600


def false_alarms(seeds: range) -> None:
    events = runs = 0
    for control in CONTROLS:
        found = [diagnose(control(np.random.default_rng(seed), STEPS)).at_least("warning") for seed in seeds]
        events += sum(map(len, found))
        runs += sum(map(bool, found))
        print(f"  {control.__name__:22s} {sum(map(len, found)):3d} events in {sum(map(bool, found))}/{len(seeds)} runs")
    total = len(CONTROLS) * len(seeds)
    print(f"false alarms: {1000 * events / (total * STEPS):.3f} per 1 000 steps; {runs} of {total} runs\n")


def found_of(truth: Mishap) -> list[Finding]:
    """Findings of warning or worse inside the mishap's window, those of its own rule first."""
    inside = range(truth.onset - 2, truth.onset + truth.within + 1)
    findings = [f for f in diagnose(truth.signals).at_least("warning") if f.first_step in inside]
    return sorted(findings, key=lambda f: f.id != truth.rule)


def recall(seeds: range) -> None:
    print("  mishap                      found  alarm after  onset error  layer   cause first / in first three")
    for make in MISHAPS:
        rngs = [np.random.default_rng(seed) for seed in seeds]
        truths = [make(rng, STEPS, int(rng.integers(150, 300))) for rng in rngs]
        pairs = [(truth, found[0]) for truth in truths if (found := found_of(truth))]
        if not pairs:
            print(f"  {truths[0].name:26s} 0/{len(truths)}")
            continue
        after = statistics.median(f.first_step - t.onset for t, f in pairs)
        error = statistics.median(abs(f.onset_step - t.onset) for t, f in pairs)
        layer = sum(t.layer in (None, f.layer) for t, f in pairs) if truths[0].layer else "-"
        first = sum(f.causes[0].id in t.causes for t, f in pairs) if truths[0].causes else "-"
        third = sum(any(c.id in t.causes for c in f.causes[:3]) for t, f in pairs) if truths[0].causes else "-"
        head = f"  {truths[0].name:26s} {len(pairs):2d}/{len(truths)}"
        print(f"{head}  {after:10g}  {error:11g}  {layer!s:>5}   {first} / {third}")


def speed(steps: int = 100_000, layers: int = 200) -> None:
    rng = np.random.default_rng(0)
    loss = (2 + 3 * np.exp(-np.arange(steps) / 5000)) * np.exp(rng.normal(0, 0.03, steps))
    norm = 0.5 * np.exp(rng.normal(0, 0.15, steps))
    value = (norm[:, None] * np.exp(rng.normal(0, 0.2, (steps, layers)))).astype(np.float32)
    loss[steps // 2] *= 1.6
    value[steps // 3, layers // 2] *= 80
    series = {"train_loss": loss, "grad_norm_preclip": norm, "lr": np.full(steps, 1e-3)}
    names = [f"layer{i}" for i in range(layers)]
    signals = Signals.from_arrays(series, layers={"grad_norm_preclip": (names, value)})
    start = time.process_time()
    findings = diagnose(signals).findings
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{steps:,} steps x {layers} layers: {seconds:.1f} s of one core, {peak:,.0f} MiB, {len(findings)} findings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="5000:5010", help="FIRST:LAST, last excluded")
    parser.add_argument("--speed", action="store_true", help="time a long run instead")
    arguments = parser.parse_args()
    if arguments.speed:
        speed()
        return
    seeds = range(*map(int, arguments.seeds.split(":")))
    false_alarms(seeds)
    recall(seeds)


if __name__ == "__main__":
    main()
