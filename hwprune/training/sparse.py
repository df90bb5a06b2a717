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
from hwprune.sparsity import Initial, LazyScores


class SparseParameters:
    """Holds the prunable parameters of a module, by name.

    Args:
        module: the network, already on its device.
        names: keys of its prunable parameters; a tied one once.
        like: a module that nobody changes; where its values are those of ``module`` they serve as
            the pretrained ones, and no copy is held.

    Attributes:
        parameters: by name.
        pretrained: their values before anything was pruned.
        masks: what lives.

    Raises:
        UsageError: no name at all.
        HwpruneError: a name that is not a parameter of the module.
    """

    def __init__(
        self, module: nn.Module, names: Sequence[str], *, like: nn.Module | None = None
    ) -> None:
        """Take one copy of the pretrained values, unless there is one."""
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
        others = {} if like is None else dict(like.named_parameters(remove_duplicate=False))
        self.pretrained = {
            name: _alike(p.detach(), others.get(name)) for name, p in self.parameters.items()
        }
        self.weights = sum(p.numel() for p in self.parameters.values())
        self.masks = Masks({n: np.ones(shape, dtype=np.bool_) for n, shape in self.shapes.items()})
        # True where pruned, in the parameter's own device and memory order; absent while nothing
        # is pruned in that tensor, so that a dense network pays nothing.
        self._dead: dict[str, torch.Tensor] = {}

    def values(self) -> LazyScores:
        """Return the weights as NumPy arrays, each made when it is asked for."""
        return LazyScores(self.shapes, lambda name: to_numpy(self.parameters[name]))

    def pretrained_values(self) -> LazyScores:
        """Return the pretrained weights as NumPy arrays."""
        return LazyScores(self.shapes, lambda name: to_numpy(self.pretrained[name]))

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return the present gradients, no copies: zero where nothing was reached."""
        return {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in self.parameters.items()
        }

    def set_masks(
        self,
        masks: Masks,
        *optimizers: torch.optim.Optimizer | None,
        initial: Initial = "zero",
        shrink: float = 0.0,
    ) -> None:
        """Replace the masks: zero what is pruned, momentum included; start what is grown.

        A grown weight starts with zero momentum, which it has had since it was pruned.

        Args:
            masks: the new masks.
            optimizers: whose state of these parameters is kept in step; None is none.
            initial: what a grown weight starts from.
            shrink: how far what stays is pulled towards zero, in units of the largest weight of the
                tensor that goes.
        """
        before, self.masks = self.masks, masks
        for name, parameter in self.parameters.items():
            mask = masks[name]
            dead = torch.empty_like(parameter.data, dtype=torch.bool).copy_(torch.from_numpy(~mask))
            with torch.no_grad():
                if initial == "pretrained":
                    grown = torch.from_numpy(mask & ~before[name]).to(parameter.device)
                    parameter.copy_(torch.where(grown, self.pretrained[name], parameter))
                if shrink:
                    _pull(parameter, dead, shrink)
                # Not a product: it would make -0.0 and turn inf into NaN.
                parameter.masked_fill_(dead, 0.0)
            for optimizer in optimizers:
                if optimizer is not None:
                    _clear_state(optimizer, parameter, dead)
            if mask.all():
                self._dead.pop(name, None)
            else:
                self._dead[name] = dead

    def restart(self, opened: Masks | None) -> None:
        """Give connections that are at zero their pretrained values; None where there are none."""
        if opened is None:
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if opened[name].any():
                    here = torch.from_numpy(opened[name]).to(parameter.device) & (parameter == 0)
                    parameter.copy_(torch.where(here, self.pretrained[name], parameter))

    def mask(self) -> None:
        """Zero pruned weights, whatever has moved them."""
        with torch.no_grad():
            for name, dead in self._dead.items():
                self.parameters[name].masked_fill_(dead, 0.0)

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


def _pull(parameter: nn.Parameter, dead: torch.Tensor, shrink: float) -> None:
    """Take a proximal step of l1: all weights lose what the largest one that goes has."""
    if dead.any():
        largest = float(parameter[dead].abs().max())
        parameter.copy_(nn.functional.softshrink(parameter, shrink * largest))


def _clear_state(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, dead: torch.Tensor
) -> None:
    for state in optimizer.state.get(parameter, {}).values():
        if isinstance(state, torch.Tensor) and state.shape == parameter.shape:
            state.masked_fill_(dead, 0.0)


def _alike(values: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
    """Return the other tensor where it holds the same elsewhere, or a copy."""
    if (
        other is not None
        and other.data_ptr() != values.data_ptr()
        and (other.shape, other.dtype, other.device) == (values.shape, values.dtype, values.device)
        and other.stride() == values.stride()
        and torch.equal(other, values)
    ):
        return other.detach()
    return values.clone()


def to_numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Return a tensor as float32 in row-major order; on the CPU a view where it is that already."""
    return np.ascontiguousarray(tensor.detach().float().cpu().contiguous().numpy())
