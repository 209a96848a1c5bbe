"""Trainings broken on purpose, and healthy ones: what the doctor must say of each.

A case is data. ``python -m tests.faults --cases package.module`` takes ``FAULTS`` and ``CONTROLS``, tuples of ``Case``,
from any module that can be imported, so that cases are added without a change of the harness. What the case does is
said in one of three ways, which can be combined:

``config``    values of trainer/config on top of ``GPT``, ``MLP`` or ``CNN``: all that a control needs as a rule
``faults``    tables of trainer/faults.py. One without ``step`` begins at the onset, which the seed draws from
              ``onset``; the layer of one that says ``layer=PLACE`` is drawn from ``places``
``inject``    ``package.module:function``, for what no configuration can break. It is called as
              ``function(onset, resumed)`` in the process of the training, before anything is built, and may replace
              whatever it likes there. A healthy twin is trained without it

Each training is a process of its own; what it does must follow from the configuration and the seed. Its twin is the
same without ``faults`` and ``inject``; ``background`` holds faults that the twin has too, such as a layer that is slow
in both. The doctor sees the run directory alone, in which neither the case's name nor its faults are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Pace = Literal["abrupt", "drift", "leak"]
WINDOWS: Mapping[str, int] = {"abrupt": 20, "drift": 100, "leak": 200}
"""Steps, as in the design notes."""
PLACE = "<place>"
"""Stands in a fault for the layer that the seed draws."""

SMALL: dict[str, Any] = {
    "steps": 400,
    "threads": 1,
    "evaluation.every_steps": 100,
    "evaluation.batches": 2,
    "checkpoint.every_steps": None,
    "checkpoint.keep_best": False,
    "monitor.landscape_every": None,
    # A budget is a share of the step, and these steps are a hundredth of those of a model that somebody trains.
    "monitor.budget": 0.5,
}
GPT: dict[str, Any] = {
    **SMALL,
    "batch_size": 8,
    "task.seq_len": 64,
    "task.max_data_mib": 4.0,
    "model.n_layer": 2,
    "model.d_model": 64,
    "model.n_head": 2,
    "evaluation.sample_bytes": None,
}
"""A GPT small enough that a case takes seconds on one core."""
MLP: dict[str, Any] = {
    **SMALL,
    "task.kind": "mlp",
    "task.val_fraction": 0.2,
    "task.noise_std": 0.2,
    "model.n_layer": 3,
    "model.d_model": 32,
    "batch_size": 32,
}
CNN: dict[str, Any] = {**MLP, "task.kind": "cnn", "model.d_model": 16}


@dataclass(frozen=True, slots=True)
class Case:
    """One training and the truth about it. A control has no fault and accepts nothing."""

    name: str
    config: Mapping[str, Any] = field(default_factory=lambda: GPT)
    """Dotted values of trainer/config."""
    faults: tuple[Mapping[str, Any], ...] = ()
    background: tuple[Mapping[str, Any], ...] = ()
    inject: str | None = None
    resumes: bool = False
    """Whether the training ends at the onset and goes on from its checkpoint, in a process of its own."""
    ranks: int = 1
    onset: tuple[int, int] = (150, 300)
    """First and last step that the seed may draw."""
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By what ``PLACE`` may stand for: beginnings of the names that are right as the first layer. Empty where the
    fault has no place."""
    accept: frozenset[str] = frozenset()
    """Ids of findings that are right."""
    causes: tuple[str, ...] = ()
    """Causes that are right; the first one names the row of the confusion matrix."""
    pace: Pace = "abrupt"
    """Whether all of it is there at once, or it has to add up (``drift``), or to add up in a quantity that only a trend
    tells from noise (``leak``)."""
    departs: str = ""
    """What is otherwise than in the table of the design notes, and why; empty where nothing is."""
    for_good: bool = False
    """Whether a fault of a few steps leaves a training that cannot come back, such as weights that are NaN. Alarms
    after the window are late all the same; the second precision of the results does not count them as false."""
    gradient_led: bool = False
    """Whether the gradient is expected to move before the loss, so that the lead of the alarm is counted."""

    @property
    def healthy(self) -> bool:
        return not self.faults and self.inject is None

    @property
    def window(self) -> int:
        """Steps after the onset within which an alarm is in time."""
        return WINDOWS[self.pace]

    @property
    def lasts(self) -> bool:
        """Whether the fault, or what it has done, goes on to the end."""
        return self.for_good or self.inject is not None or any(fault.get("steps", 1) is None for fault in self.faults)


def ids(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _gpt_matrices() -> dict[str, tuple[str, ...]]:
    names = [f"blocks.{b}.{m}.weight" for b in (0, 1) for m in ("attn.qkv", "attn.proj", "mlp.up", "mlp.down")]
    return {name: (name,) for name in names}


def _blocks(part: str) -> dict[str, tuple[str, ...]]:
    """A place in one of the blocks; what the fault does to it shows in the block's other tensors as well."""
    return {f"blocks.{b}.{part}": (f"blocks.{b}.",) for b in (0, 1)}


def _numbered(part: str, numbers: tuple[int, ...], suffix: str = "") -> dict[str, tuple[str, ...]]:
    return {f"{part}.{n}{suffix}": (f"{part}.{n}.",) for n in numbers}


MATRICES = {"gpt": _gpt_matrices(), "mlp": _numbered("layers", (0, 1, 2), ".weight"),
            "cnn": _numbered("convolutions", (0, 1, 2), ".weight")}  # fmt: skip
MODELS = {"gpt": GPT, "mlp": MLP, "cnn": CNN}
STEADY_S = 0.02
"""Seconds that a layer sleeps in each step of a case about time, beside which the machine's own jitter is small."""
STEADY = ({"kind": "slow_layer", "step": 1, "steps": None, "seconds": STEADY_S},)
TWO_RANKS = {**MLP, "parallel.processes": 2}
SGD = {"optimizer.kind": "sgd", "optimizer.lr": 0.05}
RISES = ids("gradient-explosion loss-spike slow-divergence non-finite update-size lr-schedule weight-norm")
SPIKES = ids("gradient-explosion loss-spike")
ODD = SPIKES | ids("odd-input slow-divergence not-learning")
DECAYS = ids("optimizer-change weight-norm slow-divergence gradient-explosion loss-spike update-size")
DEAD = ids("dead-units loss-spike vanishing-gradient weights-overwritten")


def _of_all(
    name: str, faults: Mapping[str, Any], kinds: tuple[str, ...] = ("gpt", "mlp", "cnn"), **rest: Any
) -> list[Case]:
    return [Case(f"{name}-{kind}", config=MODELS[kind], faults=(faults,), **rest) for kind in kinds]


def _in_a_matrix(name: str, faults: Mapping[str, Any], **rest: Any) -> list[Case]:
    placed = {**faults, "layer": PLACE}
    return [Case(f"{name}-{k}", config=c, faults=(placed,), places=MATRICES[k], **rest) for k, c in MODELS.items()]


def _of_units(part: str) -> dict[str, tuple[str, ...]]:
    """A bias of the layer, or the activation that comes after it: its units are dead in both words."""
    return {f"{part}.{n}.bias": (f"{part}.{n}.", f"activations.{n}") for n in (1, 2)}


FAULTS: tuple[Case, ...] = (
    # 1 to 5: the learning rate, and the gradient of one layer
    *_of_all("lr-x30", {"kind": "lr_factor", "factor": 30.0, "steps": None}, accept=RISES, causes=("lr-too-high",)),
    Case("lr-x300-one-step", faults=({"kind": "lr_factor", "factor": 300.0, "steps": 1},), accept=RISES,
         causes=("lr-too-high",)),
    Case("lr-1000th", config=MLP, faults=({"kind": "lr_factor", "factor": 1e-3, "steps": None},),
         accept=ids("lr-schedule update-size not-learning"), causes=("lr-too-low",)),
    *_in_a_matrix("gradient-x50", {"kind": "grad_factor", "factor": 50.0, "steps": 1},
                  accept=ids("gradient-explosion"), causes=("corrupted-gradient",), gradient_led=True),
    *_in_a_matrix("gradient-zeroed", {"kind": "grad_factor", "factor": 0.0, "steps": None},
                  accept=ids("vanishing-gradient unmoved-parameters"), causes=("gradient-cut-off",)),
    # 6 to 11: activations, batches, units
    *[Case(f"nan-activation-{kind}", config=MODELS[kind], places=places, accept=ids("non-finite"),
           faults=({"kind": "nan_activation", "steps": 1, "layer": PLACE},), causes=("undefined-operation",),
           for_good=True)
      for kind, places in (("gpt", _blocks("mlp.up")), ("mlp", _numbered("layers", (0, 1, 2))),
                           ("cnn", _numbered("convolutions", (0, 1, 2))))],
    Case("inputs-x1000", config=CNN, faults=({"kind": "input_scale", "factor": 1e3, "steps": 1},), accept=ODD,
         causes=("bad-batch", "non-finite-input")),
    Case("repeated-token", faults=({"kind": "repeated_token", "steps": 1},), accept=ODD, causes=("bad-batch",)),
    *_of_all("shuffled-labels", {"kind": "shuffled_labels", "steps": None}, ("mlp", "cnn"), pace="drift",
             accept=ids("loss-spike slow-divergence not-learning gradient-explosion"), causes=("data-change",)),
    Case("inputs-unnormalised", config=CNN, faults=({"kind": "input_scale", "factor": 16.0, "steps": None},),
         accept=ODD, causes=("data-change",)),
    *[Case(f"dying-relu-{kind}", config=MODELS[kind], places=_of_units(part), accept=DEAD, causes=("dying-relu",),
           faults=({"kind": "weight_shift", "offset": -10.0, "steps": 1, "layer": PLACE},), for_good=True)
      for kind, part in (("mlp", "layers"), ("cnn", "convolutions"))],
    # 12 to 15: weights, precision, optimizer state
    Case("qk-growth", config={**GPT, "steps": 500}, pace="drift", places=_blocks("attn"),
         faults=({"kind": "qk_scale", "factor": 1.02, "steps": None, "layer": PLACE},),
         accept=ids("attention-collapse slow-divergence gradient-explosion loss-spike weight-norm weights-overwritten"),
         causes=("attention-logits",), gradient_led=True),
    Case("fp16-overflow", config={**GPT, "precision.kind": "fp16"},
         faults=({"kind": "fp16_overflow", "factor": 1e6, "steps": None},),
         accept=ids("non-finite loss-scale"), causes=("fp16-overflow",),
         departs="the limit is emulated at 65504 / 1e6, because gradients of a model this small stay far below 65504"),
    Case("stale-second-moment",
         faults=({"kind": "second_moment_factor", "factor": 1e-4, "steps": 1, "layer": "token.weight"},),
         config={**GPT, "optimizer.beta2": 0.999}, places={"token.weight": ("token.weight",)},
         accept=ids("stale-second-moment gradient-explosion loss-spike update-imbalance"),
         causes=("stale-second-moment",)),
    *_of_all("weight-decay-sign", {"kind": "weight_decay_factor", "factor": -1.0, "steps": None}, pace="drift",
             accept=DECAYS, causes=("weight-decay",)),
    *_of_all("weight-decay-x100", {"kind": "weight_decay_factor", "factor": 100.0, "steps": None}, pace="drift",
             accept=DECAYS, causes=("weight-decay",)),
    # 16 to 18: mistakes in the program
    *_of_all("no-zero-grad", {"kind": "skip_zero_grad", "steps": None}, pace="drift",
             accept=ids("missing-zero-grad gradient-explosion slow-divergence loss-spike"),
             causes=("missing-zero-grad",)),
    *[Case(f"replaced-parameter-{kind}", config=MODELS[kind], onset=(1, 1),
           faults=({"kind": "replaced_parameter", "steps": None, "layer": PLACE},), places=MATRICES[kind],
           accept=ids("unmoved-parameters"), causes=("not-in-optimizer", "updates-lost"))
      for kind in MODELS],
    *[Case(f"double-softmax-{kind}", config=MODELS[kind], onset=(1, 1),
           faults=({"kind": "double_softmax", "steps": None},), accept=ids("loss-on-probabilities not-learning"),
           causes=("double-softmax",))
      for kind in ("mlp", "cnn")],
    # 19 to 21: resume, clipping, memory
    Case("resume-without-optimizer", config={**GPT, "schedule.kind": "constant"}, resumes=True,
         inject="tests.faults.injectors:forget_optimizer",
         accept=ids("resume-mismatch loss-spike gradient-explosion stale-second-moment"), causes=("wrong-resume",)),
    Case("clip-removed", config={**GPT, "optimizer.kind": "sgd", "optimizer.lr": 0.3, "clip.max_norm": 0.5},
         background=({"kind": "heavy_tails", "step": 1, "steps": None},), pace="drift",
         faults=({"kind": "no_clipping", "steps": None},), accept=RISES | ids("optimizer-change"),
         causes=("clipping-removed", "gradient-explosion", "corrupted-gradient"), gradient_led=True,
         departs="drift: nothing happens before the next heavy gradient comes"),
    Case("tensor-leak", config={**GPT, "steps": 600, "batch_size": 16}, pace="leak",
         faults=({"kind": "tensor_leak", "steps": None},), accept=ids("memory-growth"),
         causes=("memory-leak",), departs="GPT alone: the outputs of the small MLP and CNN are a few kB a step"),
    # 22 to 26: time and ranks
    Case("slow-loader", config=MLP, background=STEADY, pace="drift",
         faults=({"kind": "slow_data", "steps": None, "factor": 1.6},),
         accept=ids("input-bound slower-steps"), causes=("slow-input",),
         departs="drift: a share of the time is judged over windows of steps"),
    Case("throughput-5-percent", config={**MLP, "steps": 600}, background=STEADY, pace="leak",
         faults=({"kind": "slow_layer", "steps": None, "factor": 1 / 0.95},), accept=ids("slower-steps"),
         causes=("slower-compute",), departs="leak: the rule of the table itself asks for 200 steps"),
    Case("slow-rank", config=TWO_RANKS, ranks=2, background=STEADY, pace="leak",
         faults=({"kind": "slow_layer", "steps": None, "factor": 1.2, "rank": 1},),
         accept=ids("straggler slower-steps"), causes=("slow-rank",),
         departs="leak: being last is counted over windows of 100 steps"),
    Case("desync", config=TWO_RANKS, ranks=2, faults=({"kind": "unreduced", "steps": None},), pace="drift",
         accept=ids("replicas-apart rank-outlier"), causes=("replica-desync",),
         departs="drift: parameters are summed up every 100 steps"),
    Case("hang", config=MLP, background=STEADY,
         faults=({"kind": "slow_data", "steps": 1, "factor": 31.0},), accept=ids("stall"),
         causes=("slow-input", "hang")),
)  # fmt: skip
"""The faults 1 to 26 of the design notes, in their order."""

LONG = 600
"""Steps of a control, as the design notes have it."""


def _control(name: str, config: Mapping[str, Any] = GPT, **rest: Any) -> Case:
    return Case(name, config={**config, "steps": LONG}, **rest)


CONTROLS: tuple[Case, ...] = (
    _control("cosine"),
    _control("mlp", config=MLP),
    _control("cnn", config=CNN),
    _control("warmup-hump", config={**GPT, "optimizer.lr": 8e-3, "schedule.warmup_steps": 100}),
    _control("cosine-restarts", config={**GPT, "schedule.kind": "cosine_restarts", "schedule.period_steps": 120}),
    _control("step-decay", config={**CNN, "schedule.kind": "step", "schedule.period_steps": 150}),
    _control("small-noisy-batch", config={**CNN, "batch_size": 4}),
    _control("eval-pauses", config={**MLP, "evaluation.every_steps": 50, "evaluation.batches": 40}, background=STEADY),
    _control("checkpoint-stalls", config={**GPT, "checkpoint.every_steps": 40, "checkpoint.background": False}),
    _control("clean-resume", config={**GPT, "schedule.kind": "constant"}, resumes=True),
    _control("one-cycle",
             config={**CNN, "schedule.kind": "one_cycle", "schedule.warmup_steps": 0, "optimizer.lr": 1e-2}),
    _control("accumulation", config={**GPT, "grad_accum_steps": 4}),
    _control("frozen-backbone", config={**MLP, "task.kind": "tests.faults.injectors:frozen_backbone"}),
    _control("fp16-backing-off", config={**GPT, "precision.kind": "fp16", "precision.growth_interval": 50}),
    _control("heavy-tails-clipped", config={**GPT, "optimizer.kind": "sgd", "optimizer.lr": 0.3, "clip.max_norm": 0.5},
         background=({"kind": "heavy_tails", "step": 1, "steps": None},)),
    _control("two-ranks", config=TWO_RANKS, ranks=2, background=STEADY),
)  # fmt: skip
"""The healthy trainings of the design notes, and a few more."""

SMALL_SET = (
    "lr-x30-mlp", "gradient-x50-mlp", "nan-activation-mlp", "inputs-x1000", "dying-relu-mlp", "double-softmax-mlp",
    "mlp", "step-decay", "frozen-backbone",
)  # fmt: skip
"""Names of the cases that ``make test`` trains."""
