"""The whole configuration of a training, validated: one definition for files, ``--set``, the launch form and errors.

``None`` means off, never ``-1``; write ``none`` in a file or after ``--set``. Importing this module leaves torch alone.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import annotated_types
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from monitor.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
"""A configuration file is a page of text; anything larger is a mistake (our judgement)."""


class Section(BaseModel):
    """Values that belong together: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class TaskConfig(Section):
    """What is learnt, and from which data."""

    kind: Literal["gpt", "charmlp"] = Field(
        default="gpt",
        description="What is trained: gpt, a byte-level transformer, or charmlp, an MLP on the last few bytes.",
    )
    data: str | None = Field(
        default=None,
        description="File or folder of text to learn from; none takes the source of Python's standard library.",
    )
    seq_len: int = Field(default=128, ge=2, le=8192, description="Length of one training sequence, in bytes.")
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
        description="Share of the text held out for validation, split by file, dimensionless.",
    )

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
        default=4, ge=1, le=256, description="Number of transformer blocks (hidden layers for charmlp)."
    )
    n_head: int = Field(
        default=4, ge=1, le=256, description="Attention heads per block; d_model must be a multiple of it."
    )
    d_model: int = Field(default=128, ge=8, le=16384, description="Width of the residual stream, in features.")
    mlp_ratio: int = Field(default=4, ge=1, le=16, description="Width of the MLP in a block, as a multiple of d_model.")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Probability of zeroing an activation in training, dimensionless."
    )
    tied_head: bool = Field(
        default=False, description="Whether the output layer shares its weights with the token embedding."
    )
    context: int = Field(
        default=16, ge=1, le=1024, description="Bytes that charmlp sees before the one it predicts; gpt ignores it."
    )


class OptimizerConfig(Section):
    """How a gradient becomes an update."""

    kind: Literal["adamw", "sgd"] = Field(default="adamw", description="Update rule: adamw, or sgd with momentum.")
    lr: float = Field(default=2e-3, gt=0, le=100, description="Peak learning rate, before the schedule's factor.")
    weight_decay: float = Field(
        default=0.1,
        ge=0,
        le=10,
        description="Decoupled decay of matrices per unit of learning rate; norms and biases are not decayed.",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW: decay of the gradient's running mean, per step.")
    beta2: float = Field(
        default=0.95, ge=0, lt=1, description="AdamW: decay of the squared gradient's running mean, per step."
    )
    eps: float = Field(
        default=1e-8, gt=0, le=1, description="AdamW: added to the root of the second moment, in gradient units."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD: decay of the velocity, per step.")
    nesterov: bool = Field(default=False, description="SGD: whether to look ahead along the velocity (Nesterov).")


class ScheduleConfig(Section):
    """The factor on the learning rate, a pure function of the step."""

    kind: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine", description="Shape after warm-up: cosine, linear, constant, or wsd (warm-up, stable, decay)."
    )
    warmup_steps: int = Field(
        default=50, ge=0, description="Optimizer steps of linear warm-up from near zero to the peak."
    )
    min_lr_ratio: float = Field(
        default=0.1, ge=0, le=1, description="Floor of the schedule, as a share of the peak learning rate."
    )
    decay_steps: int | None = Field(
        default=None, ge=1, description="wsd: optimizer steps of the final decay; none takes a fifth of all steps."
    )


class ClipConfig(Section):
    """Gradient clipping."""

    max_norm: float | None = Field(
        default=1.0,
        gt=0,
        description="Largest L2 norm of the whole gradient that the optimizer sees; none turns clipping off.",
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


class ParallelConfig(Section):
    """Several processes, started by torchrun."""

    processes: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Processes on this machine that a launch starts; each holds a full copy (DDP).",
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(
        default="auto",
        description="Library that carries gradients between processes; auto takes nccl on CUDA and gloo on CPU.",
    )
    timeout_s: float = Field(
        default=120.0, ge=5, le=86400, description="Seconds after which a collective that hangs is an error."
    )


class EvaluationConfig(Section):
    """Loss on held-out data."""

    every_steps: int | None = Field(
        default=200, ge=1, description="Optimizer steps between validation passes; none leaves only the last one."
    )
    batches: int = Field(
        default=8, ge=1, le=100_000, description="Batches in one validation pass, the same ones each time."
    )


class CheckpointConfig(Section):
    """What a run can be resumed from."""

    every_steps: int | None = Field(
        default=200, ge=1, description="Optimizer steps between checkpoints; none leaves only the last one."
    )
    keep_last: int = Field(
        default=2, ge=1, le=10_000, description="Number of newest complete checkpoints that are kept."
    )


class MonitorConfig(Section):
    """What is measured while training."""

    enabled: bool = Field(
        default=True, description="Whether measurements are recorded; the run directory is made either way."
    )
    landscape_every: int | None = Field(
        default=100, ge=1, description="Optimizer steps between samples of the loss landscape; none turns them off."
    )
    budget: float = Field(
        default=0.02, gt=0, le=1, description="Share of the step time that measuring may cost, dimensionless."
    )


FaultKind = Literal[
    "lr_factor",
    "grad_factor",
    "weight_scale",
    "repeated_token",
    "random_bytes",
    "shuffled_labels",
    "nan_activation",
    "skip_zero_grad",
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
    layer: str | None = Field(
        default=None, description="Part of a module's or parameter's name; none takes the middle of the model."
    )


class TrainConfig(Section):
    """One training, from the data to the last checkpoint."""

    name: str | None = Field(
        default=None, max_length=80, description="Short name of the run; none takes the task's name."
    )
    steps: int = Field(default=1200, ge=1, le=10**9, description="Optimizer steps to train in all.")
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
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="How a gradient becomes an update.")
    schedule: ScheduleConfig = Field(
        default=ScheduleConfig(), description="The factor on the learning rate over the steps."
    )
    clip: ClipConfig = Field(default=ClipConfig(), description="Gradient clipping.")
    precision: PrecisionConfig = Field(default=PrecisionConfig(), description="Number formats in forward and backward.")
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="Several processes.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="Loss on held-out data.")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="What a run can be resumed from.")
    monitor: MonitorConfig = Field(default=MonitorConfig(), description="What is measured while training.")
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
                f"nearest that fits: {_nearest_multiple(self.model.d_model, self.model.n_head)}"
            )
        pieces = self.grad_accum_steps * self.parallel.processes
        if self.batch_size % pieces:
            raise ValueError(
                f"batch_size = {self.batch_size} cannot be shared out evenly over grad_accum_steps x "
                f"parallel.processes = {self.grad_accum_steps} x {self.parallel.processes}; nearest that fits: "
                f"{_nearest_multiple(self.batch_size, pieces)}"
            )
        return self

    def record(self) -> dict[str, Any]:
        """The resolved configuration as JSON-able data, without the faults: what a run directory may know."""
        return self.model_dump(mode="json", exclude={"fault"})

    @property
    def tokens_per_step(self) -> int:
        """Training tokens (predicted bytes) of one optimizer step, over all micro-batches and processes."""
        return self.batch_size * self.task.seq_len


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


# --- loading ----------------------------------------------------------------------------------------------------------


def load_config(path: str | Path | None, overrides: Sequence[str] = (), *, preset: str | None = None) -> TrainConfig:
    """The configuration of ``preset``, then the file at ``path`` (TOML, YAML, JSON), then ``a.b=c``; later ones win.

    Raises:
        ConfigError: naming the file or ``--set``, the field, the value, what is accepted and the nearest name; when
            several values are refused they are all listed.
    """
    layers = [_Layer("preset", _preset(preset))]
    if path is not None:
        layers.append(_Layer(str(path), _read_file(Path(path))))
    return _resolve([*layers, *map(_parse_override, overrides)])


def from_record(
    record: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str = "run.json",
    changed: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """The configuration that ``TrainConfig.record`` wrote, then ``changed`` values, then ``a.b=c``; later ones win.

    Raises:
        ConfigError: as in ``load_config``.
    """
    layers = [_Layer(source, dict(record))]
    layers += [_Layer("attempt.json", _nested(name, value)) for name, value in (changed or {}).items()]
    return _resolve([*layers, *map(_parse_override, overrides)])


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """``config`` with ``{"optimizer.lr": 3e-4, ...}`` changed: what the launch form hands over.

    Raises:
        ConfigError: as in ``load_config``.
    """
    layers = [_Layer("config", config.model_dump(mode="json"))]
    layers += [_Layer("", _nested(name, value)) for name, value in values.items()]
    return _resolve(layers)


def to_overrides(config: TrainConfig) -> list[str]:
    """The shortest list of ``a.b=c`` that makes ``config``, without faults, out of the defaults; for a command line."""
    return [f"{name}={_as_override(value)}" for name, value in differences(TrainConfig(), config).items()]


def differences(before: TrainConfig, after: TrainConfig) -> dict[str, Any]:
    """``{"optimizer.lr": 3e-4, ...}``: what ``after`` says differently, without faults; ``with_values`` takes it."""
    old = dict(_leaves(before.record()))
    return {name: value for name, value in _leaves(after.record()) if value != old[name]}


def describe(config: TrainConfig) -> str:
    """One line that says what would be trained."""
    model = config.model
    what = (
        f"byte-level GPT, {model.n_layer} blocks of {model.d_model}"
        if config.task.kind == "gpt"
        else f"next-byte MLP, {model.n_layer} layers of {model.d_model}"
    )
    data = config.task.data or "Python's standard library"
    return (
        f"{what}, on {data}; {config.steps:,} steps of {config.batch_size} x {config.task.seq_len} bytes; "
        f"{config.optimizer.kind} lr {config.optimizer.lr:g}, {config.schedule.kind}; {config.precision.kind}; "
        f"seed {config.seed}"
    )


@dataclass(frozen=True, slots=True)
class FormField:
    """One value of the configuration, as a form shows it."""

    name: str
    """Dotted: ``optimizer.lr``."""
    kind: str
    """``int``, ``float``, ``bool`` or ``str``."""
    default: Any
    optional: bool
    """Whether ``None`` (off) is accepted."""
    choices: tuple[str, ...]
    """Accepted words; empty when the field is free."""
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool
    exclusive_maximum: bool
    description: str


def form_fields() -> tuple[FormField, ...]:
    """Every value except the faults, in file order, top-level values first."""
    return tuple(_form_fields(TrainConfig, ""))


# --- how it works -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """Nested values and where they came from."""

    source: str
    values: dict[str, Any]


def _resolve(layers: Sequence[_Layer]) -> TrainConfig:
    merged: dict[str, Any] = {}
    origin: dict[tuple[str, ...], str] = {}
    for layer in layers:
        _merge(merged, layer.values, layer.source, origin, ())
    try:
        return TrainConfig.model_validate(_eased(merged, TrainConfig))
    except ValidationError as error:
        raise ConfigError(_explain(error, merged, origin)) from None


def _merge(
    into: dict[str, Any],
    values: Mapping[str, Any],
    source: str,
    origin: dict[tuple[str, ...], str],
    at: tuple[str, ...],
) -> None:
    for key, value in values.items():
        here = (*at, str(key))
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value, source, origin, here)
        elif isinstance(value, Mapping):
            into[key] = {}
            origin[here] = source
            _merge(into[key], value, source, origin, here)
        else:
            into[key] = value
            origin[here] = source


def _preset(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset {name!r}.{_suggestion(name, PRESETS)} Choose from: {', '.join(PRESETS)}.")
    return PRESETS[name][1]


def _read_file(path: Path) -> dict[str, Any]:
    parsers = {".toml": tomllib.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load, ".json": json.loads}
    if path.suffix.lower() not in parsers:
        raise ConfigError(
            f"configuration file {path}: cannot tell its format from {path.suffix!r}. "
            "Accepted: .toml, .yaml, .yml, .json."
        )
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"configuration file {path} does not exist. Give the path of a TOML, YAML or JSON file."
        ) from None
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(
            f"configuration file {path} is larger than {MAX_FILE_BYTES >> 20} MiB, so it is not a configuration."
        )
    try:
        parsed = parsers[path.suffix.lower()](content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration file {path} is not UTF-8 text (byte {error.start}).") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"configuration file {path} cannot be parsed: {' '.join(str(error).split())}.") from None
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise ConfigError(
            f"configuration file {path} holds a {type(parsed).__name__}; sections and values are accepted."
        )
    return parsed


def _parse_override(text: str) -> _Layer:
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name or not all(name.split(".")):
        raise ConfigError(f"--set {text}: not of the form name=value, such as optimizer.lr=3e-4.")
    return _Layer("--set", _nested(name, _parse_value(name, value.strip())))


def _nested(name: str, value: Any) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def _parse_value(name: str, text: str) -> Any:
    """TOML's reading of ``text``; the text itself when it is not TOML or when the field holds text."""
    if _leaf_types(name) == {str} and not text.startswith(('"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _leaf_types(name: str) -> set[Any]:
    """The types that the field ``a.b`` accepts, without None; empty when there is no such field."""
    model: type[BaseModel] = TrainConfig
    *sections, leaf = name.split(".")
    for section in sections:
        field = model.model_fields.get(section)
        if field is None or not _is_section(field.annotation):
            return set()
        model = typing.cast(type[BaseModel], field.annotation)
    field = model.model_fields.get(leaf)
    return set() if field is None else _accepted_types(field.annotation) - {types.NoneType}


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _accepted_types(annotation: Any) -> set[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set(typing.get_args(annotation))
    return {annotation}


def _eased(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """``values`` with the spellings that TOML and YAML force on people turned into what they mean.

    ``none``, ``null``, ``off`` and YAML's ``off`` (False) are None where None is accepted, since TOML has no null; and
    YAML 1.1 reads ``3e-4`` as text, so text that is a number is one where a number is wanted.
    """
    eased: dict[str, Any] = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is not None and isinstance(value, dict) and _is_section(field.annotation):
            eased[key] = _eased(value, typing.cast(type[BaseModel], field.annotation))
        elif key == "fault":
            tables = [value] if isinstance(value, dict) else value
            eased[key] = [_eased(table, FaultConfig) for table in tables] if _all_tables(tables) else value
        else:
            eased[key] = value if field is None else _eased_leaf(value, _accepted_types(field.annotation))
    return eased


def _all_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _eased_leaf(value: Any, accepted: set[Any]) -> Any:
    if types.NoneType in accepted:
        if isinstance(value, str) and value.strip().lower() in ("none", "null", "off"):
            return None
        if value is False and bool not in accepted:
            return None
    if isinstance(value, str) and float in accepted:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(error: ValidationError, merged: Mapping[str, Any], origin: Mapping[tuple[str, ...], str]) -> str:
    lines = [_explain_one(one, origin) for one in error.errors(include_url=False)]
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} values of the configuration are refused.\n" + "\n".join(f"  {line}" for line in lines)


def _explain_one(error: Any, origin: Mapping[tuple[str, ...], str]) -> str:
    loc = tuple(part for part in error["loc"])
    path = tuple(str(part) for part in loc)
    name = _dotted(loc)
    where = _origin_of(path, origin)
    prefix = f"{where}: " if where else ""
    given = error["input"]
    match error["type"]:
        case "extra_forbidden":
            names = _names_beside(loc)
            word = "section or field" if len(loc) == 1 else "field"
            return f"{prefix}{name}: no such {word}.{_suggestion(path[-1], names)} Accepted: {', '.join(names)}."
        case "literal_error":
            choices = [choice.strip(" '") for choice in error["ctx"]["expected"].replace(" or ", ",").split(",")]
            near = _suggestion(str(given), choices)
            return f"{prefix}{name} = {_shown(given)}: unknown.{near} Choose from: {', '.join(choices)}."
        case "missing":
            return f"{prefix}{name}: missing. Give it a value."
        case "value_error":
            return f"{error['ctx']['error']}."
        case "model_type" | "model_attributes_type":
            example = f"{name}.{_names_in(loc)[0]}=..."
            return (
                f"{prefix}{name} = {_shown(given)}: is a section, so its values are set one by one, such as {example}"
            )
    optional = types.NoneType in _accepted_types(_annotation_at(loc))
    return f"{prefix}{name} = {_shown(given)}: must be {_wanted(error)}{', or none' if optional else ''}."


def _wanted(error: Any) -> str:
    """What the field accepts, in words, from pydantic's error type."""
    bounds = error.get("ctx", {})
    words = {
        "greater_than": "greater than {gt:g}",
        "greater_than_equal": "{ge:g} or more",
        "less_than": "less than {lt:g}",
        "less_than_equal": "{le:g} or less",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "int_parsing": "a whole number",
        "float_type": "a number",
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "bool_parsing": "true or false",
        "string_type": "text",
        "string_too_long": "text of at most {max_length} characters",
        "list_type": "a list of tables",
    }
    if error["type"] in words:
        return words[error["type"]].format(**bounds)
    return error["msg"].replace("Input should be ", "")


def _origin_of(path: tuple[str, ...], origin: Mapping[tuple[str, ...], str]) -> str:
    """The file or ``--set`` that gave the value; faults written as one table have no index in their path."""
    plain = tuple(part for part in path if not part.isdigit())
    for candidate in (path, plain, *(plain[:end] for end in range(len(plain) - 1, 0, -1))):
        if candidate in origin:
            return origin[candidate]
    return ""


def _dotted(loc: Sequence[str | int]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _model_at(loc: Sequence[str | int]) -> type[BaseModel]:
    model: type[BaseModel] = TrainConfig
    for part in loc:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if part == "fault":
            model = FaultConfig
        elif field is not None and _is_section(field.annotation):
            model = typing.cast(type[BaseModel], field.annotation)
    return model


def _names_beside(loc: Sequence[str | int]) -> list[str]:
    return list(_model_at(loc[:-1]).model_fields)


def _names_in(loc: Sequence[str | int]) -> list[str]:
    return list(_model_at(loc).model_fields)


def _annotation_at(loc: Sequence[str | int]) -> Any:
    field = _model_at(loc[:-1]).model_fields.get(str(loc[-1])) if loc else None
    return None if field is None else field.annotation


def _suggestion(name: str, names: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""


def _shown(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest_multiple(value: int, of: int) -> int:
    return max(of, round(value / of) * of)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_override(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    return repr(value)


def _form_fields(model: type[BaseModel], prefix: str) -> Iterator[FormField]:
    for name, field in model.model_fields.items():
        if name == "fault":
            continue
        if _is_section(field.annotation):
            yield from _form_fields(typing.cast(type[BaseModel], field.annotation), f"{prefix}{name}.")
        else:
            yield _form_field(f"{prefix}{name}", field)


def _form_field(name: str, field: Any) -> FormField:
    accepted = _accepted_types(field.annotation)
    (inner,) = accepted - {types.NoneType}
    choices = tuple(typing.get_args(inner)) if typing.get_origin(inner) is Literal else ()
    low: list[tuple[Any, bool]] = [
        (bound.ge, False) for bound in field.metadata if isinstance(bound, annotated_types.Ge)
    ]
    low += [(bound.gt, True) for bound in field.metadata if isinstance(bound, annotated_types.Gt)]
    high: list[tuple[Any, bool]] = [
        (bound.le, False) for bound in field.metadata if isinstance(bound, annotated_types.Le)
    ]
    high += [(bound.lt, True) for bound in field.metadata if isinstance(bound, annotated_types.Lt)]
    minimum, exclusive_minimum = low[0] if low else (None, False)
    maximum, exclusive_maximum = high[0] if high else (None, False)
    return FormField(
        name=name,
        kind="str" if choices else inner.__name__,
        default=field.default,
        optional=types.NoneType in accepted,
        choices=choices,
        minimum=minimum,
        maximum=maximum,
        exclusive_minimum=exclusive_minimum,
        exclusive_maximum=exclusive_maximum,
        description=field.description,
    )
