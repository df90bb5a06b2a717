"""The built-in architectures."""

from __future__ import annotations

from hwprune.frontend.zoo.catalogue import ARCHITECTURES, Architecture

__all__ = ["ARCHITECTURES", "Architecture"]
