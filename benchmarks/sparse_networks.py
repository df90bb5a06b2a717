"""Networks at a given sparsity, as files: what the latency and size benchmarks compare.

Masks are random and uniform: every weight tensor keeps the same share of its elements, but for the
first layer and the depthwise convolutions, which stay dense (as in Fast Sparse ConvNets,
arXiv 1911.09723). What is kept is scaled up, so that activations keep their size through the
network: with tiny ones an engine would be timed on subnormal numbers. All engines get the same
weights: a dense file with zeros in it, or hwprune's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hwprune.ir import Model

NETWORKS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "vgg16-cifar": ("cifar-vgg16-bn", (3, 32, 32)),
    "resnet20": ("cifar-resnet20", (3, 32, 32)),
    "resnet50": ("torchvision:resnet50", (3, 224, 224)),
    "mobilenet-v1": ("timm:mobilenetv1_100", (3, 224, 224)),
    "mobilenet-v2": ("torchvision:mobilenet_v2", (3, 224, 224)),
    "vit-b-16": ("torchvision:vit_b_16", (3, 224, 224)),
}
# DeepSparse 1.8 and every onnxruntime of the last years read this one.
DENSE_OPSET = 13
SPARSE_OPSET = 18


@dataclass(frozen=True, slots=True)
class Files:
    """One network at one sparsity.

    Attributes:
        dense: fp32, zeros stored.
        sparse: hwprune's, fp32 values.
        weights: elements of the tensors that masks apply to, dense ones included.
        nonzeros: those that are not zero.
    """

    dense: Path
    sparse: Path | None
    weights: int
    nonzeros: int


def write_files(network: str, sparsity: float, folder: Path, *, seed: int = 0) -> Files:
    """Write both files of a network; at sparsity 0 the dense one is all there is."""
    import torch

    from hwprune.export.pipeline import template_of
    from hwprune.export.trace import trace
    from hwprune.ir import Masks

    model = untrained(network, seed)
    traced = trace(model)
    codecs: tuple[Any, ...] = (
        "gap4",
        "gap8",
        "gap16",
        "cols8",
        "cols16",
        "bitmap",
        "rice",
        "dense",
    )
    template, _ = template_of(
        traced, model.module, opset=SPARSE_OPSET, ir_version=8, inline=False, codecs=codecs
    )
    masks = uniform_masks({t.name: t.shape for t in template.prunable}, sparsity, seed)
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, mask in masks.items():
            kept = max(mask.mean(), 1 / mask.size)
            parameters[name].mul_(torch.from_numpy(mask / np.sqrt(kept)).to(torch.float32))
    arguments: dict[str, Any] = {"ir_version": 8, "inline": False, "codecs": codecs}
    low, _ = template_of(traced, model.module, opset=DENSE_OPSET, **arguments)
    dense = folder / f"{network}-{sparsity:g}-dense.onnx"
    dense.write_bytes(low.write_dense().data)
    weights = sum(mask.size for mask in masks.values())
    nonzeros = sum(int(mask.sum()) for mask in masks.values())
    if sparsity == 0:
        return Files(dense, None, weights, nonzeros)
    template, _ = template_of(traced, model.module, opset=SPARSE_OPSET, **arguments)
    sparse = folder / f"{network}-{sparsity:g}.onnx"
    sparse.write_bytes(template.write_sparse(Masks(masks), "fp32").data)
    return Files(dense, sparse, weights, nonzeros)


def untrained(network: str, seed: int) -> Model:
    """Return a network with random weights: how fast it runs does not depend on what they are."""
    import torch

    from hwprune.frontend.arch import find_arch
    from hwprune.ir import Model, TensorSpec

    spec, shape = NETWORKS[network]
    torch.manual_seed(seed)
    module = find_arch(spec).build().eval()
    inputs = (TensorSpec("input", (None, *shape), "float32"),)
    return Model(network, spec, "state-dict", module, spec, inputs)


def uniform_masks(
    shapes: Mapping[str, tuple[int, ...]], sparsity: float, seed: int
) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Return random masks: ``sparsity`` everywhere but in the first layer and depthwise ones."""
    generator = np.random.default_rng(seed)
    masks = {}
    for number, (name, shape) in enumerate(shapes.items()):
        size = int(np.prod(shape))
        depthwise = len(shape) > 2 and shape[1] == 1
        alive = size if number == 0 or depthwise else max(1, round(size * (1 - sparsity)))
        mask = np.zeros(size, dtype=np.bool_)
        mask[generator.permutation(size)[:alive]] = True
        masks[name] = mask.reshape(shape)
    return masks
