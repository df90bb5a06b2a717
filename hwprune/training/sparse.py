"""The parameters that are pruned: their masks, their pretrained values, their optimiser state.

Pruned weights are plain zeros in the parameter itself, not a product with a mask. So autograd
gives the dense gradient for nothing, the forward pass costs nothing extra, and what is saved is
what runs.
They stay exactly zero because their gradient and their momentum are zero at every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwprune.errors import HwpruneError, UsageError
from hwprune.ir import Masks
from hwprune.sparsity import Initial


class SparseParameters:
    """Holds the prunable parameters of a module, by name.

    Args:
        module: the network, already on its device.
        names: keys of its prunable parameters; a tied one once.

    Raises:
        UsageError: no name at all.
        HwpruneError: a name that is not a parameter of the module.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        """Take one copy of the pretrained values."""
        if not names:
            raise UsageError(
                "no parameter can be pruned: the selection is empty",
                hint="the network needs a Conv, ConvTranspose, Gemm or MatMul weight",
            )
        known = dict(module.named_parameters(remove_duplicate=False))
        missing = [name for name in names if name not in known]
        if missing:
            raise HwpruneError(f"not parameters of the network: {', '.join(missing)}")
        self.parameters: dict[str, nn.Parameter] = {name: known[name] for name in names}
        self.shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        self.pretrained = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.weights = sum(p.numel() for p in self.parameters.values())
        self.masks = Masks({n: np.ones(shape, dtype=np.bool_) for n, shape in self.shapes.items()})
        # True where pruned, in the parameter's own device and memory order; absent while nothing
        # is pruned in that tensor, so that a dense network pays nothing.
        self._dead: dict[str, torch.Tensor] = {}

    def values(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights as NumPy arrays (copies where the memory order differs)."""
        return {name: _numpy(p) for name, p in self.parameters.items()}

    def gradients(self) -> dict[str, NDArray[np.float32]]:
        """Return the present gradients as NumPy arrays: zero where a parameter was not reached."""
        return {
            name: np.zeros(p.shape, dtype=np.float32) if p.grad is None else _numpy(p.grad).copy()
            for name, p in self.parameters.items()
        }

    def pretrained_values(self) -> dict[str, NDArray[np.float32]]:
        """Return the pretrained weights as NumPy arrays."""
        return {name: _numpy(tensor) for name, tensor in self.pretrained.items()}

    def set_masks(
        self, masks: Masks, optimizer: torch.optim.Optimizer | None, *, initial: Initial = "zero"
    ) -> None:
        """Replace the masks: zero what is pruned, momentum included; start what is grown.

        A grown weight starts with zero momentum, which it has had since it was pruned.

        Args:
            masks: the new masks.
            optimizer: whose state of these parameters is kept in step, None before there is one.
            initial: what a grown weight starts from.
        """
        before, self.masks = self.masks, masks
        for name, parameter in self.parameters.items():
            mask = masks[name]
            dead = torch.empty_like(parameter.data, dtype=torch.bool).copy_(torch.from_numpy(~mask))
            with torch.no_grad():
                if initial == "pretrained":
                    grown = torch.from_numpy(mask & ~before[name]).to(parameter.device)
                    parameter.copy_(torch.where(grown, self.pretrained[name], parameter))
                # Not a product: it would make -0.0 and turn inf into NaN.
                parameter.masked_fill_(dead, 0.0)
            if optimizer is not None:
                for state in optimizer.state.get(parameter, {}).values():
                    if isinstance(state, torch.Tensor) and state.shape == parameter.shape:
                        state.masked_fill_(dead, 0.0)
            if mask.all():
                self._dead.pop(name, None)
            else:
                self._dead[name] = dead

    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights, so that weight and momentum stay zero."""
        for name, dead in self._dead.items():
            gradient = self.parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(dead, 0.0)

    def check(self) -> None:
        """Check that every pruned weight is exactly zero.

        Raises:
            HwpruneError: one is not (a broken promise of ours).
        """
        for name, dead in self._dead.items():
            weight = self.parameters[name].detach()
            wrong = int(torch.count_nonzero(weight[dead]))
            if wrong:
                raise HwpruneError(
                    f"{wrong:,} pruned weights of {name!r} are not zero after training",
                    hint="this is a bug in hwprune: please report it",
                )


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().float().cpu().contiguous().numpy())
