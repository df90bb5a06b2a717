"""EAST's course (arXiv 2411.13545): cycles of density, then exchanges, while ReLU is phased in."""

from __future__ import annotations

from hwprune.sparsity.east.course import east
from hwprune.sparsity.east.cycles import cycles, density_at

__all__ = ["cycles", "density_at", "east"]
