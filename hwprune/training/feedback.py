"""Dense weights that go on learning behind the masked ones (DPF, arXiv 2006.07253).

Forward and backward run at the masked weights; the optimiser moves the dense ones with the whole
gradient, weight decay included. Between two steps the parameters hold the masked weights, so that
whatever measures, saves or checks sees exact zeros. When feedback ends, the weights are masked for
good, momentum included, and the ordinary rules hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from hwprune.sparsity import Feedback
from hwprune.training.sparse import SparseParameters


class FeedbackWeights:
    """Keeps the dense weights while a strategy says so; does nothing otherwise.

    Args:
        sparse: the parameters.
        plan: what the strategy says, None where there is never any feedback.
        due: progress -> the step before which something happens.
    """

    def __init__(
        self, sparse: SparseParameters, plan: Feedback | None, due: Callable[[float], int]
    ) -> None:
        """Begin without dense weights."""
        self._sparse, self._plan, self._over = sparse, plan, plan is None
        self._first, self._last = (due(plan.start), due(plan.end)) if plan else (0, 0)

    def before_events(self, step: int) -> None:
        """Take the present weights as the dense ones, where feedback begins at this step."""
        if self._over or self._plan is None or self._sparse.dense or step < self._first:
            return
        self._sparse.keep_dense(self._plan.initial)

    def after_events(self, step: int, optimizer: torch.optim.Optimizer, *, at_end: bool) -> None:
        """Give the dense weights up, where feedback ends at this step."""
        if self._sparse.dense and (at_end or step >= self._last):
            self._sparse.drop_dense(optimizer)
            self._over = True

    @contextmanager
    def unveiled(self) -> Iterator[None]:
        """Let the parameters be the dense weights inside, and their masked copies afterwards."""
        parameters = self._sparse.parameters
        if not self._sparse.dense:
            yield
            return
        masked = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self._sparse.dense[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = masked[name]
        self._sparse.show_dense()

    def state(self) -> Mapping[str, object]:
        """Return the dense weights, and whether all is over."""
        return {"over": self._over, "dense": dict(self._sparse.dense)}

    def load(self, state: Mapping[str, object]) -> None:
        """Take back what ``state`` returned."""
        dense = state["dense"]
        assert isinstance(dense, Mapping)
        self._over = bool(state["over"])
        self._sparse.dense = {
            name: torch.empty_like(self._sparse.parameters[name].data).copy_(tensor)
            for name, tensor in dense.items()
        }
