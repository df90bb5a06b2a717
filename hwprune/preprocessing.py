"""How stored values become what a network reads: in words, in a file's metadata, as arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Of uint8 images that a file normalises by itself.
InputLayout: TypeAlias = Literal["nchw", "nhwc"]
# The axes of a batch whose samples have channels first, by their number.
LAYOUTS: Mapping[int, str] = {2: "NF", 3: "NCL", 4: "NCHW", 5: "NCDHW"}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """``input = (stored / scale - mean) / std``, by channel.

    Attributes:
        layout: the axes of the file's input; the channels of ``NF`` are all features together.
        scale: the stored value that stands for 1.0.
        mean: one number per channel, or one for all; empty where nothing is subtracted.
        std: as ``mean``.
        resize: how images come to the input's size, in words; empty where they have it.
        embedded: the file does this itself and reads stored values, as uint8 in ``layout``.
    """

    layout: str
    scale: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: str = ""
    embedded: bool = False

    def as_json(self) -> str:
        """Return it as short as JSON is, with numbers to the precision of float32."""
        found: dict[str, Any] = {"layout": self.layout, "scale": _short(self.scale)}
        for name in ("mean", "std"):
            if numbers := getattr(self, name):
                found[name] = [_short(number) for number in numbers]
        found |= {
            name: getattr(self, name) for name in ("resize", "embedded") if getattr(self, name)
        }
        return json.dumps(found, separators=(",", ":"), ensure_ascii=False)

    def sentences(self) -> list[str]:
        """Return the recipe for people, step by step."""
        steps = [self.resize] if self.resize else []
        if self.embedded:
            return [*steps, f"give stored values as uint8, {self.layout}; the file does the rest"]
        steps += [f"divide by {self.scale:g}"] if self.scale != 1 else []
        for verb, numbers in (("subtract the mean", self.mean), ("divide by std", self.std)):
            if numbers:
                steps.append(f"{verb} {', '.join(f'{number:.7g}' for number in numbers)}")
        return [*(steps or ["none: values as they are stored"]), f"give float32, {self.layout}"]

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (factor, shift) per channel, or one for all: ``input = stored * factor - shift``.

        Folded in double precision: one multiplication and one subtraction are left.
        """
        mean, std = np.array(self.mean or (0.0,)), np.array(self.std or (1.0,))
        return (1.0 / (std * self.scale)).astype(np.float32), (mean / std).astype(np.float32)

    def stored(self, inputs: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the uint8 values in ``layout`` that became these inputs (n, channels, ...)."""
        factor, shift = (_along_channels(numbers, inputs.ndim) for numbers in self.affine())
        values: NDArray[np.uint8] = np.rint((inputs + shift) / factor).clip(0, 255).astype(np.uint8)
        return np.moveaxis(values, 1, -1) if self.channels_last else values

    def inputs(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Return what the network reads, (n, channels, ...), of stored values in ``layout``."""
        values = np.moveaxis(stored, -1, 1) if self.channels_last else stored
        factor, shift = (_along_channels(numbers, values.ndim) for numbers in self.affine())
        found: NDArray[np.float32] = values.astype(np.float32) * factor - shift
        return found

    @property
    def channels_last(self) -> bool:
        """Return whether the layout ends in channels."""
        return self.layout.endswith("C")


def parse(text: str | None) -> Preprocessing | None:
    """Return what a file's metadata say; None where they say nothing that this version reads."""
    try:
        found = json.loads(text or "null")
        return Preprocessing(
            str(found["layout"]), float(found["scale"]),
            tuple(map(float, found.get("mean", ()))), tuple(map(float, found.get("std", ()))),
            str(found.get("resize", "")), found.get("embedded") is True,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _along_channels(numbers: NDArray[np.float32], ndim: int) -> NDArray[np.float32]:
    return numbers.reshape((1, -1, *(1,) * (ndim - 2))) if len(numbers) > 1 else numbers[0]


def _short(number: float) -> float | int:
    rounded = float(f"{number:.7g}")
    return int(rounded) if rounded.is_integer() else rounded
