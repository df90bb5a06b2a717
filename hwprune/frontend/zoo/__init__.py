"""The built-in architectures."""

from __future__ import annotations

from hwprune.frontend.zoo.catalogue import ARCHITECTURES
from hwprune.frontend.zoo.entry import Architecture

__all__ = ["ARCHITECTURES", "Architecture"]
