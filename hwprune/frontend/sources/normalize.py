"""Normalisation: from stored values to what the network was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.frontend.sources.parts import StoredPart
from hwprune.preprocessing import Preprocessing
from hwprune.sampling import evenly_spread

CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_Numbers = tuple[float, ...]
_PRESETS: dict[str, tuple[_Numbers, _Numbers]] = {
    "cifar10": CIFAR10_STATISTICS,
    "imagenet": IMAGENET_STATISTICS,
}

# Statistics of sources that decode on demand come from this many samples, spread over train.
_STATISTICS_SAMPLES = 512
_CHUNK = 4096
_HINT = (
    "write ?normalize=none, raw255, imagenet, cifar10, or MEAN/STD with one number per channel, "
    "such as ?normalize=0.49,0.48,0.45/0.25,0.24,0.26"
)


@dataclass(frozen=True, slots=True)
class Normalizer:
    """``(value / full_scale - mean) / std``, per channel (the first axis of a sample).

    Attributes:
        words: the normalisation in words, for the report.
        full_scale: the stored value that stands for 1.0; None: 255 for uint8, else 1.
        mean: per channel, or one number for all; empty leaves the scaled values as they are.
        std: as ``mean``.
        raw: True leaves the stored values as they are, as float32.
    """

    words: str
    full_scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    raw: bool = False

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """Normalise (b, channels, ...) to float32; token numbers and flags stay as they are."""
        if is_index(values) and not self.mean:
            return values
        out = values.astype(np.float32)
        scale = 1.0 if self.raw else scale_of(values, self.full_scale)
        if not self.mean:
            if scale != 1.0:
                out /= np.float32(scale)
            return out
        factor, shift = (_along_channels(numbers, out) for numbers in self.affine(scale))
        out *= factor
        out -= shift
        return out

    def affine(self, scale: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (factor, shift) per channel, or one for all: ``stored * factor - shift``.

        Args:
            scale: the stored value that stands for 1.0.
        """
        return Preprocessing("", scale, self.mean, self.std).affine()


def is_index(values: NDArray[Any]) -> bool:
    """Say whether values are numbers of things (tokens) or flags, which nothing may scale."""
    return values.dtype.kind == "b" or (values.dtype.kind in "iu" and values.dtype.itemsize >= 4)


def make_normalizer(
    option: str, *, train: StoredPart, full_scale: float | None, where: str
) -> tuple[Normalizer, tuple[str, ...]]:
    """Turn the ``normalize`` option into a normaliser, and notes for the report.

    Args:
        option: ``none``, ``raw255``, ``imagenet``, ``cifar10``, ``own`` or MEAN/STD text.
        train: the part whose statistics are the default.
        full_scale: see `Normalizer`.
        where: what to call the source in an error.

    Raises:
        DataError: the option is not understood, or does not fit the inputs.
    """
    if option == "none":
        return Normalizer("none (images as 0..1)", full_scale), ()
    if option == "raw255":
        return Normalizer("raw255 (stored values, unscaled)", raw=True), ()
    example = train.read(np.zeros(1, dtype=np.int64))
    if option == "own":
        return _own(example, train=train, full_scale=full_scale)
    if len(example) > 1:
        raise DataError(
            f"{where}: normalize={option} is for one input, but each sample has {len(example)}",
            hint="normalise inside the callable, and leave ?normalize= out",
        )
    preset = _PRESETS.get(option)
    mean, std = preset or _parse_statistics(option)
    channels = example[0].shape[1] if example[0].ndim > 1 else 1
    for numbers in (mean, std):
        if len(numbers) not in (1, channels):
            raise DataError(
                f"{where}: normalize={option} is for {len(numbers)} channels, "
                f"but the inputs have {channels}",
                hint=_HINT,
            )
    return Normalizer(_words(option if preset else "given", mean, std), full_scale, mean, std), ()


def _own(
    example: tuple[NDArray[Any], ...], *, train: StoredPart, full_scale: float | None
) -> tuple[Normalizer, tuple[str, ...]]:
    if len(example) > 1 or is_index(example[0]):
        return Normalizer("none", full_scale), ()
    mean, std, samples = _statistics(train, full_scale=full_scale)
    notes = []
    if samples < len(train):
        notes.append(f"the statistics for normalising come from {samples} of {len(train)} images")
    if example[0].dtype.kind == "f":
        notes.append(
            "floating-point inputs were normalised by their own statistics, the default; "
            "where they already are as the network expects them, add ?normalize=none"
        )
    return Normalizer(_words("own statistics", mean, std), full_scale, mean, std), tuple(notes)


def _statistics(
    train: StoredPart, *, full_scale: float | None
) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean and standard deviation per channel; vectors (n, f) have one for all features."""
    lazy = getattr(train, "lazy", False)
    count = min(len(train), _STATISTICS_SAMPLES) if lazy else len(train)
    chosen = evenly_spread(len(train), count)
    total: NDArray[np.float64] = np.zeros(1)
    square: NDArray[np.float64] = np.zeros(1)
    elements = 0
    for start in range(0, count, _CHUNK):
        (stored,) = train.read(chosen[start : start + _CHUNK])
        values = stored.astype(np.float64) / scale_of(stored, full_scale)
        if values.ndim <= 2:
            values = values.reshape(len(values), 1, -1)
        axes = (0, *range(2, values.ndim))
        total = total + values.sum(axis=axes)
        square = square + np.square(values).sum(axis=axes)
        elements += values.size // values.shape[1]
    mean = total / elements
    std = np.sqrt(np.maximum(square / elements - mean**2, 0.0))
    std[std < 1e-8] = 1.0  # a constant channel carries nothing, and must not divide by zero
    return tuple(mean.tolist()), tuple(std.tolist()), count


def scale_of(values: NDArray[Any], full_scale: float | None) -> float:
    """Return the stored value that stands for 1.0."""
    if full_scale is not None:
        return full_scale
    return 255.0 if values.dtype == np.uint8 else 1.0


def _along_channels(numbers: NDArray[np.float32], values: NDArray[Any]) -> NDArray[np.float32]:
    shape = (1, -1, *(1,) * (values.ndim - 2)) if len(numbers) > 1 else (1,) * values.ndim
    return numbers.reshape(shape)


def _parse_statistics(option: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean_text, slash, std_text = option.partition("/")
    try:
        if not slash:
            raise ValueError(option)
        mean, std = (
            tuple(float(number) for number in text.split(",")) for text in (mean_text, std_text)
        )
    except ValueError:
        raise DataError(f"normalize={option} is not a normalisation", hint=_HINT) from None
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise DataError(
            f"normalize={option}: means must be finite, and deviations above zero", hint=_HINT
        )
    return mean, std


def _words(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    texts = (", ".join(f"{number:.4g}" for number in numbers) for numbers in (mean, std))
    return "{} (mean {}; std {})".format(name, *texts)
