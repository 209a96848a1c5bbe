"""The aligned stack of the Run page: which charts a run has, from the signals it recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from app.charts.describe import Chart, Mark, Trace
from app.charts.measures import choices, chosen, is_sparse, layer_curve, matrix_of
from app.charts.profile import profile_chart, telling_row
from app.incident import incident_key, onset_of
from monitor.runfile.reader import Run
from monitor.runfile.stability import DERIVED
from monitor.runfile.zoom import drawn, is_derived, superseded
from monitor.signals import CATALOGUE, TIME_PARTS, Signal, spec_of, unit_of

OWN_VALUES_SHOWN = 200
"""Most values of a user's own that get a chart each (our judgement); a search reaches those beyond."""
OWN_VALUES_OPEN = 12
"""Up to so many, the sections of a user's own values are unfolded to begin with (our judgement)."""

MARKED_EVENTS = {
    "resume": "resumed",
    "fidelity": "after the resume",
    "checkpoint": "checkpoint",
    "checkpoint_failed": "checkpoint not written",
    "eval": "evaluation",
    "lr_change": "learning rate changed",
    "optimizer_change": "optimizer changed",
    "data_stage": "data stage",
    "stop": "stopped",
    "rewind": "gone back",
    "rewind_outcome": "what came of going back",
    "fix": "fix tried",
    "fix_outcome": "what came of the fix",
    "alert": "alert",
    "finding": "found while training",
    "early_stop": "stopped early",
    "note": "note",
    "warning": "warning",
    "request": "request",
    "nonfinite": "not finite",
    "cadence": "cadence changed",
    "coverage": "layers measured",
    "thinning": "fewer steps kept",
    "throttle": "GPU clocks",
    "ecc": "GPU memory error",
}
"""Event kinds that are marks, and the words for them."""


def story_charts(
    run: Run,
    *,
    stat: str | None = None,
    layer: str | None = None,
    at: tuple[int, int] | None = None,
    attempt: int | None = None,
    own: Callable[[str], object] | None = None,
) -> list[Chart]:
    """The charts of ``run`` in reading order; a chart whose signals were never recorded is left out.

    Args:
        stat: which statistic of layers or modules the heatmap shows, by the key of its ``Choice``; the first there is
            for None and for an unknown one.
        layer: a layer or module to draw a curve for, beneath the heatmap.
        at: first and last step of a stretch, in which the step of the profile over depth is sought that is drawn
            beneath the curve (``profile.telling_row``).
        attempt: the attempt that the heatmap is of; None: the run as it stands.
        own: says of a name of a user's own whether it gets a chart; None: all do.
    """
    names = set(run.names)
    names |= {name for name, (source, _) in DERIVED.items() if source in names}
    charts = [
        Chart(
            "events",
            "Events",
            kind="events",
            height=58,
            help="What happened, by step: incidents, checkpoints, evaluations, resumes.",
        ),
        _loss(run, names),
        _gradient_norm(run, names),
        _of_signals(run, names, "update_ratio"),
        *_heat(run, stat, layer, at, attempt),
        _learning_rate(run, names),
        *_loss_scale(run, names),
        _of_signals(run, names, "grad_cosine"),
        _of_signals(run, names, "log_z"),
        _throughput(run, names),
        _parts(run, names),
        *_own_values(run, names, own),
        *(_of_signals(run, names, chart_id) for chart_id, look in _SIGNAL_CHARTS.items() if look.get("section")),
    ]
    return [chart for chart in charts if chart is not None]


def _traces(run: Run, wanted: list[tuple[str, str, int, str]], names: set[str]) -> tuple[Trace, ...]:
    """``(signal, label, colour, role)`` into traces, the superseded pieces of each before it: they lie beneath."""
    traces: list[Trace] = []
    for name, label, colour, role in wanted:
        if name not in names:
            continue
        if role != "limit":
            traces += [
                Trace(f"{label}, superseded", piece, colour, "faded", attempt=attempt)
                for attempt, piece in superseded(run, name)
            ]
        traces.append(Trace(label, drawn(run, name), colour, role))
    return tuple(traces)


def _loss(run: Run, names: set[str]) -> Chart | None:
    wanted = [
        ("train_loss", "train", 0, "line"),
        ("val_loss", "validation", 1, "points"),
        ("val_loss_ema", "validation, mean weights", 2, "points"),
    ]
    traces = _traces(run, wanted, names)
    if not traces:
        return None
    return Chart("loss", "Loss", unit_of("train_loss"), traces=traces, height=230, help=CATALOGUE["train_loss"].meaning)


def _gradient_norm(run: Run, names: set[str]) -> Chart | None:
    wanted = [
        ("grad_norm_preclip", "before clipping", 0, "line"),
        ("grad_norm_postclip", "after clipping", 2, "line"),
        ("clip_max_norm", "clip limit", 1, "limit"),
    ]
    traces = _traces(run, wanted, names)
    if not traces:
        return None
    meaning = "L2 norm of the whole gradient, unscaled, reduced over ranks, per optimizer step."
    return Chart("grad_norm", "Gradient norm", traces=traces, log=True, height=190, help=meaning)


def _learning_rate(run: Run, names: set[str]) -> Chart | None:
    groups = sorted((name for name in names if name == "lr" or re.fullmatch(r"lr/\d+", name)), key=_group_of)
    wanted = [
        (name, "lr" if len(groups) == 1 else f"group {_group_of(name)}", i % 10, "line")
        for i, name in enumerate(groups[:10])
    ]
    traces = _traces(run, wanted, names)
    if not traces:
        return None
    return Chart("lr", "Learning rate", traces=traces, zero=True, height=120, help=CATALOGUE["lr"].meaning)


def _group_of(name: str) -> int:
    return int(name.split("/", 1)[1]) if "/" in name else 0


def _loss_scale(run: Run, names: set[str]) -> list[Chart]:
    charts = []
    if "loss_scale" in names:
        traces = _traces(run, [("loss_scale", "loss scale", 0, "line")], names)
        charts.append(
            Chart("loss_scale", "Loss scale", traces=traces, log=True, height=110, help=CATALOGUE["loss_scale"].meaning)
        )
    if "skipped_steps" in names and run.series("skipped_steps").value.any():
        traces = _traces(run, [("skipped_steps", "skipped", 1, "line")], names)
        charts.append(
            Chart(
                "skipped_steps",
                "Skipped steps",
                "steps",
                traces=traces,
                zero=True,
                height=110,
                help=CATALOGUE["skipped_steps"].meaning,
            )
        )
    return charts


_SIGNAL_CHARTS: dict[str, dict[str, Any]] = {
    # chart: what it is called, its signals with their labels, and how it is drawn
    "update_ratio": {
        "title": "Update-to-weight ratio", "log": True, "height": 110,
        "signals": (("update_to_weight_ratio", "of all weights"),),
    },
    "grad_cosine": {
        "title": "Direction of the gradient against the step before", "zero": True, "height": 110,
        "signals": (("grad_cosine", "cosine"),),
    },
    "log_z": {
        "title": "Log Z of the output", "height": 120,
        "signals": (("log_z_mean", "mean log Z"), ("log_classes", "log of the number of classes")),
    },
    "loss_deviation": {
        "title": "Noise of the loss", "log": True, "height": 110, "section": "Stability of the loss",
        "signals": (("loss_deviation", "of the logarithm"),),
    },
    "loss_spike_share": {
        "title": "Share of spikes in the last 128 steps", "zero": True, "height": 110,
        "section": "Stability of the loss", "signals": (("loss_spike_share", "share"),),
    },
    "val_accuracy": {
        "title": "Share of held-out targets that are right", "zero": True, "height": 110, "section": "Held-out data",
        "signals": (("val_accuracy", "accuracy"),),
    },
    "val_bits_per_byte": {
        "title": "Bits per byte of held-out text", "height": 110, "section": "Held-out data",
        "signals": (("val_bits_per_byte", "bits per byte"),),
    },
    "val_perplexity": {
        "title": "Perplexity of held-out text", "log": True, "height": 110, "section": "Held-out data",
        "signals": (("val_perplexity", "perplexity"),),
    },
    "sizes": {
        "title": "Norm of all weights and of their change", "log": True, "height": 130, "section": "Weights and output",
        "signals": (("weight_norm", "weights"), ("update_norm", "change in one step")),
    },
    "update_cosine": {
        "title": "Direction of the update against descent", "zero": True, "height": 110,
        "section": "Weights and output", "signals": (("update_cosine", "cosine"),),
    },
    "grad_abs_max": {
        "title": "Largest gradient entry", "log": True, "height": 110, "section": "Weights and output",
        "signals": (("grad_abs_max", "of all layers"),),
    },
    "noise_scale": {
        "title": "Gradient noise scale", "log": True, "height": 110, "section": "Weights and output",
        "signals": (("gradient_noise_scale", "batches of a step"),),
    },
    "output_softmax_share": {
        "title": "Share of outputs that are probabilities already", "zero": True, "height": 110,
        "section": "Weights and output",
        "signals": (("output_softmax_share", "of a sample"), ("output_batch_softmax_share", "over the batch")),
    },
    "output_values": {
        "title": "Values of the output", "height": 130, "section": "Weights and output",
        "signals": (
            ("output_mean", "mean"), ("output_spread", "spread over samples"), ("output_min", "smallest"),
            ("output_max", "largest"),
        ),
    },
    "input_values": {
        "title": "Values of the input", "height": 130, "section": "Input",
        "signals": (("input_mean", "mean"), ("input_std", "standard deviation"), ("input_absmax", "largest magnitude")),
    },
    "input_unique_share": {
        "title": "Share of input values that differ from each other", "zero": True, "height": 110, "section": "Input",
        "signals": (("input_unique_share", "share"),),
    },
    "device_time": {
        "title": "Device time", "zero": True, "height": 130, "section": "Speed",
        "signals": (
            ("forward_device_s", "forward"), ("backward_device_s", "backward"), ("optimizer_device_s", "optimizer"),
        ),
    },
    "samples_per_s": {
        "title": "Samples per second", "zero": True, "height": 110, "section": "Speed",
        "signals": (("samples_per_s", "samples/s"),),
    },
    "tflops": {
        "title": "Operations per second", "zero": True, "height": 110, "section": "Speed",
        "signals": (("tflops_per_s", "TFLOP/s"),),
    },
    "mfu": {
        "title": "Share of the device's peak", "zero": True, "height": 110, "section": "Speed",
        "signals": (("mfu", "MFU"),),
    },
}  # fmt: skip
"""Charts of signals that the monitor takes by itself beside the story's own; those with a section are folded away."""
_BOUNDS = {"log_classes"}
"""Signals that are what another is held against: drawn as a limit."""


def _of_signals(run: Run, names: set[str], chart_id: str) -> Chart | None:
    look = _SIGNAL_CHARTS[chart_id]
    there = [(name, label) for name, label in look["signals"] if name in names]
    wanted = []
    for index, (name, label) in enumerate(there):
        sparse = not is_derived(run, name) and is_sparse(drawn(run, name))  # looking at a derived one makes it
        role = "limit" if name in _BOUNDS else "points" if sparse else "line"
        wanted.append((name, label, index, role))
    traces = _traces(run, wanted, names)
    if not traces:
        return None
    return Chart(
        chart_id,
        look["title"],
        unit_of(there[0][0]),
        traces=traces,
        log=look.get("log", False),
        zero=look.get("zero", False),
        height=look["height"],
        help=" ".join(CATALOGUE[name].meaning for name, _ in there[:-1]) + " " + CATALOGUE[there[-1][0]].explained,
        section=look.get("section", ""),
    )


def _throughput(run: Run, names: set[str]) -> Chart | None:
    traces = _traces(run, [("tokens_per_s", "tokens/s", 2, "line")], names)
    if not traces:
        return None
    return Chart(
        "throughput",
        "Throughput",
        "tokens/s",
        traces=traces,
        zero=True,
        height=130,
        help=CATALOGUE["tokens_per_s"].explained,
    )


PART_LABELS = {
    "data_wait_s": "data wait",
    "forward_s": "forward",
    "backward_s": "backward",
    "optimizer_s": "optimizer",
    "monitor_s": "monitor",
    "eval_s": "evaluation",
    "checkpoint_s": "checkpoint",
    "other_s": "other",
}
_PART_COLOURS = dict(zip(TIME_PARTS, (4, 0, 5, 2, 3, 1, 8, 9), strict=True))


def _parts(run: Run, names: set[str]) -> Chart | None:
    if "step_time_s" not in names:
        return None
    traces = [Trace("whole step", drawn(run, "step_time_s"), 9, "line")]
    traces += [
        Trace(PART_LABELS[part], drawn(run, part), _PART_COLOURS[part], "part") for part in TIME_PARTS if part in names
    ]
    meaning = (
        "Where a step's wall time goes. Areas: means over each pixel's steps; line: the whole step, extremes kept."
    )
    return Chart("step_time", "Step time", "s", kind="parts", traces=tuple(traces), zero=True, height=170, help=meaning)


HEAT_HELP = "{keep} of each cell, {scale}, input on top. Click a cell for its curve."
_KEPT = {"largest": "Largest value", "smallest": "Smallest value", "farthest": "Value farthest from zero"}
_SCALES = {"log": "logarithmic", "linear": "linear from zero", "signed": "linear, the same on both sides of zero"}
THINNED_HELP = " Not every step of this long run is kept: a point stands for {keep} since the one before it."


def _heat(
    run: Run, stat: str | None, layer: str | None, at: tuple[int, int] | None, attempt: int | None
) -> list[Chart]:
    choice = chosen(run, stat)
    if choice is None:
        return []
    measure, matrix = choice.measure, matrix_of(run, choice, attempt)
    unit = choice.spec.unit if choice.spec else "1"
    explained = [choice.explained, HEAT_HELP.format(keep=_KEPT[measure.keep], scale=_SCALES[measure.scale])]
    if matrix.since is not None:
        explained.append(THINNED_HELP.format(keep=f"the {_KEPT[measure.keep].lower()}"))
    charts = [
        Chart(
            "heat",
            f"{measure.title}, {'module' if choice.stream == 'modules' else 'layer'} by step",
            unit,
            kind="heat",
            log=measure.scale == "log",
            height=min(460, max(150, 40 + 13 * len(matrix.names))),
            help=" ".join(part for part in explained if part),
            matrix=lambda: matrix,
            scale=measure.scale,
            keep=measure.keep,
            limit=measure.limit,
        )
    ]
    curve = layer_curve(matrix, layer) if layer else None
    if layer and curve is not None:
        charts.append(
            Chart(
                "layer",
                f"{measure.title} of {layer}",
                unit,
                traces=(Trace(layer, curve, 5, "points" if is_sparse(curve) else "line"),),
                log=measure.scale == "log",
                zero=measure.scale != "log",
                height=130,
            )
        )
    if at is not None and (profile := profile_chart(choice, matrix, telling_row(matrix, measure.keep, at, layer))):
        charts.append(profile)
    return charts


_SHOWN_ELSEWHERE = {
    *(
        "train_loss",
        "val_loss",
        "val_loss_ema",
        "grad_norm_preclip",
        "grad_norm_postclip",
        "clip_max_norm",
        "clip_coef",
        "loss_scale",
        "skipped_steps",
    ),
    *(
        "tokens",
        "tokens_per_s",
        "batch_id",
        "step_time_s",
        *TIME_PARTS,
        "landscape_loss_mean",
        "landscape_loss_variance",
        "lr",
        "samples",
        *("input_hash", "parameter_checksum"),  # identities, as batch_id
    ),
    *(name for look in _SIGNAL_CHARTS.values() for name, _ in look["signals"]),
}


def own_names(names: Iterable[str]) -> list[str]:
    """The names that no chart of ours shows: those without a slash, then section by section."""
    own = [name for name in names if name not in _SHOWN_ELSEWHERE and not re.fullmatch(r"lr/\d+", name)]
    return sorted(own, key=lambda name: (_section_of(name), name))


def _section_of(name: str) -> str:
    """``train/`` for ``train/accuracy``; nothing for a name without a slash."""
    head, slash, _ = name.partition("/")
    return f"{head}/" if slash and head else ""


def _own_values(run: Run, names: set[str], wanted: Callable[[str], object] | None) -> list[Chart]:
    own = [name for name in own_names(names) if wanted is None or wanted(name)]
    charts = []
    for index, name in enumerate(own[:OWN_VALUES_SHOWN]):
        sparse = len(drawn(run, name)) < 200
        spec = spec_of(name)
        traces = _traces(run, [(name, name, index % 10, "points" if sparse else "line")], names)
        charts.append(
            Chart(
                f"own.{name.encode().hex()}",
                name,
                unit_of(name),
                traces=traces,
                height=130,
                help=spec.meaning if spec else "",
                section=_section_of(name),
                open=len(own) <= OWN_VALUES_OPEN,
            )
        )
    return charts


# ---- landscape and system -----------------------------------------------------------------------------------------


def landscape_charts(run: Run) -> list[Chart]:
    """Sharpness against the limit of stability, and mean and variance of the loss under perturbation, over steps."""
    names = set(run.names)
    charts = []
    if "sharpness" in names:
        wanted = [
            ("sharpness", "sharpness", 0, "points"),
            ("sharpness_limit", "limit of stability", 1, "limit"),
        ]
        charts.append(
            Chart(
                "sharpness", "Sharpness against the limit of stability", "",
                traces=_traces(run, wanted, names), log=True, height=230, help=CATALOGUE["sharpness"].meaning,
            )
        )  # fmt: skip
    if "landscape_loss_mean" in names:
        wanted = [
            ("landscape_loss_mean", "mean over perturbations", 3, "points"),
            ("train_loss", "train loss", 0, "line"),
        ]
        charts.append(
            Chart(
                "landscape_mean", "Loss around the weights", "nats", traces=_traces(run, wanted, names), height=230,
                help=CATALOGUE["landscape_loss_mean"].meaning,
            )
        )  # fmt: skip
    if "landscape_loss_variance" in names:
        wanted = [("landscape_loss_variance", "variance over perturbations", 3, "points")]
        charts.append(
            Chart(
                "landscape_variance", "Variance of the loss around the weights", "nats²",
                traces=_traces(run, wanted, names), log=True, height=170,
                help=CATALOGUE["landscape_loss_variance"].meaning,
            )
        )  # fmt: skip
    return charts


_SYSTEM_CHARTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("cpu", "CPU use", "%", ("cpu_pct",)),
    ("memory", "Process memory", "GiB", ("rss_gib", "rss_private_gib")),
    ("ram", "Memory in use on the host", "%", ("ram_used_pct",)),
    ("gpu_util", "GPU use", "%", ("gpu_util_pct",)),
    ("gpu_memory", "GPU memory", "GiB",
     ("gpu_memory_allocated_gib", "gpu_memory_reserved_gib", "gpu_memory_peak_gib", "gpu_memory_used_gib")),
    ("gpu_temperature", "GPU temperature", "°C", ("gpu_temperature_c",)),
    ("gpu_power", "GPU power", "W", ("gpu_power_w",)),
    ("gpu_clocks", "GPU clocks", "MHz", ("gpu_sm_clock_mhz", "gpu_memory_clock_mhz")),
    ("gpu_ecc", "Memory errors of the GPU", "errors", ("gpu_ecc_corrected", "gpu_ecc_uncorrected")),
)  # fmt: skip
_SYSTEM_LABELS = {
    "rss_gib": "resident",
    "rss_private_gib": "without mapped files",
    "gpu_memory_allocated_gib": "allocated",
    "gpu_memory_reserved_gib": "reserved",
    "gpu_memory_peak_gib": "peak",
    "gpu_memory_used_gib": "in use by all processes",
    "gpu_sm_clock_mhz": "multiprocessors",
    "gpu_memory_clock_mhz": "memory",
    "gpu_ecc_corrected": "corrected",
    "gpu_ecc_uncorrected": "not corrected",
}


RECORDED = ("grad_norm_preclip", "update_to_weight_ratio", "modules.activation_absmax")
"""Statistics that tell best where trouble began: what left a layer, what changed it, what it put out."""


def recorder_charts(run: Run) -> list[Chart]:
    """The layers round an incident, by heatmaps: the flight recorder keeps every step of such a window."""
    there = {choice.key for choice in choices(run)}
    return [
        replace(chart, id=f"heat.{key}", height=min(260, chart.height))
        for key in RECORDED
        if key in there
        for chart in _heat(run, key, None, None, None)
    ]


def speed_charts(run: Run) -> list[Chart]:
    """Where the time of the steps went and what was done in it, over steps."""
    names = set(run.names)
    charts = [
        _parts(run, names),
        _throughput(run, names),
        *(_of_signals(run, names, chart_id) for chart_id in ("samples_per_s", "mfu", "tflops", "device_time")),
    ]
    return [replace(chart, section="") for chart in charts if chart is not None]


def checkpoint_charts(run: Run) -> list[Chart]:
    """The curves that tell which checkpoint is worth going back to."""
    names = set(run.names)
    lane = Chart("events", "Checkpoints, resumes and rewinds", kind="events", height=58)
    return [lane, *(chart for chart in (_loss(run, names), _gradient_norm(run, names)) if chart is not None)]


def system_charts(run: Run, rank: int = 0) -> list[Chart]:
    """What the machine did, as one rank saw it, over seconds since the first sample."""
    table = run.system(rank=rank)
    if not len(table):
        return []
    seconds = table["time"].to_numpy(dtype=float)
    step = ((seconds - seconds[0]) * 1000).round().astype("int64")
    charts = []
    for chart_id, title, unit, bases in _SYSTEM_CHARTS:
        traces: list[Trace] = []
        for base in bases:
            for column in [name for name in table.columns if name == base or name.startswith(f"{base}/")]:
                value = table[column]
                there = value.notna().to_numpy()
                if there.any():
                    device = f" of device {column.split('/', 1)[1]}" if "/" in column else ""
                    label = _SYSTEM_LABELS.get(base, title) + device
                    traces.append(
                        Trace(
                            label,
                            Signal(column, step[there], value.to_numpy(dtype=float)[there], unit),
                            len(traces) % 10,
                        )
                    )
        if traces:
            meaning = CATALOGUE[bases[0]].meaning if len(bases) == 1 else ""
            charts.append(
                Chart(
                    chart_id, title, unit, traces=tuple(traces), zero=True, height=150, help=meaning,
                    x_title="seconds since the first sample", x_per_unit=1000.0,
                )
            )  # fmt: skip
    return charts


# ---- marks --------------------------------------------------------------------------------------------------------


def story_marks(run: Run, incidents: list[dict[str, Any]]) -> list[Mark]:
    """What happened along the run: incidents, resumes, checkpoints, evaluations and the other events, by step."""
    marks = [_incident_mark(incident) for incident in incidents if onset_of(incident) is not None]
    resumed_at = set()
    for attempt in run.attempts:
        if attempt.number > 0:
            marks.append(
                Mark(attempt.resume_step, "resume", f"attempt {attempt.number} goes on from step {attempt.resume_step}")
            )
            resumed_at.add(attempt.resume_step)
        if attempt.exit and attempt.exit.get("outcome") == "crashed" and isinstance(attempt.exit.get("step"), int):
            reason = str(attempt.exit.get("reason") or "no reason recorded")
            marks.append(Mark(attempt.exit["step"], "crash", f"attempt {attempt.number} crashed: {reason}", "critical"))
    for event in run.events():
        if (
            event.step is None
            or event.kind not in MARKED_EVENTS
            or (event.kind == "resume" and event.step in resumed_at)
            or (event.kind == "throttle" and event.fields.get("harmful") is not True)
            or (event.kind == "finding" and _is_within(event.step, incidents))
        ):
            continue
        severity = "critical" if event.kind in ("nonfinite", "ecc") else "info"
        if _went_wrong(event.fields):
            severity = "warning"
        if event.kind == "fidelity" and event.fields.get("verdict") == "discontinuous":
            severity = "warning"
        if event.kind == "finding":
            severity = "critical" if event.fields.get("severity") == "critical" else "warning"
        marks.append(Mark(event.step, event.kind, _event_text(event.kind, event.fields), severity))
    return sorted(marks, key=lambda mark: (mark.step, mark.kind))


def _went_wrong(fields: dict[str, Any]) -> bool:
    """Whether a request was not carried out, an alert not delivered, or a trouble came back."""
    refused, back = fields.get("outcome") in ("failed", "refused"), fields.get("word") == "came back"
    return refused or back or fields.get("delivered") is False


def _is_within(step: int, incidents: list[dict[str, Any]]) -> bool:
    """Whether an incident, which is told with more of the run known, covers what was found at ``step`` in training."""
    spans = [(onset_of(incident), incident.get("last_step")) for incident in incidents]
    return any(onset is not None and onset <= step <= max(onset, last or onset) for onset, last in spans)


def _incident_mark(incident: dict[str, Any]) -> Mark:
    last = incident.get("last_step")
    return Mark(
        int(onset_of(incident) or 0),
        "incident",
        str(incident.get("summary", incident.get("id", "incident"))),
        str(incident.get("severity", "warning")),
        None if last is None else int(last),
        incident_key(incident),
    )


def _event_text(kind: str, fields: dict[str, Any]) -> str:
    words = MARKED_EVENTS[kind]
    if isinstance(fields.get("text"), str):
        first = next((fields[name] for name in ("verdict", "word") if isinstance(fields.get(name), str)), None)
        if kind == "request":
            first = f"{fields.get('do', '?')} {fields.get('outcome', '')}".strip()
        run = f" in {fields['run']}" if kind in ("fix", "fix_outcome") and isinstance(fields.get("run"), str) else ""
        return f"{words}{run}: {f'{first}, ' if first else ''}{fields['text']}"
    if kind == "cadence":
        share = fields.get("monitor_share")
        cost = f", the monitor cost {share:.1%} of the step" if isinstance(share, float) else ""
        what, before, after = (_short(fields.get(name, "?")) for name in ("what", "before", "after"))
        return f"{what} measured every {after} steps instead of every {before}{cost}"
    if kind in ("lr_change", "optimizer_change"):
        group = f" of group {_short(fields['group'])}" if fields.get("group") else ""
        name, before, after = (_short(fields.get(name, "?")) for name in ("name", "before", "after"))
        return f"{words}: {name}{group} from {before} to {after}"
    values = fields.get("values")
    shown = values if isinstance(values, dict) else fields
    parts = [f"{name} {_short(value)}" for name, value in shown.items() if isinstance(value, int | float | str)]
    return f"{words}: {', '.join(parts[:4])}" if parts else words


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
