"""Without training: what is left of every layer is fitted to the dense network by least squares."""

from __future__ import annotations

from hwprune.least_squares.one_shot import Fitted, OneShot

__all__ = ["Fitted", "OneShot"]
