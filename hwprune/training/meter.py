"""How good the network is now, on the validation split: the only split that choices may see."""

from __future__ import annotations

from typing import Literal

from hwprune.training.evaluate import predictions, share_of
from hwprune.training.modes import set_mode
from hwprune.training.setting import Setting


class Meter:
    """Measures against labels, or against the dense model's answers where there are none.

    Made before anything is pruned: without a teacher the answers are the module's own.

    Attributes:
        metric: ``accuracy`` against labels, ``agreement`` with the dense model without them.
    """

    def __init__(self, setting: Setting) -> None:
        """Hold the validation split and what its samples should be."""
        self._setting = setting
        self._validation = setting.batches(setting.data.validation)
        self.metric: Literal["accuracy", "agreement"] = "accuracy"
        targets = self._validation.labels
        if targets is None:
            self.metric = "agreement"
            targets = predictions(setting.teacher or setting.module, self._validation)
        self._targets = targets

    def measure(self) -> float:
        """Return the metric of the module; leaves it in training mode."""
        setting = self._setting
        share = share_of(setting.module, self._validation, self._targets)
        set_mode(setting.module, training=True, train_batchnorm=setting.train_batchnorm)
        return share
