"""A configuration for people and for other programs: form fields, one line of words, a command line, differences."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel

from trainer.config.fields import accepted_types, is_section, leaves
from trainer.config.sections import DIGIT_KINDS, TrainConfig


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
    open_choices: bool
    """Whether text of another form is accepted beside ``choices``."""
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool
    exclusive_maximum: bool
    description: str


def form_fields() -> tuple[FormField, ...]:
    """Every value except the faults, in file order, top-level values first."""
    return tuple(_form_fields(TrainConfig, ""))


def _form_fields(model: type[BaseModel], prefix: str) -> Iterator[FormField]:
    for name, field in model.model_fields.items():
        if name == "fault":
            continue
        if is_section(field.annotation):
            yield from _form_fields(typing.cast(type[BaseModel], field.annotation), f"{prefix}{name}.")
        else:
            yield _form_field(f"{prefix}{name}", field)


def _form_field(name: str, field: Any) -> FormField:
    accepted = accepted_types(field.annotation)
    (inner,) = accepted - {types.NoneType}
    words = tuple(typing.get_args(inner)) if typing.get_origin(inner) is Literal else ()
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
        kind="str" if words else inner.__name__,
        default=field.default,
        optional=types.NoneType in accepted,
        choices=words or tuple(field.examples or ()),
        open_choices=not words and bool(field.examples),
        minimum=minimum,
        maximum=maximum,
        exclusive_minimum=exclusive_minimum,
        exclusive_maximum=exclusive_maximum,
        description=field.description,
    )


def describe(config: TrainConfig) -> str:
    """One line that says what would be trained."""
    model, task = config.model, config.task
    unit = "byte" if task.tokens == "bytes" else "token"
    what = {
        "gpt": f"{unit}-level GPT, {model.n_layer} blocks of {model.d_model}",
        "charmlp": f"next-{unit} MLP, {model.n_layer} layers of {model.d_model}",
        "mlp": f"MLP, {model.n_layer} layers of {model.d_model}",
        "cnn": f"CNN, {model.n_layer} convolutions of {model.d_model}",
    }.get(task.kind, task.kind)
    if config.adapter.kind:
        what += f", only its {config.adapter.kind} adapter"
    data = "handwritten digits" if task.kind in DIGIT_KINDS else task.data or "Python's standard library"
    size = f"{config.batch_size} x {task.seq_len} {unit}s" if task.is_text else f"{config.batch_size} examples"
    return (
        f"{what}{'' if task.is_own else f', on {data}'}; {config.steps:,} steps of {size}; "
        f"{config.optimizer.kind} lr {config.optimizer.lr:g}, {config.schedule.kind}; {config.precision.kind}; "
        f"seed {config.seed}"
    )


def to_overrides(config: TrainConfig) -> list[str]:
    """The shortest list of ``a.b=c`` that makes ``config``, without faults, out of the defaults; for a command line."""
    return [f"{name}={_as_override(value)}" for name, value in differences(TrainConfig(), config).items()]


def differences(before: TrainConfig, after: TrainConfig) -> dict[str, Any]:
    """``{"optimizer.lr": 3e-4, ...}``: what ``after`` says differently, without faults; ``with_values`` takes it."""
    old = dict(leaves(before.record()))
    return {name: value for name, value in leaves(after.record()) if value != old[name]}


def _as_override(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    return repr(value)
