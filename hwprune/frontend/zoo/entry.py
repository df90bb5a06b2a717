"""What the catalogue knows about one built-in architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hwprune.ir import TensorSpec


@dataclass(frozen=True, slots=True)
class Architecture:
    """One built-in architecture.

    Attributes:
        name: what ``--arch`` calls it.
        build: makes the untrained module; keyword arguments only, ``num_classes`` among them.
        inputs: one specification per input; None is the batch.
        about: one line for people, with the source.
        head: the state-dict key of the final linear layer's weight, shaped (classes, features).
        variants: keyword arguments of the forms that a bare state dict is compared with.
    """

    name: str
    build: Callable[..., nn.Module]
    inputs: tuple[TensorSpec, ...]
    about: str
    head: str
    variants: tuple[Mapping[str, Any], ...] = ({},)
