"""What only extreme sparsity needs: a way to every output, DyReLU phased out, shared weights."""

from __future__ import annotations

from hwprune.extreme.hooks import extreme_hooks

__all__ = ["extreme_hooks"]
