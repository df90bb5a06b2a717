"""``hwprune.Pruner`` in Lightning's Trainer, as a callback."""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING, Any

from hwprune.errors import UsageError
from hwprune.pruner import Pruner

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback
else:
    from lightning.pytorch import Callback


class PrunerCallback(Callback):
    """Prunes the network while the Trainer trains it; its state is in every checkpoint.

    Args:
        network: where in the LightningModule the network is, such as ``"net"``; itself without.
        steps: how often the optimiser will step; what the Trainer estimates without.
        options: of ``hwprune.Pruner``.

    Attributes:
        pruner: from the start of the training on; ``callback.pruner.export("out")`` at its end.
    """

    pruner: Pruner

    def __init__(self, *, network: str = "", steps: int | None = None, **options: Any) -> None:
        self._network, self._steps, self._options = network, steps, options
        self._saved: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the Pruner: weights and optimisers are those of the checkpoint by now."""
        steps = trainer.estimated_stepping_batches if self._steps is None else self._steps
        if not math.isfinite(steps):
            raise UsageError(
                "the Trainer does not know how often the optimiser will step",
                hint="give the Trainer max_steps or max_epochs, or the callback steps=",
            )
        module = operator.attrgetter(self._network)(pl_module) if self._network else pl_module
        if hasattr(self, "pruner"):
            self.pruner.detach()
        self.pruner = Pruner(module, trainer.optimizers, steps=int(steps), **self._options)
        if self._saved:
            self.pruner.load_state_dict(self._saved)
            self._saved = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the Pruner's state, for Lightning's checkpoint."""
        return self.pruner.state_dict() if hasattr(self, "pruner") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until there is a Pruner."""
        self._saved = state_dict
