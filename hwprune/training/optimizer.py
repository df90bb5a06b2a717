"""The optimiser. Its state of pruned and grown weights is kept by ``sparse.SparseParameters``."""

from __future__ import annotations

import torch
from torch import nn

from hwprune.training.recipe import Recipe


def sgd(module: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Return SGD with weight decay on matrices and kernels, none on biases and BN.

    Args:
        module: on its device; every parameter that requires a gradient is trained.
        recipe: rate, momentum and decay.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        # One kernel for all parameters; elsewhere torch decides.
        fused=True if all(p.device.type in ("cpu", "cuda") for p in trained) else None,
    )
