"""What a part of a run has to offer so that a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Feature(Protocol):
    """A part of a run with a state of its own: averaged weights, ways to the outputs.

    It is put into ``Run.features`` under a name; a run that is resumed makes it anew and then
    gives it back the state that was saved.
    """

    def state(self) -> Mapping[str, Any]:
        """Return all that changes: dicts, lists, numbers, strings, None, tensors, arrays.

        Tensors need not be copied: they are written at once.
        """

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` returned; its tensors are on the CPU."""
