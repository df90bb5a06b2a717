"""Networks at a given sparsity, as files: what the latency and size benchmarks compare.

Uniform masks are random: every weight tensor keeps the same share of its elements, but for the
first layer and the depthwise convolutions, which stay dense (as in Fast Sparse ConvNets,
arXiv 1911.09723). What is kept is scaled up, so that activations keep their size through the
network: with tiny ones an engine would be timed on subnormal numbers. LAMP masks (arXiv 2010.07611)
are those of a trained network, whose layers end up at very different densities. All engines get
the same fp32 weights: a dense file with zeros in it, or hwprune's file. Where hwprune's file holds
int8 values, the weights of the others are not rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from hwprune.ir import Masks, Model

NETWORKS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "vgg16-cifar": ("cifar-vgg16-bn", (3, 32, 32)),
    "resnet20": ("cifar-resnet20", (3, 32, 32)),
    "resnet50": ("torchvision:resnet50", (3, 224, 224)),
    "mobilenet-v1": ("timm:mobilenetv1_100", (3, 224, 224)),
    "mobilenet-v2": ("torchvision:mobilenet_v2", (3, 224, 224)),
    "vit-b-16": ("torchvision:vit_b_16", (3, 224, 224)),
}
# Networks whose trained weights are at hand, and where they lie below the data folder.
TRAINED = {"resnet20": "weights/cifar10_resnet20.pth"}
# DeepSparse 1.8 and every onnxruntime of the last years read this one.
DENSE_OPSET = 13
SPARSE_OPSET = 18
# Shapes that are computed in the graph cannot be written at 13.
DENSE_OPSETS = {"vit-b-16": SPARSE_OPSET}


@dataclass(frozen=True, slots=True)
class Files:
    """One network at one sparsity.

    Attributes:
        dense: fp32, zeros stored.
        sparse: hwprune's.
        weights: elements of the tensors that masks apply to, dense ones included.
        nonzeros: those that are not zero.
    """

    dense: Path
    sparse: Path | None
    weights: int
    nonzeros: int


def write_files(
    network: str,
    sparsity: float,
    folder: Path,
    *,
    seed: int = 0,
    values: Literal["fp32", "int8"] = "fp32",
    data: Path | None = None,
    make_masks: Callable[[Mapping[str, tuple[int, ...]], float, int], Masks] | None = None,
    model: Model | None = None,
    plan: Plan | None = None,
) -> Files:
    """Write both files of a network; at sparsity 0 the dense one is all there is.

    Args:
        network: a name in NETWORKS.
        sparsity: of the tensors that masks apply to.
        folder: where the files go.
        seed: of random weights and masks.
        values: how hwprune's file stores what is left.
        data: the data folder: trained weights and their LAMP masks instead of random ones.
        make_masks: masks of shapes, a sparsity and a seed; ``uniform_masks`` by default.
        model: a network of random weights that is none of NETWORKS.
        plan: what ``compile`` would plan the masks for, instead of a sparsity.
    """
    import torch

    from hwprune.export.pipeline import template_of
    from hwprune.export.trace import trace
    from hwprune.frontend import load_model

    if model is None and data is None:
        model = untrained(network, seed)
    elif data is not None:
        model = load_model(str(data / TRAINED[network]), arch=NETWORKS[network][0])
    assert model is not None
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
    arguments: dict[str, Any] = {"ir_version": 8, "inline": False, "codecs": codecs}
    template, _ = template_of(traced, model.module, opset=SPARSE_OPSET, **arguments)
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    names = [tensor.name for tensor in template.prunable]
    if plan is not None:
        masks = planned_masks(model, plan, values)
    elif data is None:
        shapes = {t.name: t.shape for t in template.prunable}
        masks = (make_masks or uniform_masks)(shapes, sparsity, seed)
    else:
        masks = lamp_masks({name: parameters[name].detach().numpy() for name in names}, sparsity)
    with torch.no_grad():
        for name in names:
            mask = np.asarray(masks[name])
            kept = max(mask.mean(), 1 / mask.size) if data is None else 1.0
            parameters[name].mul_(torch.from_numpy(mask / np.sqrt(kept)).to(torch.float32))
    opset = DENSE_OPSETS.get(network, DENSE_OPSET)
    low, _ = template_of(traced, model.module, opset=opset, **arguments)
    dense = folder / f"{network}-{sparsity:g}-dense.onnx"
    dense.write_bytes(low.write_dense().data)
    if sparsity == 0 and plan is None:
        return Files(dense, None, masks.weights, masks.nonzeros)
    template, _ = template_of(traced, model.module, opset=SPARSE_OPSET, **arguments)
    sparse = folder / f"{network}-{sparsity:g}.onnx"
    sparse.write_bytes(template.write_sparse(masks, values).data)
    return Files(dense, sparse, masks.weights, masks.nonzeros)


@dataclass(frozen=True, slots=True)
class Plan:
    """What masks are planned for.

    Attributes:
        budget_bytes: what the file may weigh.
        require: a limit on latency; empty for bytes alone.
        target: a profile's name or file.
    """

    budget_bytes: int
    require: str
    target: str


def planned_masks(model: Model, plan: Plan, values: Literal["fp32", "int8"]) -> Masks:
    """Return the masks that ``compile`` plans: nothing is trained or fitted."""
    from hwprune.sparsity import rank_weights
    from hwprune.steps.planning import candidates_of, module_weights, prepare
    from hwprune.targets import load
    from hwprune.verify.limits import parse_limit

    limits = [parse_limit(plan.require)] if plan.require else []
    prepared = prepare(model, load(plan.target), limits=limits)
    found = candidates_of(prepared, (values,), plan.budget_bytes)[values]
    weights = module_weights(model.module, prepared.template)
    return found.masks(rank_weights(weights, "lamp", prices=found.prices))


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


def uniform_masks(shapes: Mapping[str, tuple[int, ...]], sparsity: float, seed: int) -> Masks:
    """Return random masks: ``sparsity`` everywhere but in the first layer and depthwise ones."""
    from hwprune.ir import Masks

    generator = np.random.default_rng(seed)
    masks = {}
    for number, (name, shape) in enumerate(shapes.items()):
        size = int(np.prod(shape))
        depthwise = len(shape) > 2 and shape[1] == 1
        alive = size if number == 0 or depthwise else max(1, round(size * (1 - sparsity)))
        mask = np.zeros(size, dtype=np.bool_)
        mask[generator.permutation(size)[:alive]] = True
        masks[name] = mask.reshape(shape)
    return Masks(masks)


def lamp_masks(
    weights: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]], sparsity: float
) -> Masks:
    """Return the masks that LAMP scores give over all tensors together."""
    from hwprune.sparsity import rank_weights

    count = round((1 - sparsity) * sum(array.size for array in weights.values()))
    return rank_weights(weights, "lamp", count).masks(count)
