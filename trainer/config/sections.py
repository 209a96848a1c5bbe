"""Every value a training can be given: its type, its bounds, one sentence with the unit. ``None`` means off."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from monitor.errors import ConfigError


class Section(BaseModel):
    """Values that belong together: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


TEXT_KINDS = ("gpt", "charmlp")
DIGIT_KINDS = ("mlp", "cnn")
TASK_KINDS = TEXT_KINDS + DIGIT_KINDS
OWN_TASK = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""``package.module:function``."""


class TaskConfig(Section):
    """What is learnt, and from which data."""

    kind: str = Field(
        default="gpt",
        max_length=200,
        examples=list(TASK_KINDS),
        description="What is trained: gpt, a transformer, or charmlp, an MLP, on text; mlp or cnn on handwritten "
        "digits; or a task of your own, package.module:build.",
    )
    data: str | None = Field(
        default=None,
        description="File or folder of text to learn from; none takes the source of Python's standard library.",
    )
    seq_len: int = Field(default=128, ge=2, le=8192, description="Length of one training sequence, in tokens.")
    tokens: Literal["bytes", "bpe"] = Field(
        default="bytes",
        description="What one token of text is: a byte, or byte pairs merged as in the training text (extra bpe).",
    )
    vocab_size: int = Field(
        default=1024, ge=257, le=65536, description="BPE: number of distinct tokens, the 256 bytes among them."
    )
    near_duplicates: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="A document with at least this share of its lines, three in a row, in documents before it is left "
        "out, dimensionless; none leaves out exact copies only.",
    )
    max_data_mib: float = Field(
        default=24.0,
        gt=0,
        le=4096,
        description="Most text that is read into memory, in MiB; files beyond it are left out.",
    )
    val_fraction: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="Share of the data held out for validation, text split by file, dimensionless.",
    )
    shift_px: int = Field(
        default=0, ge=0, le=4, description="Digits: largest random shift of a training image either way, in pixels."
    )
    noise_std: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Digits: standard deviation of noise on training images, whose pixels are 0 to 1.",
    )

    @field_validator("kind")
    @classmethod
    def _kind_is_ours_or_a_place_in_code(cls, value: str) -> str:
        if value in TASK_KINDS or OWN_TASK.fullmatch(value):
            return value
        raise PydanticCustomError(
            "literal_error", "{expected}", {"expected": ", ".join([*TASK_KINDS, "package.module:build"])}
        )

    @property
    def is_own(self) -> bool:
        """Whether ``kind`` names code of the user's own."""
        return self.kind not in TASK_KINDS

    @property
    def is_text(self) -> bool:
        """Whether examples are sequences of ``seq_len`` tokens."""
        return self.kind in TEXT_KINDS

    def data_path(self) -> Path | None:
        """Where the user's text is; None for the standard library.

        Raises:
            ConfigError: there is nothing there.
        """
        if self.data is None:
            return None
        path = Path(self.data).expanduser()
        if not path.exists():
            raise ConfigError(f"task.data = {self.data}: does not exist. Give a text file or a folder of text files.")
        return path


class ModelConfig(Section):
    """Size and shape of the model."""

    n_layer: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Number of transformer blocks (hidden layers, convolutions for the others).",
    )
    n_head: int = Field(
        default=4, ge=1, le=256, description="Attention heads per block; d_model must be a multiple of it."
    )
    d_model: int = Field(
        default=128,
        ge=8,
        le=16384,
        description="Width of the residual stream (hidden layers, channels for the others), in features.",
    )
    mlp_ratio: int = Field(default=4, ge=1, le=16, description="Width of the MLP in a block, as a multiple of d_model.")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Probability of zeroing an activation in training, dimensionless."
    )
    tied_head: bool = Field(
        default=False, description="Whether the output layer shares its weights with the token embedding."
    )
    context: int = Field(
        default=16, ge=1, le=1024, description="Tokens that charmlp sees before the one it predicts; gpt ignores it."
    )
    qk_norm: bool = Field(
        default=False,
        description="GPT: whether queries and keys are normalised, so that attention logits stay bounded.",
    )
    batch_norm: bool = Field(default=False, description="CNN: whether each convolution is followed by BatchNorm.")
    init: Literal["gpt2", "xavier", "he", "small"] | None = Field(
        default=None,
        description="First weights of linear and convolutional layers: gpt2 (std 0.02, less where the residual stream "
        "is written), xavier, he, small (std sqrt(2/(5 d))); none takes gpt2 for gpt, torch's own for the others.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="GPT: whether backward computes activations of blocks again: less memory, one more forward.",
    )
    weights: str | None = Field(
        default=None,
        description="Checkpoint folder or .safetensors file with the weights to start from; none draws them.",
    )


class AdapterConfig(Section):
    """A small part that is trained in place of the model, whose own weights are frozen."""

    kind: Literal["lora", "prefix", "bottleneck"] | None = Field(
        default=None,
        description="Which one: lora (extra peft), prefix (learnt keys and values in each attention of gpt), "
        "bottleneck (a narrow MLP after attention and MLP of each block of gpt), or none: all weights are trained.",
    )
    layers: str = Field(
        default="qkv,proj",
        max_length=1000,
        description="LoRA: last parts of the names of the linear layers that get it, with commas between.",
    )
    rank: int = Field(
        default=8, ge=1, le=4096, description="LoRA: rank of the change; bottleneck: its width in features."
    )
    alpha: int = Field(default=16, ge=1, le=10_000, description="LoRA: the change is multiplied by alpha / rank.")
    prefix_len: int = Field(
        default=16, ge=1, le=1024, description="Prefix: learnt positions before the text, in tokens."
    )


class CurriculumConfig(Section):
    """Short sequences first: a training sequence is cut to a length that grows to task.seq_len."""

    kind: Literal["linear", "step"] | None = Field(
        default=None,
        description="Growth: linear, in at most 16 equal strides; step, doubling; or none: full length throughout.",
    )
    first_len: int = Field(default=32, ge=2, le=8192, description="Length of the first sequences, in tokens.")
    steps: int = Field(default=400, ge=1, le=10**9, description="Optimizer steps until the full length is reached.")


class AdversarialConfig(Section):
    """Training on inputs moved against the model (FGSM): pixels of images, embeddings of text."""

    epsilon: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="How far each pixel (of 0 to 1) or embedding feature is moved, in its own unit; none is off.",
    )
    share: float = Field(
        default=0.5, gt=0, le=1, description="Share of the examples of a micro-batch that are moved, dimensionless."
    )


class LossConfig(Section):
    """What is added to the cross-entropy in training; validation is the plain cross-entropy."""

    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a target's probability spread over all classes in training, dimensionless; 0 is off.",
    )
    z_loss: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Weight of the squared log of the softmax's denominator in training; 0 is off, 1e-4 is usual.",
    )


class OptimizerConfig(Section):
    """How a gradient becomes an update."""

    kind: Literal["adamw", "adam", "stable_adamw", "sgd", "lars", "lamb"] = Field(
        default="adamw",
        description="Update rule; stable_adamw shortens updates that Adam's second moment lags behind, lars and lamb "
        "fit sgd's and adamw's to each matrix's norm.",
    )
    lr: float = Field(default=2e-3, gt=0, le=100, description="Peak learning rate, before the schedule's factor.")
    weight_decay: float = Field(
        default=0.1,
        ge=0,
        le=10,
        description="Decay of matrices per unit of learning rate, not of norms and biases; decoupled, but in adam, sgd "
        "and lars L2, through the gradient.",
    )
    beta1: float = Field(
        default=0.9, ge=0, lt=1, description="Adam, AdamW, LAMB: decay of the gradient's running mean, per step."
    )
    beta2: float = Field(
        default=0.95,
        ge=0,
        lt=1,
        description="Adam, AdamW, LAMB: decay of the squared gradient's running mean, per step.",
    )
    eps: float = Field(
        default=1e-8,
        gt=0,
        le=1,
        description="Adam, AdamW, LAMB: added to the root of the second moment, in gradient units.",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD, LARS: decay of the velocity, per step.")
    nesterov: bool = Field(default=False, description="SGD: whether to look ahead along the velocity (Nesterov).")
    trust: float = Field(
        default=1e-3,
        gt=0,
        le=1,
        description="LARS: update of a matrix per unit of learning rate, as a share of its norm.",
    )


class ScheduleConfig(Section):
    """The factor on the learning rate, a pure function of the step."""

    kind: Literal[
        "cosine", "cosine_restarts", "linear", "step", "exponential", "inverse_sqrt", "one_cycle", "wsd", "constant"
    ] = Field(
        default="cosine",
        description="Shape after warm-up, such as cosine, step, one_cycle, or wsd (warm-up, stable, decay).",
    )
    warmup_steps: int = Field(
        default=50, ge=0, description="Optimizer steps of linear warm-up from near zero to the shape's first value."
    )
    min_lr_ratio: float = Field(
        default=0.1, ge=0, le=1, description="Floor of the schedule, as a share of the peak learning rate."
    )
    decay_steps: int | None = Field(
        default=None, ge=1, description="wsd: optimizer steps of the final decay; none takes a fifth of all steps."
    )
    period_steps: int | None = Field(
        default=None,
        ge=1,
        description="cosine_restarts: optimizer steps of the first cycle; step, exponential: steps in which the rate "
        "falls by gamma; none takes a third of the steps after warm-up.",
    )
    cycle_factor: int = Field(
        default=1, ge=1, le=10, description="cosine_restarts: length of a cycle, as a multiple of the one before."
    )
    gamma: float = Field(
        default=0.1, gt=0, le=1, description="step, exponential: factor on the rate over period_steps, dimensionless."
    )
    peak_at: float = Field(
        default=0.3, gt=0, lt=1, description="one_cycle: where the peak is, as a share of the steps after warm-up."
    )
    start_ratio: float = Field(
        default=0.04, gt=0, le=1, description="one_cycle: first learning rate, as a share of the peak."
    )


class ClipConfig(Section):
    """Gradient clipping."""

    kind: Literal["norm", "value", "adaptive"] = Field(
        default="norm",
        description="What is limited: norm, the gradient's L2 norm; value, each entry; adaptive, each tensor's norm "
        "beside the running mean of its own.",
    )
    max_norm: float | None = Field(
        default=1.0,
        gt=0,
        description="Largest L2 norm of the whole gradient that the optimizer sees, in adaptive until warmup_steps; "
        "none turns clipping by norm off.",
    )
    max_value: float = Field(
        default=1.0, gt=0, description="value: largest magnitude of a gradient entry, in gradient units."
    )
    growth: float = Field(
        default=1.05,
        ge=1,
        le=100,
        description="adaptive: largest norm of a tensor's gradient, as a multiple of the running mean of its norms.",
    )
    beta: float = Field(default=0.98, ge=0, lt=1, description="adaptive: decay of the running mean, per step.")
    warmup_steps: int = Field(
        default=100, ge=1, description="adaptive: optimizer steps that are clipped by max_norm and start the means."
    )


class GradientNoiseConfig(Section):
    """Annealed Gaussian noise on the gradient."""

    eta: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Variance of the noise in step 0, in squared gradient units, such as 0.01; none adds no noise.",
    )
    decay: float = Field(
        default=0.55, ge=0, le=10, description="The variance is eta divided by (1 + step) to this power."
    )


class EmaConfig(Section):
    """Running mean of the weights, evaluated beside them."""

    decay: float | None = Field(
        default=None, gt=0, lt=1, description="Decay of the mean per optimizer step, such as 0.999; none keeps no mean."
    )


class EarlyStoppingConfig(Section):
    """An end before the last step, when the held-out loss no longer falls."""

    patience: int | None = Field(
        default=None,
        ge=1,
        le=10**6,
        description="Evaluations in a row without progress after which training ends; none trains to the last step.",
    )
    min_delta: float = Field(
        default=0.0, ge=0, description="Fall of the held-out loss that counts as progress, in the unit of the loss."
    )
    restore_best: bool = Field(
        default=True, description="Whether the model has the weights of the lowest held-out loss again at that end."
    )


class CompileConfig(Section):
    """torch.compile."""

    enabled: bool = Field(
        default=False, description="Whether the training forward and backward are compiled; the first step then waits."
    )
    backend: Literal["inductor", "aot_eager", "eager", "cudagraphs"] = Field(
        default="inductor",
        description="What torch.compile hands the graph to; inductor is the one that makes it faster, and needs a C++ "
        "compiler on a CPU.",
    )


class PrecisionConfig(Section):
    """Number formats in forward and backward; weights and optimizer state stay float32."""

    kind: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="fp32, or autocast to bf16, or autocast to fp16 with a gradient scaler."
    )
    init_scale: float = Field(default=65536.0, gt=0, le=2.0**32, description="fp16: first loss scale, dimensionless.")
    growth_interval: int = Field(
        default=2000, ge=1, description="fp16: optimizer steps without overflow before the scale doubles."
    )
    matmul: Literal["highest", "high", "medium"] = Field(
        default="highest",
        description="Exactness of products of float32 matrices: highest, high (TF32 where there is hardware for it) "
        "or medium (bf16).",
    )


class ParallelConfig(Section):
    """Several processes, started by torchrun."""

    processes: int = Field(
        default=1, ge=1, le=1024, description="Processes that share the training; a launch starts them on this machine."
    )
    mode: Literal["ddp", "zero1", "fsdp", "tensor", "pipeline"] = Field(
        default="ddp",
        description="What each process holds: ddp all of the model, zero1 that but its share of the optimizer state, "
        "fsdp a piece of every tensor, tensor a piece of attention and MLP, pipeline some of the blocks.",
    )
    tensor_processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="For fsdp: neighbouring processes that share each layer as in tensor, so that both are combined; "
        "1 is fsdp alone.",
    )
    schedule: Literal["1f1b", "gpipe"] = Field(
        default="1f1b",
        description="For pipeline: gpipe runs all forwards, then all backwards; 1f1b mixes them and keeps less.",
    )
    max_restarts: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="How often all processes are started again when one has died; each time a new attempt from the "
        "newest checkpoint.",
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(
        default="auto",
        description="Library that carries gradients between processes; auto takes nccl on CUDA and gloo on CPU.",
    )
    timeout_s: float = Field(
        default=120.0, ge=5, le=86400, description="Seconds after which a collective that hangs is an error."
    )

    @property
    def layer_processes(self) -> int:
        """Processes that each layer of tensor parallelism is split over."""
        return {"tensor": self.processes, "fsdp": self.tensor_processes}.get(self.mode, 1)

    @property
    def data_processes(self) -> int:
        """Into how many shares the examples of a step are split; processes that share a model see the same ones."""
        return 1 if self.mode == "pipeline" else self.processes // self.layer_processes

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> ParallelConfig:
        if self.mode not in ("ddp", "zero1") and self.processes == 1:
            raise ValueError(
                f"parallel.mode = {self.mode} spreads the model over processes and parallel.processes is 1; give "
                "parallel.processes = 2 or more, or parallel.mode = ddp"
            )
        if self.tensor_processes > 1 and self.mode != "fsdp":
            raise ValueError(
                f"parallel.tensor_processes = {self.tensor_processes} belongs to parallel.mode = fsdp and the mode is "
                f"{self.mode}; mode tensor splits layers over all processes by itself"
            )
        if self.processes % self.tensor_processes or self.processes == self.tensor_processes > 1:
            raise ValueError(
                f"parallel.processes = {self.processes} cannot be groups of parallel.tensor_processes = "
                f"{self.tensor_processes}, at least two of them; nearest that fits: "
                f"{max(2 * self.tensor_processes, nearest_multiple(self.processes, self.tensor_processes))}"
            )
        return self


class EvaluationConfig(Section):
    """Loss on held-out data."""

    every_steps: int | None = Field(
        default=200, ge=1, description="Optimizer steps between validation passes; none leaves only the last one."
    )
    batches: int = Field(
        default=8, ge=1, le=100_000, description="Batches in one validation pass, the same ones each time."
    )
    sample_bytes: int | None = Field(
        default=200,
        ge=1,
        le=100_000,
        description="Length of what a text model writes after each validation pass, in bytes; none turns it off.",
    )


class CheckpointConfig(Section):
    """What a run can be resumed from."""

    every_steps: int | None = Field(
        default=200, ge=1, description="Optimizer steps between checkpoints; none leaves only the last one."
    )
    keep_last: int = Field(
        default=2, ge=1, le=10_000, description="Number of newest complete checkpoints that are kept."
    )
    keep_best: bool = Field(
        default=True,
        description="Whether each new lowest held-out loss gets a checkpoint, and the lowest one's is kept too.",
    )
    background: bool = Field(
        default=True,
        description="Whether training goes on while a copy in host memory (weights and optimizer) is written.",
    )


class MonitorConfig(Section):
    """What is measured while training."""

    enabled: bool = Field(
        default=True, description="Whether measurements are recorded; the run directory is made either way."
    )
    landscape_every: int | None = Field(
        default=200,
        ge=1,
        description="Optimizer steps between samples of the loss landscape and its curvature, which an early sign of "
        "trouble calls for too; none turns them off.",
    )
    landscape_share: float = Field(
        default=0.015,
        gt=0,
        le=1,
        description="Share of the training's time that these samples may take, at every moment: one that is due waits "
        "until the time so far pays for it. 1 is no limit.",
    )
    landscape_tokens: int = Field(
        default=256,
        ge=1,
        le=10**9,
        description="Tokens of the step's first micro-batch that they are taken on, in whole examples.",
    )
    budget: float = Field(
        default=0.02, gt=0, le=1, description="Share of the step time that measuring may cost, dimensionless."
    )
    on_critical: Literal["warn", "checkpoint", "stop", "rewind"] | None = Field(
        default="warn",
        description="What to do when the rules find something critical while training: say so, save a checkpoint that "
        "is kept, stop, or go back before it with the remedy's configuration. None: the rules are asked afterwards.",
    )
    rewinds: int = Field(
        default=2, ge=0, le=100, description="How often one process goes back before a critical finding; then it stops."
    )


class SkipConfig(Section):
    """Batches that are left out of the data stream, such as those before which a training went wrong."""

    after_step: int = Field(
        default=0, ge=0, le=10**9, description="Optimizer step after which batches are left out, once."
    )
    batches: int = Field(
        default=0, ge=0, le=10**6, description="How many batches, of all processes together, are left out; 0 is off."
    )


VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""An environment variable."""


class AlertsConfig(Section):
    """Telling somebody who does not look at the page."""

    webhook: str | None = Field(
        default=None,
        max_length=200,
        description="Name of the environment variable that holds the webhook's address, such as GRADIOMETER_WEBHOOK: "
        "the address is a secret and is written nowhere. None: nobody is told.",
    )
    shape: Literal["auto", "generic", "slack", "discord"] = Field(
        default="auto", description="What the webhook takes; auto goes by its host."
    )
    level: Literal["info", "warning", "critical"] = Field(
        default="critical", description="Lowest severity of a finding that is told."
    )
    every_s: float = Field(
        default=300.0, ge=0, le=10**6, description="Least seconds between two alerts about the same thing."
    )

    @field_validator("webhook")
    @classmethod
    def _is_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not VARIABLE.fullmatch(value):
            raise PydanticCustomError(
                "variable",
                "the name of an environment variable is accepted, not an address: that is a secret, and the "
                "configuration is written into the run. Put it into GRADIOMETER_WEBHOOK and give that name",
            )
        return value


FaultKind = Literal[
    "lr_factor",
    "no_clipping",
    "skip_zero_grad",
    "unreduced",
    "grad_factor",
    "nan_gradient",
    "fp16_overflow",
    "heavy_tails",
    "weight_scale",
    "weight_shift",
    "qk_scale",
    "replaced_parameter",
    "weight_decay_factor",
    "second_moment_factor",
    "lost_optimizer_state",
    "repeated_token",
    "random_bytes",
    "shuffled_labels",
    "input_scale",
    "repeated_batch",
    "nan_activation",
    "activation_factor",
    "double_softmax",
    "eval_mode",
    "tensor_leak",
    "slow_data",
    "slow_layer",
]


class FaultConfig(Section):
    """One deliberate mistake, for teaching and testing. Never written into a run directory."""

    kind: FaultKind = Field(description="Which mistake is made; trainer/faults.py describes each.")
    step: int = Field(ge=1, description="Optimizer step of the onset.")
    steps: int | None = Field(default=1, ge=1, description="Optimizer steps it lasts; none means until the end.")
    factor: float = Field(
        default=1.0,
        description="Strength, dimensionless: what a learning rate, a gradient or a weight is multiplied by, per step.",
    )
    offset: float = Field(default=0.0, description="What is added to a weight or an input, in its unit.")
    seconds: float = Field(default=0.0, ge=0, le=3600, description="How long something slow takes longer, in seconds.")
    layer: str | None = Field(
        default=None, description="Part of a module's or parameter's name; none takes the middle of the model."
    )
    rank: int | None = Field(
        default=None, ge=0, description="The process that makes the mistake; none means every process."
    )


DIVISIBLE_TASKS = ("gpt",)
"""Tasks whose model is known in its parts, for tensor parallelism and pipelines."""
FAULTS_WITHOUT_THE_MODEL = (
    "lr_factor", "no_clipping", "skip_zero_grad", "repeated_token", "random_bytes", "shuffled_labels", "input_scale",
    "repeated_batch", "slow_data",
)  # fmt: skip
"""Mistakes that any layout can make."""


NAME = r"^[A-Za-z0-9][A-Za-z0-9_.,+-]*$"
"""Of a partition or an account; Slurm allows little more."""
SBATCH_OPTIONS = (
    "constraint", "cpus-per-task", "exclude", "exclusive", "gpus-per-node", "gpus-per-task", "gres", "hint", "licenses",
    "mem", "mem-per-cpu", "mem-per-gpu", "mincpus", "nice", "nodelist", "priority", "qos", "reservation", "tmp",
)  # fmt: skip
"""Options of sbatch that a configuration may give: resources and place only. None of them names a file or a command."""
SBATCH_VALUE = re.compile(r"[A-Za-z0-9_.,:+\-\[\]|&*()]{1,200}")


class LaunchConfig(Section):
    """Where the processes of a launch run, and what the cluster is told. A trainer in a terminal ignores it."""

    engine: Literal["local", "slurm", "ray"] = Field(
        default="local",
        description="Where a launch runs: local, this machine; slurm, a cluster that sbatch reaches; ray, a Ray "
        "cluster by its Job API.",
    )
    nodes: int = Field(
        default=1, ge=1, le=1024, description="Slurm: hosts that parallel.processes are shared out to, evenly."
    )
    partition: str | None = Field(
        default=None, max_length=200, pattern=NAME, description="Slurm: partition; none takes the cluster's default."
    )
    account: str | None = Field(
        default=None, max_length=200, pattern=NAME, description="Slurm: account to be charged; none takes your own."
    )
    time_limit_min: int | None = Field(
        default=None,
        ge=1,
        le=525_600,
        description="Slurm: most minutes at a stretch. Before they are over the run saves a checkpoint and queues "
        "itself again. None takes the partition's limit.",
    )
    save_before_s: int = Field(
        default=120,
        ge=1,
        le=65_535,
        description="Slurm: seconds before the time limit at which the run saves and queues itself again; Slurm may "
        "be up to 60 s early.",
    )
    options: str = Field(
        default="",
        max_length=1000,
        description="Slurm: more options of sbatch, with spaces between: gres=gpu:2 cpus-per-task=8 qos=high.",
    )

    @field_validator("options")
    @classmethod
    def _options_are_on_the_list(cls, value: str) -> str:
        for word in value.split():
            name, given, setting = word.removeprefix("--").partition("=")
            if name not in SBATCH_OPTIONS:
                message = "{name} is not an option that may be given here; accepted: {accepted}"
                raise PydanticCustomError(
                    "sbatch_option", message, {"name": repr(name), "accepted": ", ".join(SBATCH_OPTIONS)}
                )
            if given and not SBATCH_VALUE.fullmatch(setting):
                message = "{word} has a value that no such option takes; letters, digits and _.,:+-[]|&*() are accepted"
                raise PydanticCustomError("sbatch_option", message, {"word": repr(word)})
        return value

    @property
    def sbatch_options(self) -> list[str]:
        """``options`` as words of sbatch's command line."""
        return [f"--{word.removeprefix('--')}" for word in self.options.split()]


class TrainConfig(Section):
    """One training, from the data to the last checkpoint."""

    name: str | None = Field(
        default=None, max_length=80, description="Short name of the run; none takes the task's name."
    )
    steps: int = Field(default=1200, ge=1, le=10**9, description="Optimizer steps to train in all.")
    stop_after: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Step after which training ends early, with a checkpoint, on the schedule of all steps, or none.",
    )
    batch_size: int = Field(
        default=16,
        ge=1,
        le=10**6,
        description="Sequences per optimizer step, over all micro-batches and processes together.",
    )
    grad_accum_steps: int = Field(
        default=1, ge=1, le=10**5, description="Micro-batches that a process adds up into one optimizer step."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of initialisation, data order and dropout.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train; auto takes CUDA when there is one."
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads inside one operation; none leaves torch's choice."
    )
    log_every_s: float = Field(
        default=5.0, gt=0, description="Seconds between progress lines when the output is not a terminal."
    )
    task: TaskConfig = Field(default=TaskConfig(), description="What is learnt, and from which data.")
    model: ModelConfig = Field(default=ModelConfig(), description="Size and shape of the model.")
    adapter: AdapterConfig = Field(
        default=AdapterConfig(), description="A small part that is trained in place of the model."
    )
    curriculum: CurriculumConfig = Field(default=CurriculumConfig(), description="Short sequences first.")
    adversarial: AdversarialConfig = Field(
        default=AdversarialConfig(), description="Training on inputs moved against the model."
    )
    loss: LossConfig = Field(default=LossConfig(), description="What is added to the cross-entropy in training.")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="How a gradient becomes an update.")
    schedule: ScheduleConfig = Field(
        default=ScheduleConfig(), description="The factor on the learning rate over the steps."
    )
    clip: ClipConfig = Field(default=ClipConfig(), description="Gradient clipping.")
    gradient_noise: GradientNoiseConfig = Field(
        default=GradientNoiseConfig(), description="Annealed Gaussian noise on the gradient."
    )
    ema: EmaConfig = Field(default=EmaConfig(), description="Running mean of the weights, evaluated beside them.")
    early_stopping: EarlyStoppingConfig = Field(
        default=EarlyStoppingConfig(), description="An end before the last step, when the held-out loss stays."
    )
    precision: PrecisionConfig = Field(default=PrecisionConfig(), description="Number formats in forward and backward.")
    compile: CompileConfig = Field(default=CompileConfig(), description="torch.compile.")
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="Several processes.")
    launch: LaunchConfig = Field(default=LaunchConfig(), description="Where the processes run.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="Loss on held-out data.")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="What a run can be resumed from.")
    skip: SkipConfig = Field(default=SkipConfig(), description="Batches left out of the data stream.")
    monitor: MonitorConfig = Field(default=MonitorConfig(), description="What is measured while training.")
    alerts: AlertsConfig = Field(default=AlertsConfig(), description="Telling somebody who does not look at the page.")
    fault: list[FaultConfig] = Field(
        default_factory=list,
        max_length=16,
        description="Deliberate mistakes, one table each; never written into the run.",
    )

    @field_validator("fault", mode="before")
    @classmethod
    def _one_fault_is_a_list_of_one(cls, value: Any) -> Any:
        """``--set fault.kind=... --set fault.step=...`` and a single ``[fault]`` table are one fault."""
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> TrainConfig:
        if self.task.kind == "gpt" and self.model.d_model % self.model.n_head:
            raise ValueError(
                f"model.d_model = {self.model.d_model} is not a multiple of model.n_head = {self.model.n_head}; "
                f"nearest that fits: {nearest_multiple(self.model.d_model, self.model.n_head)}"
            )
        if self.parallel.processes > 1 and any(fault.kind == "replaced_parameter" for fault in self.fault):
            raise ValueError(
                "fault.kind = replaced_parameter needs parallel.processes = 1: DDP itself would refuse the step"
            )
        if self.curriculum.kind and self.curriculum.first_len > self.task.seq_len:
            raise ValueError(
                f"curriculum.first_len = {self.curriculum.first_len} is more than task.seq_len = {self.task.seq_len}; "
                "nearest that fits: " + str(self.task.seq_len)
            )
        if self.curriculum.kind and not self.task.is_text:
            raise ValueError(
                f"curriculum.kind = {self.curriculum.kind} needs sequences, and task.kind = {self.task.kind} has none; "
                f"kinds that have: {', '.join(TEXT_KINDS)}"
            )
        if self.adapter.kind in ("prefix", "bottleneck") and self.task.kind != "gpt":
            raise ValueError(
                f"adapter.kind = {self.adapter.kind} is made for task.kind = gpt, not {self.task.kind}; lora fits any"
            )
        self._layout_fits()
        self._launch_fits()
        pieces = self.grad_accum_steps * self.parallel.data_processes
        if self.batch_size % pieces:
            raise ValueError(
                f"batch_size = {self.batch_size} cannot be shared out evenly over grad_accum_steps x "
                f"{'parallel.processes' if self.parallel.mode in ('ddp', 'zero1') else 'shares of the data'} = "
                f"{self.grad_accum_steps} x {self.parallel.data_processes}; nearest that fits: "
                f"{nearest_multiple(self.batch_size, pieces)}"
            )
        stops_early = self.early_stopping.patience is not None
        if stops_early and self.evaluation.every_steps is None:
            raise ValueError(
                f"early_stopping.patience = {self.early_stopping.patience} counts evaluations, and "
                "evaluation.every_steps = none leaves only the last one; give it a number of steps"
            )
        if stops_early and self.early_stopping.restore_best and not self.checkpoint.keep_best:
            raise ValueError(
                "early_stopping.restore_best = true takes the weights from their checkpoint, and checkpoint.keep_best "
                "= false keeps none; set one of them to the other value"
            )
        return self

    def _launch_fits(self) -> None:
        launch, processes = self.launch, self.parallel.processes
        if launch.nodes > 1 and launch.engine != "slurm":
            raise ValueError(
                f"launch.engine = {launch.engine} starts all processes on one host, and launch.nodes = {launch.nodes}; "
                "several take launch.engine = slurm"
            )
        if processes % launch.nodes:
            raise ValueError(
                f"parallel.processes = {processes} cannot be shared out evenly to launch.nodes = {launch.nodes}; "
                f"nearest that fits: {nearest_multiple(processes, launch.nodes)}"
            )

    def _layout_fits(self) -> None:
        """What ``parallel.mode`` asks of the model, the optimizer and the faults."""
        parallel, model = self.parallel, self.model
        splits = parallel.layer_processes
        if (splits > 1 or parallel.mode == "pipeline") and self.task.kind not in DIVISIBLE_TASKS:
            what = "parallel.tensor_processes" if parallel.mode == "fsdp" else f"parallel.mode = {parallel.mode}"
            raise ValueError(
                f"{what} needs to know the model's parts, and of task.kind = {self.task.kind} it does not; it takes "
                f"{', '.join(DIVISIBLE_TASKS)}. parallel.mode = ddp, zero1 and fsdp take every task"
            )
        if model.n_head % splits or model.mlp_ratio * model.d_model % splits:
            raise ValueError(
                f"model.n_head = {model.n_head} and the MLP's width {model.mlp_ratio * model.d_model} cannot be shared "
                f"out evenly over {splits} processes per layer; model.n_head that fits: "
                f"{nearest_multiple(model.n_head, splits)}"
            )
        if parallel.mode == "pipeline":
            self._pipeline_fits()
        self._extras_fit()

    def _extras_fit(self) -> None:
        """What needs the whole model, or all of the optimizer's state, in one process."""
        mode = self.parallel.mode
        in_pieces = mode in ("fsdp", "tensor", "pipeline")
        wanted = {
            "ema.decay": in_pieces and self.ema.decay is not None,
            "adversarial.epsilon": in_pieces and self.adversarial.epsilon is not None,
            "adapter.kind": in_pieces and self.adapter.kind is not None,
            "compile.enabled": in_pieces and self.compile.enabled,
            "clip.kind (other than norm)": in_pieces and self.clip.kind != "norm",
            "gradient_noise.eta": in_pieces and self.gradient_noise.eta is not None,
            "curriculum.kind": mode == "pipeline" and self.curriculum.kind is not None,
            "model.gradient_checkpointing": mode == "pipeline" and self.model.gradient_checkpointing,
            "early_stopping.restore_best": (mode == "zero1" or in_pieces)
            and self.early_stopping.patience is not None
            and self.early_stopping.restore_best,
        }
        if refused := [name for name, given in wanted.items() if given]:
            others = "ddp" if refused == ["early_stopping.restore_best"] else "ddp or zero1"
            raise ValueError(
                f"{' and '.join(refused)} cannot be had with parallel.mode = {mode}, where no process holds all of the "
                f"model; leave it out, or use parallel.mode = {others}"
            )
        spoilt = [fault.kind for fault in self.fault if fault.kind not in FAULTS_WITHOUT_THE_MODEL]
        if spoilt and mode != "ddp":
            raise ValueError(
                f"fault.kind = {spoilt[0]} reaches into the model or the optimizer, which parallel.mode = {mode} has "
                f"in pieces; use parallel.mode = ddp, or one of {', '.join(FAULTS_WITHOUT_THE_MODEL)}"
            )

    def _pipeline_fits(self) -> None:
        stages = self.parallel.processes
        if stages > self.model.n_layer:
            raise ValueError(
                f"parallel.mode = pipeline gives each of parallel.processes = {stages} at least one block and "
                f"model.n_layer is {self.model.n_layer}; use at most {self.model.n_layer} processes"
            )
        if self.parallel.schedule == "1f1b" and self.grad_accum_steps < stages:
            raise ValueError(
                f"parallel.schedule = 1f1b needs at least as many micro-batches as stages: grad_accum_steps = "
                f"{self.grad_accum_steps} is below parallel.processes = {stages}. Give grad_accum_steps = {stages} or "
                "more, or parallel.schedule = gpipe"
            )
        if self.model.tied_head:
            raise ValueError(
                "model.tied_head = true: in a pipeline the embedding and the output layer are on different processes; "
                "use tied_head = false, or another parallel.mode"
            )
        if self.precision.kind == "fp16":
            raise ValueError(
                "precision.kind = fp16: in a pipeline each process would see other overflows; use bf16 or fp32"
            )

    def record(self) -> dict[str, Any]:
        """The resolved configuration as JSON-able data, without the faults: what a run directory may know."""
        return self.model_dump(mode="json", exclude={"fault"})

    @property
    def last_step(self) -> int:
        """The step after which training ends: of all ``steps``, or ``stop_after``."""
        return self.steps if self.stop_after is None else min(self.steps, self.stop_after)

    @property
    def tokens_per_step(self) -> int:
        """Training tokens (images for digits) of one full-length optimizer step, over all micro-batches and processes.

        Examples for a task of the user's own, which alone knows how many tokens one has.
        """
        return self.batch_size * (self.task.seq_len if self.task.is_text else 1)


def nearest_multiple(value: int, of: int) -> int:
    return max(of, round(value / of) * of)


PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("Byte-level GPT on Python's standard library: a few minutes on two cores.", {}),
    "quick": (
        "A smaller GPT for a first look: about two minutes on two cores.",
        {
            "steps": 500,
            "model": {"n_layer": 3, "d_model": 96},
            "evaluation": {"every_steps": 100},
            "checkpoint": {"every_steps": 100},
        },
    ),
    "charmlp": (
        "MLP that predicts the next byte from the last 16: seconds, to see the page move.",
        {"task": {"kind": "charmlp"}, "model": {"n_layer": 2}, "steps": 600, "optimizer": {"lr": 1e-3}},
    ),
    "digits-mlp": (
        "MLP that reads handwritten digits: seconds; needs the extra digits.",
        {
            "task": {"kind": "mlp", "val_fraction": 0.2},
            "model": {"n_layer": 2, "dropout": 0.1},
            "steps": 400,
            "batch_size": 64,
            "evaluation": {"every_steps": 50},
        },
    ),
    "digits-cnn": (
        "CNN that reads handwritten digits, shifted and noisy: under a minute; needs the extra digits.",
        {
            "task": {"kind": "cnn", "val_fraction": 0.2, "shift_px": 1, "noise_std": 0.1},
            "model": {"n_layer": 4, "d_model": 32, "batch_norm": True},
            "steps": 400,
            "batch_size": 64,
            "evaluation": {"every_steps": 50},
        },
    ),
    "explosion": (
        "A small GPT whose learning rate rises until it explodes, in seconds: to see an incident, and to try its fix.",
        {
            "steps": 150,
            "task": {"seq_len": 16, "max_data_mib": 0.5},
            "model": {"n_layer": 2, "d_model": 32, "n_head": 2, "qk_norm": True},
            "optimizer": {"kind": "sgd", "lr": 4.0, "weight_decay": 0.0},
            "schedule": {"kind": "constant", "warmup_steps": 200},
            "clip": {"max_norm": None},
            "evaluation": {"every_steps": None, "batches": 1, "sample_bytes": None},
            "checkpoint": {"every_steps": 20, "keep_last": 20},
            "monitor": {"landscape_every": None, "budget": 0.5},
        },
    ),
    "bf16": ("The default GPT with bf16 autocast: for GPUs, slower on CPUs.", {"precision": {"kind": "bf16"}}),
    "fp16": (
        "The default GPT with fp16 autocast and a gradient scaler: for GPUs, slower on CPUs.",
        {"precision": {"kind": "fp16"}},
    ),
    "two-processes": ("The default GPT on two processes (DDP).", {"parallel": {"processes": 2}}),
    "long": (
        "A larger GPT whose text looks like Python: about an hour on two cores.",
        {
            "steps": 6000,
            "model": {"n_layer": 6, "d_model": 192, "n_head": 6},
            "task": {"seq_len": 256},
            "optimizer": {"lr": 1e-3},
        },
    ),
}
"""Starting points for the launch form and ``--preset``: name -> (one sentence, nested overrides)."""
