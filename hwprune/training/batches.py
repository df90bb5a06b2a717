"""From a NumPy split to batches on the device: held there where it fits, augmented there.

Images that a split stores as bytes are held as bytes, and normalised on the device batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from hwprune.errors import DataError
from hwprune.ir import Split
from hwprune.trees import tree_map

Augment = Literal["none", "shift", "crop-flip"]
Rows = slice | torch.Tensor

# Samples that are read from a split at once while it is converted.
_CHUNK = 2048
# Samples in one forward pass where nothing is learnt.
_EVALUATED = 500
_ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples.

    Attributes:
        inputs: as the network takes them, one tensor each.
        labels: a tree, samples first, or None.
        index: (b,) which samples of the split they are, on the CPU.
        answers: outputs of the dense network, or None.
    """

    inputs: tuple[torch.Tensor, ...]
    labels: Any
    index: torch.Tensor | None = None
    answers: Any = None


@runtime_checkable
class CompactSplit(Protocol):
    """A split that can give its images as bytes: four times as many fit."""

    def stored(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at ``indices``, (b, channels, ...)."""

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return (factor, shift) per channel: a batch is ``stored * factor - shift``."""


class Batches:
    """Batches of a split, by index.

    Args:
        split: the data.
        device: where the batches are wanted.
        resident_bytes: hold the whole split as tensors there if it takes no more than this.
        channels_last: hand out 4-D inputs in NHWC memory order.

    Raises:
        DataError: the split is empty, or has more labels or fewer.
    """

    def __init__(
        self, split: Split, *, device: str, resident_bytes: int, channels_last: bool
    ) -> None:
        """Read the split if it fits."""
        self._split = split
        self._device = torch.device(device)
        self._channels_last = channels_last
        self.size = len(split)
        if self.size == 0:
            raise DataError("a split of the data has no samples", hint="check the data source")
        self._labels: Any = None
        if split.labels is not None:
            self._labels = tree_map(self._label, split.labels)
        self._affine: tuple[torch.Tensor, ...] | None = None
        if isinstance(split, CompactSplit) and (affine := split.affine()) is not None:
            self._affine = tuple(torch.from_numpy(each).to(self._device) for each in affine)
        first = self._stored(np.zeros(1, dtype=np.int64))
        sample_bytes = sum(part.numel() * part.element_size() for part in first)
        self._held: tuple[torch.Tensor, ...] | None = None
        if sample_bytes * self.size <= resident_bytes:
            self._held = self._hold(first)

    def _label(self, labels: NDArray[Any]) -> torch.Tensor:
        if labels.ndim < 1 or len(labels) != self.size:
            raise DataError(
                f"labels of shape {labels.shape} for {self.size} samples",
                hint="one label per sample is expected, samples first",
            )
        kind = np.float32 if labels.dtype.kind == "f" else np.int64
        return torch.from_numpy(np.ascontiguousarray(labels, dtype=kind)).to(self._device)

    @property
    def labels(self) -> Any:
        """Labels on the device, samples first: a tensor or a tree of them, or None."""
        return self._labels

    def __iter__(self) -> Iterator[Batch]:
        """Yield all samples in order, in batches that suit evaluation."""
        yield from self.in_order(_ALL)

    def in_order(self, rows: slice) -> Iterator[Batch]:
        """Yield the samples of ``rows`` in order, in batches that suit evaluation."""
        chosen = torch.arange(self.size)[rows]
        if len(chosen):
            yield from self.take(torch.split(chosen, _EVALUATED))

    def take(self, indices: Iterator[torch.Tensor] | tuple[torch.Tensor, ...]) -> Iterator[Batch]:
        """Yield one batch per index tensor; what must be read is read one batch ahead."""
        if self._held is not None:
            for index in indices:
                yield self._gather(index)
            return
        with ThreadPoolExecutor(1) as reader:
            waiting = None
            for index in indices:
                coming = index, reader.submit(self._read, index.numpy())
                if waiting is not None:
                    yield self._batch(waiting[1].result(), waiting[0])
                waiting = coming
            if waiting is not None:
                yield self._batch(waiting[1].result(), waiting[0])

    def _read(self, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[torch.Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(part)) for part in self._split.batch(index)]

    def _stored(self, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[torch.Tensor]:
        """Return what is held of these samples: bytes where ``_affine`` says what they mean."""
        if self._affine is None or not isinstance(self._split, CompactSplit):
            return self._read(index)
        return [torch.from_numpy(np.ascontiguousarray(self._split.stored(index)))]

    def _batch(self, parts: list[torch.Tensor], index: torch.Tensor) -> Batch:
        inputs = tuple(self._ordered(part.to(self._device)) for part in parts)
        return Batch(inputs, self._labels_of(index.to(self._device)), index)

    def _labels_of(self, index: torch.Tensor) -> Any:
        return None if self._labels is None else tree_map(lambda part: part[index], self._labels)

    def _ordered(self, part: torch.Tensor) -> torch.Tensor:
        if self._channels_last and part.ndim == 4:
            return part.contiguous(memory_format=torch.channels_last)
        return part

    def _hold(self, first: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Read everything once; 4-D inputs are stored as (n, h, w, c) for channels_last."""
        held = []
        for part in first:
            shape = list(part.shape[1:])
            if self._channels_last and part.ndim == 4:
                shape = [shape[1], shape[2], shape[0]]
            held.append(torch.empty(self.size, *shape, dtype=part.dtype, device=self._device))
        for index in torch.split(torch.arange(self.size), _CHUNK):
            start, stop = int(index[0]), int(index[-1]) + 1
            for store, part in zip(held, self._stored(index.numpy()), strict=True):
                if self._channels_last and part.ndim == 4:
                    part = part.permute(0, 2, 3, 1)
                store[start:stop] = part
        return tuple(held)

    def _gather(self, index: torch.Tensor) -> Batch:
        assert self._held is not None  # take() asks first
        there = sent(index, self._device)
        inputs = []
        for store in self._held:
            last = self._channels_last and store.ndim == 4
            part = store.index_select(0, there)
            if self._affine is not None:
                shape = (-1,) if last else (-1, *(1,) * (store.ndim - 2))
                factor, shift = (each.reshape(shape) for each in self._affine)
                # As the split itself does it: one product, one difference, each rounded.
                part = part.to(factor.dtype).mul_(factor).sub_(shift)
            if last:
                part = part.permute(0, 3, 1, 2)
            inputs.append(part)
        return Batch(tuple(inputs), self._labels_of(there), index)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on the device; CUDA's queue is not waited for."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def augment(
    batch: Batch,
    kind: Augment,
    generator: torch.Generator,
    *,
    cutout: int = 0,
    rows: Rows = _ALL,
    of: int | None = None,
) -> Batch:
    """Return the batch with every 4-D input moved (and mirrored, and cut), one draw per sample.

    ``crop-flip`` pads by 4 with zeros (the mean of normalised data), crops and mirrors every other
    one; ``shift`` moves by at most one pixel and repeats the border, so that a background that is
    not zero stays itself. Inputs of other ranks pass through.

    Args:
        batch: what to change.
        kind: what the data allow.
        generator: a CPU generator: the draws are the same whatever the device.
        cutout: the side of the square that is set to zero, in pixels; 0 draws nothing. Its centre
            lies anywhere in the image, so a part of it may fall outside (arXiv 1708.04552).
        rows: which samples of a larger batch, or of the split, these are.
        of: how many that has; draws are made for all of them, whatever ``rows`` is.
    """
    batch = _moved(batch, kind, generator, rows, of)
    return _cut(batch, cutout, generator, rows, of) if cutout else batch


def _moved(
    batch: Batch, kind: Augment, generator: torch.Generator, rows: Rows, of: int | None
) -> Batch:
    if kind == "none" or all(part.ndim != 4 for part in batch.inputs):
        return batch
    count, reach = of or batch.inputs[0].shape[0], 4 if kind == "crop-flip" else 1
    offsets = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator)[:, rows]
    flips = torch.randint(0, 2, (count, 1), generator=generator)[rows].bool()
    moved = tuple(
        _move(part, offsets, flips if kind == "crop-flip" else None) if part.ndim == 4 else part
        for part in batch.inputs
    )
    return replace(batch, inputs=moved)


def _move(images: torch.Tensor, offsets: torch.Tensor, flips: torch.Tensor | None) -> torch.Tensor:
    """Shift (and flip) every image by one gather over (n, h, w, c); (n, c, h, w) in and out."""
    height, width = images.shape[2:]
    rows = torch.arange(height) + offsets[0]
    columns = torch.arange(width).expand(images.shape[0], width)
    if flips is None:
        columns = (columns + offsets[1]).clamp(0, width - 1)
        rows = rows.clamp(0, height - 1)
        source = images.permute(0, 2, 3, 1)
    else:
        reach = 4
        columns = torch.where(flips, width - 1 - columns, columns) + offsets[1] + reach
        rows = rows + reach
        source = functional.pad(images.permute(0, 2, 3, 1), (0, 0, reach, reach, reach, reach))
    samples = torch.arange(images.shape[0], device=images.device)[:, None, None]
    moved = source[
        samples, sent(rows, images.device)[:, :, None], sent(columns, images.device)[:, None, :]
    ].permute(0, 3, 1, 2)
    return moved if images.is_contiguous(memory_format=torch.channels_last) else moved.contiguous()


def _cut(batch: Batch, side: int, generator: torch.Generator, rows: Rows, of: int | None) -> Batch:
    """Zero one square of every 4-D input; the inputs of a sample share the place."""
    images = [part for part in batch.inputs if part.ndim == 4]
    if not images:
        return batch
    # Fractions: inputs of a sample may differ in size.
    count = of or images[0].shape[0]
    centres = torch.rand(2, count, 1, generator=generator)[:, rows]

    def cut(part: torch.Tensor) -> torch.Tensor:
        down, across = (
            _near(size, centre, side) for size, centre in zip(part.shape[2:], centres, strict=True)
        )
        down, across = sent(down, part.device), sent(across, part.device)
        hole = down[:, None, :, None] & across[:, None, None, :]
        return part.clone().masked_fill_(hole, 0.0)  # a clone keeps the memory order

    return replace(
        batch, inputs=tuple(cut(part) if part.ndim == 4 else part for part in batch.inputs)
    )


def _near(size: int, centre: torch.Tensor, side: int) -> torch.Tensor:
    """Return (samples, size): which of the places lie in the square along one axis."""
    first = (centre * size).floor() - side // 2
    places = torch.arange(size)
    return (places >= first) & (places < first + side)


def epoch_order(size: int, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Return one epoch's index batches in random order, without an incomplete last one."""
    order = torch.randperm(size, generator=generator)
    if size <= batch_size:
        return (order,)
    return tuple(torch.split(order[: size - size % batch_size], batch_size))


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Return how many batches ``epoch_order`` gives."""
    return max(1, size // batch_size)
