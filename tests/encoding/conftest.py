"""Property tests on a shared machine: a slow moment is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("hwprune", deadline=None)
settings.load_profile("hwprune")
