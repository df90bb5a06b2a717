"""How many bytes do dead channels take, and does the network compute the same without them?

Masks are those of one-shot LAMP pruning. ResNet-20 is pretrained where its weights are at hand; the
others are untrained, their BN's shift and statistics drawn at random, since BN as it is initialised
makes every empty channel zero, which training does not. Nothing was trained after pruning. Sizes
are those of files with int8 values; outputs are compared on the dense files, in onnxruntime.

    python benchmarks/dead_channels.py [--data-dir DIR] [--rows 0,2-4] [--table]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from common import Config, Experiment, Stopwatch, command_line, data_folder, measure_rows
from numpy.typing import NDArray

NETWORKS = ("cifar-resnet20", "cifar-densenet121", "cifar-efficientnet-b0", "mobilenet_v2")
SPARSITIES = (0.95, 0.98, 0.99)
WEIGHTS = {"cifar-resnet20": Path("weights") / "cifar10_resnet20.pth"}
TARGET = "raspberry-pi-5"
SEED = 0
SAMPLES = 4

ROWS: list[tuple[Config, int]] = [
    ({"network": name, "sparsity": sparsity}, SEED) for name in NETWORKS for sparsity in SPARSITIES
]


@cache
def prepared_network(name: str, data: Path | None) -> tuple[Any, bool]:
    """Return a traced network, and whether it is trained."""
    import torch

    from hwprune.frontend.torchvision_shim import import_torchvision
    from hwprune.frontend.zoo import ARCHITECTURES
    from hwprune.ir import Model, TensorSpec
    from hwprune.steps.planning import prepare
    from hwprune.targets import load

    torch.manual_seed(SEED)
    if name in ARCHITECTURES:
        module, inputs = ARCHITECTURES[name].build().eval(), ARCHITECTURES[name].inputs
    else:
        module = getattr(import_torchvision().models, name)(weights=None).eval()
        inputs = (TensorSpec("input", (None, 3, 224, 224), "float32"),)
    trained = data is not None and name in WEIGHTS
    if data is not None and trained:
        module.load_state_dict(torch.load(data / WEIGHTS[name], weights_only=True))
    else:
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d) and part.running_mean is not None:
                part.bias.data.normal_(std=0.3)
                part.running_mean.normal_(std=0.3)
                part.running_var.uniform_(0.5, 2)
    model = Model(name, name, "state-dict", module, name, inputs)
    return prepare(model, load(TARGET)), trained


def outputs(template: Any, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Run the dense file of a template in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        template.write_dense().data, options, providers=["CPUExecutionProvider"]
    )
    found: NDArray[Any] = session.run(None, dict(feeds))[0]
    return found


def measure(config: Mapping[str, Any], data: Path | None) -> dict[str, Any]:
    """Return sizes with and without dead channels, and by how much outputs differ."""
    import torch

    from hwprune.export.pipeline import removable_channels, renewed
    from hwprune.export.removal import gather_channels
    from hwprune.ir import Masks
    from hwprune.sparsity import rank_weights
    from hwprune.steps.planning import module_weights

    prepared, trained = prepared_network(config["network"], data)
    module = prepared.model.module
    state = {name: value.clone() for name, value in module.state_dict().items()}
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    count = round(prepared.template.weights * (1 - config["sparsity"]))
    masks = rank_weights(module_weights(module, prepared.template), "lamp", count).masks(count)
    spec = prepared.model.inputs[0]
    generator = np.random.default_rng(SEED)
    feeds = {spec.name: generator.standard_normal(spec.with_batch(SAMPLES)).astype(np.float32)}

    def masked(living: Masks) -> Any:
        with torch.no_grad():
            for name in living:
                named[name].mul_(torch.from_numpy(living[name]))
        return renewed(prepared.template, module)

    def file_bytes(template: Any, living: Masks) -> int:
        return int(template.cost("int8").encoding(living.positions(), "int8").file_bytes)

    try:
        whole = masked(masks)
        watch = Stopwatch()
        dead = removable_channels(whole, masks)
        seconds = watch.seconds
        with_all = file_bytes(whole, masks)
        expected = outputs(whole, feeds)
        with torch.no_grad():
            for name, array in dead.added.items():
                named[name].add_(torch.from_numpy(array))
        dropped = masked(dead.masks)
        small = dropped.without(dead.removal)
        left = Masks(
            {name: gather_channels(name, dead.masks[name], small.kept) for name in dead.masks}
        )
        found = outputs(small, feeds)
        return {
            "trained": trained,
            "weights": masks.weights,
            "nonzeros": masks.nonzeros,
            "useless": masks.nonzeros - dead.masks.nonzeros,
            "channels": channels(whole),
            "removed": channels(whole) - channels(small),
            "moved_constants": len(dead.added),
            "bytes": {
                "all": with_all,
                "useful": file_bytes(dropped, dead.masks),
                "without dead": len(small.write_sparse(left, "int8").data),
            },
            "relative_error": float(np.abs(found - expected).max() / np.ptp(expected)),
            "search_seconds": round(seconds, 2),
        }
    finally:
        module.load_state_dict(state)


def channels(template: Any) -> int:
    """Return the output channels of all prunable layers."""
    return sum(tensor.shape[tensor.channel_axis] for tensor in template.prunable)


def table(experiment: Experiment) -> str:
    """Return the record as Markdown."""
    lines = [
        "| network | sparsity | channels | removed | connections | useless | bytes "
        "| without useless | without removed channels | less | outputs differ by |",
        "|---|" + "---:|" * 10,
    ]
    rows = sorted(experiment.rows(), key=lambda row: ROWS.index((dict(row.config), row.seed)))
    for row in rows:
        name, sparsity = row.config["network"], f"{float(row.config['sparsity']):.0%}"
        if row.status != "run":
            lines.append(f"| {name} | {sparsity} | not run |" + " |" * 8)
            continue
        extra: Any = row.model_extra
        sizes = [extra["bytes"][key] for key in ("all", "useful", "without dead")]
        cells = [
            str(name) + ("" if extra["trained"] else " (untrained)"),
            sparsity,
            *(f"{extra[key]:,}" for key in ("channels", "removed", "nonzeros", "useless")),
            *(f"{size:,}" for size in sizes),
            f"{1 - sizes[2] / sizes[0]:.1%}",
            f"{extra['relative_error']:.0e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure the rows that are asked for and absent."""
    arguments = command_line(__doc__).parse_args()
    data = None if arguments.table else data_folder(arguments.data_dir)
    experiment = Experiment(
        "dead_channels", ["python", "benchmarks/dead_channels.py", "--data-dir", "DIR"]
    )

    def run(config: Config, seed: int) -> None:
        watch = Stopwatch()
        measured = measure(config, data)
        experiment.add(config, seed, watch.seconds, 0, **measured)

    return measure_rows(arguments, experiment, ROWS, run, table)


if __name__ == "__main__":
    sys.exit(main())
