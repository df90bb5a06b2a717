"""Turn pydantic's findings into a few lines: field, what was given, what was expected."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hwprune.targets.schema import FACT_FORM, Fact, Profile

_SHOWN = 8  # more than this and the first ones are the cause of the rest


def give(value: Any) -> str:
    """Return a value as the file's author would recognise it, shortened, on one line."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=True)
    except RecursionError:
        return "{...}, nested too deeply"
    return text if len(text) <= 60 else text[:57] + "..."


def explain(error: ValidationError, *, path: str, origins: Mapping[str, str]) -> str:
    """Return a message with one line per problem.

    Args:
        error: what pydantic found in the file.
        path: the file, named first.
        origins: for each inherited field, the file it stands in.
    """
    found = error.errors(include_url=False)
    lines = [f"  {_line(details, origins)}" for details in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"  and {len(found) - _SHOWN} more")
    return "\n".join([f"{path} is not a valid device profile:", *lines])


def _line(details: ErrorDetails, origins: Mapping[str, str]) -> str:
    loc = details["loc"]
    field = _dotted(loc)
    where = _origin(field, origins)
    kind = details["type"]
    if kind == "extra_forbidden":
        known = list(_fields_at(loc[:-1]))
        close = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
        return f"{_dotted(loc[:-1], str(loc[-1]))}: unknown field{where}; {advice}"
    expected = _expected(loc)
    if kind == "missing":
        return f"{field}: missing{where}; expected {expected}"
    given = f"{field} = {give(details['input'])}"
    if kind == "bare":
        return f"{given}{where}: expected {FACT_FORM}: every value carries its source"
    if kind in ("size", "repeated"):
        # These know what is wrong, which the description of the field does not.
        return f"{given}{where}: {details['msg']}; expected {expected}"
    bound = _bound(details)
    return f"{given}{where}: expected {expected}{f' ({bound})' if bound else ''}"


def _dotted(loc: tuple[int | str, ...], *more: str) -> str:
    text = ""
    for part in (*loc, *more):
        # A key may be any text at all; one with a dot or a control character is shown quoted.
        plain = isinstance(part, str) and part.replace("_", "").replace("-", "").isalnum()
        shown = f"[{part}]" if isinstance(part, int) else part if plain else give(part)
        text += shown if not text or isinstance(part, int) else f".{shown}"
    return text


def _origin(field: str, origins: Mapping[str, str]) -> str:
    """Say where an inherited field stands, asking for its table where it is not known itself."""
    while field:
        if field in origins:
            return f" (inherited from {origins[field]})"
        field = field.rpartition(".")[0]
    return ""


def _bound(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    for key, words in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
        if key in context:
            return f"{words} {context[key]:,}"
    return ""


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model inside ``X``, ``X | None`` or nothing."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _fields_at(loc: tuple[int | str, ...]) -> typing.Iterable[str]:
    model: type[BaseModel] | None = Profile
    for part in loc:
        info = model.model_fields.get(str(part)) if model else None
        model = _model_of(info.annotation) if info else None
    return model.model_fields if model else ()


def _expected(loc: tuple[int | str, ...]) -> str:
    """Return the description of the field; a fact's ``value`` is described by the fact's field."""
    model: type[BaseModel] | None = Profile
    description = "another value"
    for part in loc:
        info = model.model_fields.get(str(part)) if model else None
        if info is None:
            break
        inside_fact = model is not None and issubclass(model, Fact)
        if not (inside_fact and part == "value"):
            description = info.description or description
        model = _model_of(info.annotation)
        if model is not None and issubclass(model, Fact) and part == loc[-1]:
            description = f"{FACT_FORM} with {description}"
    return description
