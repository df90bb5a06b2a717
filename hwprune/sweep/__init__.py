"""Many compilations: a grid of them, run side by side, taken up where they were left."""

from hwprune.sweep.grid import Planned, grid
from hwprune.sweep.run import sweep

__all__ = ["Planned", "grid", "sweep"]
