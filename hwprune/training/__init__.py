"""Fine-tuning with masks: strategies applied at the right step, distillation, BN recalibration."""

from __future__ import annotations

from hwprune.training.checkpoints import Checkpoint
from hwprune.training.config import FinetuneConfig
from hwprune.training.distributed import SINGLE_PROCESS, World, joined
from hwprune.training.evaluate import accuracy
from hwprune.training.finetune import finetune
from hwprune.training.module_state import recalibrate_batchnorm
from hwprune.training.recipe import Recipe
from hwprune.training.result import Progress, TrainResult

__all__ = [
    "SINGLE_PROCESS", "Checkpoint", "FinetuneConfig", "Progress", "Recipe", "TrainResult", "World",
    "accuracy", "finetune", "joined", "recalibrate_batchnorm",
]  # fmt: skip
