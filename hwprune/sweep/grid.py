"""A sweep's grid: one compilation for each combination of what varies."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwprune.errors import UsageError

_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True, slots=True)
class Planned:
    """One compilation.

    Attributes:
        name: of its folder, made of what varies.
        arguments: of ``hwprune compile``, without the output folder.
    """

    name: str
    arguments: tuple[str, ...]


def grid(
    models: Sequence[str | None], axes: Mapping[str, Sequence[str]], rest: Sequence[str] = ()
) -> list[Planned]:
    """Return every combination, models first and the last axis fastest.

    Args:
        models: the networks; None for an architecture with random weights.
        axes: values of options that vary, such as ``{"--budget": ["32KiB", "64KiB"]}``.
        rest: options that all runs share.

    Raises:
        UsageError: two combinations have one name, or a value stands there twice.
    """
    for option, values in axes.items():
        twice = {value for value in values if list(values).count(value) > 1}
        if twice:
            raise UsageError(f"{option}: {', '.join(sorted(twice))} is there twice")
    planned: list[Planned] = []
    for model, chosen in itertools.product(models, itertools.product(*axes.values())):
        pairs = list(zip(axes, chosen, strict=True))
        given = [] if model is None else [model]
        parts = [Path(path).stem for path in given]
        parts += [_part(option, value) for option, value in pairs]
        options = [text for pair in pairs for text in pair]
        name = "-".join(_UNSAFE.sub("_", part) for part in parts)
        planned.append(Planned(name, (*given, *options, *rest)))
    names = [run.name for run in planned]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(
            f"two runs would share the folder {sorted(twice)[0]}",
            hint="give the models, targets or recipes file names of their own",
        )
    return planned


def _part(option: str, value: str) -> str:
    value = Path(value).stem if value.endswith(".toml") else value
    return f"{option.strip('-')}{value}" if value.isdecimal() else value
