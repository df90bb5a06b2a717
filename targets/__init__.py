"""Device profiles: one TOML file per device, every number with its source."""

from hwprune.targets.profile import FactRow, Runtime, Target
from hwprune.targets.registry import aliases, load, load_file, names

__all__ = ["FactRow", "Runtime", "Target", "aliases", "load", "load_file", "names"]
