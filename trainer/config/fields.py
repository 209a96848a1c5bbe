"""Looking at the models: which sections and fields there are, and what a field accepts."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from trainer.config.sections import FaultConfig, TrainConfig


def is_section(annotation: Any) -> bool:
    """Whether a field of that type is a section of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def accepted_types(annotation: Any) -> set[Any]:
    """``{float, NoneType}`` for ``float | None``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set(typing.get_args(annotation))
    return {annotation}


def leaf_types(name: str) -> set[Any]:
    """The types that the field ``a.b`` accepts, without None; empty when there is no such field."""
    model: type[BaseModel] = TrainConfig
    *sections, leaf = name.split(".")
    for section in sections:
        field = model.model_fields.get(section)
        if field is None or not is_section(field.annotation):
            return set()
        model = typing.cast(type[BaseModel], field.annotation)
    field = model.model_fields.get(leaf)
    return set() if field is None else accepted_types(field.annotation) - {types.NoneType}


def model_at(loc: Sequence[str | int]) -> type[BaseModel]:
    """The innermost section that pydantic's error location passes through."""
    model: type[BaseModel] = TrainConfig
    for part in loc:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if part == "fault":
            model = FaultConfig
        elif field is not None and is_section(field.annotation):
            model = typing.cast(type[BaseModel], field.annotation)
    return model


def annotation_at(loc: Sequence[str | int]) -> Any:
    """The type of the field at pydantic's error location; None when there is no such field."""
    field = model_at(loc[:-1]).model_fields.get(str(loc[-1])) if loc else None
    return None if field is None else field.annotation


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in nested values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
