"""Every operator that is linear in its weight, as rows times columns: what least squares needs.

``rows`` is the weight as (groups, R, K): R output channels of a group, K weights each. ``columns``
is what these weights are multiplied with, (groups, K, n), one column per output position; and
``outputs`` brings what the operator returned into the same order, (groups, R, n).

Two uses of one weight whose ``layout`` is the same can be solved together. ``count`` is n, and
``at`` are some of these positions. ``apply`` is what the operator makes of another weight, without
bias; ``by_channel`` shapes a value per output channel so that it can be added to that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of one to three dimensions, or a transposed one.

    Attributes:
        stride, padding, dilation, transposed, output_padding, groups: as ``aten.convolution`` has
            them.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @property
    def layout(self) -> tuple[object, ...]:
        """What decides the order of rows."""
        return (Convolution, self.transposed, self.groups)

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """Return (groups, R, K); a transposed kernel is turned round."""
        if not self.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        inside = weight.shape[0] // self.groups
        parted = weight.reshape(self.groups, inside, *weight.shape[1:]).transpose(1, 2)
        return parted.flip(self._kernel_axes(parted)).flatten(2)

    def weight(self, rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Return rows in the weight's own shape."""
        if not self.transposed:
            return rows.reshape(shape)
        parted = rows.reshape(self.groups, shape[1], shape[0] // self.groups, *shape[2:])
        return parted.flip(self._kernel_axes(parted)).transpose(1, 2).reshape(shape)

    def count(self, output: torch.Tensor) -> int:
        """Return samples times places."""
        return output.shape[0] * output[0, 0].numel()

    def columns(
        self, x: torch.Tensor, at: torch.Tensor, output: torch.Tensor, shape: torch.Size
    ) -> torch.Tensor:
        """Return the windows of the input at the positions ``at``."""
        kernel = tuple(shape[2:])
        steps, padded = self._padded(x, kernel)
        places = tuple(output.shape[2:])
        # A view of every window, of which only the wanted ones are ever copied.
        windows = padded.as_strided(
            (x.shape[0], *places, x.shape[1], *kernel),
            (
                padded.stride(0),
                *(s * step for s, step in zip(padded.stride()[2:], steps, strict=True)),
                padded.stride(1),
                *(s * d for s, d in zip(padded.stride()[2:], self.dilation, strict=True)),
            ),
        )
        taken = windows[torch.unravel_index(at, (x.shape[0], *places))]
        return taken.reshape(len(at), self.groups, -1).permute(1, 2, 0)

    def outputs(self, output: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return the channels at the positions ``at``."""
        flat = output.flatten(2).transpose(1, 2).flatten(0, 1)
        return flat[at].reshape(len(at), self.groups, -1).permute(1, 2, 0)

    def apply(self, x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Convolve with another weight."""
        return torch.convolution(
            x, weight, None, list(self.stride), list(self.padding), list(self.dilation),
            self.transposed, list(self.output_padding), self.groups,
        )  # fmt: skip

    def by_channel(self, values: torch.Tensor) -> torch.Tensor:
        """Return (channels, 1, ...)."""
        return values.reshape(-1, *[1] * len(self.stride))

    def _kernel_axes(self, parted: torch.Tensor) -> list[int]:
        return list(range(3, parted.ndim))

    def _padded(
        self, x: torch.Tensor, kernel: tuple[int, ...]
    ) -> tuple[tuple[int, ...], torch.Tensor]:
        """Return the strides of the windows and the input that they lie in.

        A transposed convolution is an ordinary one over the input with zeros between its elements.
        """
        before, after = list(self.padding), list(self.padding)
        steps = self.stride
        if self.transposed:
            sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], self.stride, strict=True)]
            spread = x.new_zeros((*x.shape[:2], *sizes))
            apart = tuple(slice(None, None, step) for step in (1, 1, *self.stride))
            spread[apart] = x
            x, steps = spread, (1,) * len(self.stride)
            reach = [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
            before = [r - p for r, p in zip(reach, self.padding, strict=True)]
            after = [b + o for b, o in zip(before, self.output_padding, strict=True)]
        pads = [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]
        return steps, functional.pad(x, pads).contiguous()


@dataclass(frozen=True, slots=True)
class Product:
    """A linear layer or a matrix product with a weight of two dimensions.

    Attributes:
        turned: the weight is stored as (K, R), not (R, K).
        left: the weight is the left factor: outputs are (..., R, n).
    """

    turned: bool
    left: bool

    @property
    def layout(self) -> tuple[object, ...]:
        """What decides the order of rows."""
        return (Product, self.turned)

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """Return (1, R, K)."""
        return (weight.t() if self.turned else weight).unsqueeze(0)

    def weight(self, rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Return rows in the weight's own shape."""
        return rows[0].t() if self.turned else rows[0]

    def count(self, output: torch.Tensor) -> int:
        """Return the number of vectors."""
        return output.numel() // output.shape[-2 if self.left else -1]

    def columns(
        self, x: torch.Tensor, at: torch.Tensor, output: torch.Tensor, shape: torch.Size
    ) -> torch.Tensor:
        """Return the input vectors ``at``."""
        return self._vectors(x)[at].t().unsqueeze(0)

    def outputs(self, output: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return the output vectors ``at``."""
        return self._vectors(output)[at].t().unsqueeze(0)

    def apply(self, x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Multiply by another weight."""
        rows = self.rows(weight)[0]
        return rows @ x if self.left else (x @ rows.t()).reshape(output.shape)

    def by_channel(self, values: torch.Tensor) -> torch.Tensor:
        """Return values as they are added to outputs, or for a left factor to their columns."""
        return values.unsqueeze(1) if self.left else values

    def _vectors(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(-1, -2) if self.left else x
        return x.reshape(-1, x.shape[-1])


LinearOperator = Convolution | Product
