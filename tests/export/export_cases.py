"""Small networks that cover what export handles, each traced once for the whole session."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from hwprune.export.pipeline import decoded_parameters, template_of, weights_of
from hwprune.export.template import Template, Written
from hwprune.export.trace import Traced, trace
from hwprune.ir import CodecName, Masks, Model, SkippedTensor, TensorSpec

ALL_CODECS: tuple[CodecName, ...] = (
    "cols8", "cols16", "gap4", "gap8", "gap16", "bitmap", "rice", "dense",
)  # fmt: skip


class Zoo(nn.Module):
    """Every kind of weight: convolutions of all sorts, linear layers, tied, shared, functional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(12)  # folds into conv
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 8, 3, padding=2, dilation=2, groups=4, bias=False)
        self.bn_after_relu = nn.BatchNorm2d(8)  # does not fold
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.bn_up = nn.BatchNorm2d(6)  # folds into up
        self.tokens = nn.Linear(6, 20)  # over (N, tokens, 6)
        self.mix = nn.Linear(20, 20, bias=False)  # used twice
        self.tied = nn.Linear(20, 20, bias=False)
        self.tied.weight = self.mix.weight
        self.functional = nn.Parameter(torch.randn(20, 9) / 4)
        self.side = nn.Linear(5, 9)
        self.bn_side = nn.BatchNorm1d(9)  # folds into side
        self.head = nn.Linear(9, 4)
        self.unused = nn.Linear(3, 3)

    def forward(self, image: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn(self.conv(image)))
        y = F.relu(self.depthwise(y))
        y = self.bn_after_relu(F.relu(self.grouped(y)))
        y = self.bn_up(self.up(y))
        y = F.adaptive_avg_pool2d(y, 2).flatten(2).transpose(1, 2)
        y = self.tokens(y)
        y = self.tied(torch.tanh(self.mix(y))).mean(1)
        y = y @ self.functional + self.bn_side(self.side(extra))
        return self.head(y)


class Conv1d3d(nn.Module):
    """Convolutions over one and three axes; a weight that two layers read, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 6, 3)
        self.three = nn.Conv3d(2, 5, 2)
        self.shared = nn.Parameter(torch.randn(6, 6, 1) / 2)
        self.bias = nn.Parameter(torch.randn(6))
        self.head = nn.Linear(11, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.one(x.reshape(x.shape[0], 4, 8))
        a = F.conv1d(F.relu(F.conv1d(a, self.shared)), self.shared, self.bias)
        b = self.three(x.reshape(x.shape[0], 2, 4, 2, 2))
        return self.head(torch.cat([a.mean(2), b.mean((2, 3, 4))], 1))


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Give BN statistics and biases values that show when they are lost."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
            part.weight.data.uniform_(-1.5, 1.5, generator=generator)
            part.bias.data.normal_(generator=generator)
    return module.eval()


@dataclass(frozen=True)
class Case:
    """A network, its trace, and inputs for it."""

    model: Model
    traced: Traced

    def template(
        self, opset: int = 18, *, inline: bool = False, codecs: tuple[CodecName, ...] = ALL_CODECS
    ) -> Template:
        return self.both(opset, inline=inline, codecs=codecs)[0]

    def both(
        self, opset: int = 18, *, inline: bool = False, codecs: tuple[CodecName, ...] = ALL_CODECS
    ) -> tuple[Template, tuple[SkippedTensor, ...]]:
        return template_of(
            self.traced, self.model.module, opset=opset, ir_version=8, inline=inline, codecs=codecs
        )

    def feeds(self, batch: int, seed: int = 0) -> dict[str, NDArray[Any]]:
        generator = np.random.default_rng(seed)
        return {
            spec.name: generator.standard_normal(spec.with_batch(batch)).astype(spec.dtype)
            for spec in self.model.inputs
        }

    def run_torch(
        self, feeds: Mapping[str, NDArray[Any]], values: Mapping[str, NDArray[Any]] | None = None
    ) -> NDArray[Any]:
        """Run the module, with other values for some parameters and buffers."""
        module = copy.deepcopy(self.model.module)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, value in (values or {}).items():
                tensors[name].copy_(torch.from_numpy(value))
            found = module(*(torch.from_numpy(feeds[spec.name]) for spec in self.model.inputs))
        array: NDArray[Any] = found.numpy()
        return array

    def decoded(self, template: Template, written: Written) -> dict[str, NDArray[np.float32]]:
        return decoded_parameters(template, written, self.model.module)


def case_of(module: nn.Module, inputs: tuple[TensorSpec, ...], name: str = "net") -> Case:
    """Trace a module."""
    model = Model(name, f"{name}.pt", "state-dict", module, None, inputs)
    return Case(model, trace(model))


@cache
def _zoo() -> Case:
    torch.manual_seed(0)
    inputs = (
        TensorSpec("image", (None, 3, 12, 12), "float32"),
        TensorSpec("extra", (None, 5), "float32"),
    )
    return case_of(randomise(Zoo(), 1), inputs)


@cache
def _conv1d3d() -> Case:
    torch.manual_seed(0)
    return case_of(randomise(Conv1d3d(), 1), (TensorSpec("x", (None, 32), "float32"),))


CASES: dict[str, Callable[[], Case]] = {"zoo": _zoo, "conv1d3d": _conv1d3d}


def random_masks(template: Template, density: float, seed: int = 0) -> Masks:
    """Return masks of about this density."""
    generator = np.random.default_rng(seed)
    return Masks(
        {name: generator.random(w.shape) < density for name, w in weights_of(template).items()}
    )


def run(data: bytes, feeds: Mapping[str, NDArray[Any]], *, optimise: bool = True) -> NDArray[Any]:
    """Run a file in stock onnxruntime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found: NDArray[Any] = session.run(None, dict(feeds))[0]
    return found


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest error over the range of what was expected."""
    spread = float(np.ptp(expected)) or float(np.abs(expected).max()) or 1.0
    return float(np.abs(found - expected).max()) / spread
