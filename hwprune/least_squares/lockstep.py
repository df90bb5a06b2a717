"""Forward passes that stop where the uses of a parameter end, and go on when it was solved for.

Least squares needs each layer's inputs as the layers before it were solved for. Run from the start
for every layer, that takes time with the square of the depth. Here each batch passes through the
network once, in a thread of its own; one thread runs at a time, so nothing depends on their speed.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection

import torch
from torch import nn

from hwprune.least_squares.parameter_uses import ParameterUse, ParameterUses, Stop, watch


class Pass:
    """One batch on its way through a network.

    Args:
        module: in eval mode. Its parameters are read as they are when they are reached. The pass
            has a copy of all else, where a forward pass may leave something for its later steps.
        uses: what a survey found.
        left: the parameters that can still be asked for.
        inputs: returns the batch; called at each start.
    """

    def __init__(
        self,
        module: nn.Module,
        uses: ParameterUses,
        left: Collection[str],
        inputs: Callable[[], tuple[torch.Tensor, ...]],
    ) -> None:
        """Wait at the start."""
        self._module = copy.deepcopy(module, {id(p): p for p in module.parameters()})
        self._uses, self._left, self._inputs = uses, left, inputs
        self._thread: threading.Thread | None = None
        self._at, self._target, self._closing = -1, "", False
        self._found: list[ParameterUse] = []
        self._error: BaseException | None = None

    def to(self, name: str) -> list[ParameterUse]:
        """Run to where the uses of a parameter end and return them; from the start if that is past.

        Empty where this batch does not use it as the surveyed one did.
        """
        place = self._uses.ends.index(name)
        if place <= self._at:
            self.close()
        if self._thread is None:
            self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._at, self._target, self._found = place, name, []
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        """Forget how far it came."""
        if self._thread is not None:
            self._closing = True
            self._go.release()
            self._thread.join()
        self._thread, self._at, self._closing = None, -1, False

    def _run(self) -> None:
        self._go.acquire()
        counts = {name: count for name, count in self._uses.counts().items() if name in self._left}
        try:
            if not self._closing:
                watch(self._module, counts, self._inputs(), self._ended)
        except BaseException as error:  # raised again in the thread that waits
            self._error = error
        self._back.release()

    def _ended(self, found: list[ParameterUse]) -> None:
        if found[0].name == self._target and not self._closing:
            self._found = found
            self._back.release()
            self._go.acquire()
        if self._closing:
            raise Stop
