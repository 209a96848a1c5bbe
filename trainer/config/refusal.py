"""What is said when a value is refused: where it came from, its name, what was given, what is accepted."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from trainer.config.fields import accepted_types, annotation_at, model_at

Origin = Mapping[tuple[str, ...], str]
"""Path of a value to the file or ``--set`` that gave it."""


def explain(error: ValidationError, origin: Origin) -> str:
    """One line per refused value; several are listed below a line with their number."""
    lines = [_explain_one(one, origin) for one in error.errors(include_url=False)]
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} values of the configuration are refused.\n" + "\n".join(f"  {line}" for line in lines)


def _explain_one(error: Any, origin: Origin) -> str:
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
            return f"{prefix}{name}: no such {word}.{suggestion(path[-1], names)} Accepted: {', '.join(names)}."
        case "literal_error":
            choices = [choice.strip(" '") for choice in error["ctx"]["expected"].replace(" or ", ",").split(",")]
            near = suggestion(str(given), choices)
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
    optional = types.NoneType in accepted_types(annotation_at(loc))
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


def _origin_of(path: tuple[str, ...], origin: Origin) -> str:
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


def _names_beside(loc: Sequence[str | int]) -> list[str]:
    return list(model_at(loc[:-1]).model_fields)


def _names_in(loc: Sequence[str | int]) -> list[str]:
    return list(model_at(loc).model_fields)


def suggestion(name: str, names: Iterable[str]) -> str:
    """`` Did you mean "cosine"?`` for ``cosin``; empty when nothing is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""


def _shown(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
