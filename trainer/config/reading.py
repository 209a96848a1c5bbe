"""From files and ``--set`` to a checked configuration."""

from __future__ import annotations

import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from monitor.errors import ConfigError, RunError
from trainer.config.fields import accepted_types, is_section, leaf_types
from trainer.config.refusal import explain, suggestion
from trainer.config.sections import PRESETS, FaultConfig, TrainConfig

MAX_FILE_BYTES = 1 << 20
"""A configuration file is a page of text; anything larger is a mistake (our judgement)."""


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


def require_named(config: TrainConfig, overrides: Sequence[str], run: str) -> None:
    """A run directory may come from anyone, and a task of its own is code that would be run: only who resumes says so.

    Raises:
        ConfigError: ``run`` names a task of its own and ``overrides`` do not.
    """
    if config.task.is_own and not any(override.startswith("task.kind=") for override in overrides):
        raise ConfigError(
            f"run {run} trains {config.task.kind}, which is code outside this trainer, and a run directory is not "
            f"trusted to name code. Name it yourself to go on: --set task.kind={config.task.kind}"
        )


def require_left(config: TrainConfig, step: int, run: str) -> None:
    """Whether there are steps to train after ``step``.

    Raises:
        RunError: there are none, with the field that would change it.
    """
    if step < config.last_step:
        return
    more = "stop_after=none" if config.last_step < config.steps else f"steps={2 * step}"
    raise RunError(
        f"run {run} has a checkpoint at step {step} and {config.last_step} steps in all, so nothing is left to train. "
        f"Give more steps to go on: --set {more}."
    )


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """``config`` with ``{"optimizer.lr": 3e-4, ...}`` changed: what the launch form hands over.

    Raises:
        ConfigError: as in ``load_config``.
    """
    layers = [_Layer("config", config.model_dump(mode="json"))]
    layers += [_Layer("", _nested(name, value)) for name, value in values.items()]
    return _resolve(layers)


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
        raise ConfigError(explain(error, origin)) from None


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
        raise ConfigError(f"Unknown preset {name!r}.{suggestion(name, PRESETS)} Choose from: {', '.join(PRESETS)}.")
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
    if leaf_types(name) == {str} and not text.startswith(('"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _eased(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """``values`` with the spellings that TOML and YAML force on people turned into what they mean.

    ``none``, ``null``, ``off`` and YAML's ``off`` (False) are None where None is accepted, since TOML has no null; and
    YAML 1.1 reads ``3e-4`` as text, so text that is a number is one where a number is wanted.
    """
    eased: dict[str, Any] = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is not None and isinstance(value, dict) and is_section(field.annotation):
            eased[key] = _eased(value, typing.cast(type[BaseModel], field.annotation))
        elif key == "fault":
            tables = [value] if isinstance(value, dict) else value
            eased[key] = [_eased(table, FaultConfig) for table in tables] if _all_tables(tables) else value
        else:
            eased[key] = value if field is None else _eased_leaf(value, accepted_types(field.annotation))
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
