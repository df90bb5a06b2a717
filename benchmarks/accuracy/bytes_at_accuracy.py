"""How many bytes does an accuracy take? VGG16 and ResNet-20 through the whole compiler.

Each row compiles a network to a budget in bytes and measures the file that was written, on the test
set, in onnxruntime. The curve stands against MIRACLE (arXiv 1810.00440) and EPR, which count the
bytes of their own codes, and against the entropy of each file's own positions and values, below
which no code of these weights gets: what the file has beyond it is headers, tables, biases, BN.
KB are 1,000 bytes, as in those papers.

    python benchmarks/accuracy/bytes_at_accuracy.py --data-dir DIR [--short | --smoke]
        [--rows 0,2-4] [--table]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``; VGG16 comes from
train_dense.py. The compiler keeps its state after every epoch, and a row that was interrupted goes
on from there. figures.py draws the record.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compiling import compile_row
from networks import open_data, open_network, retraining, source_digest
from study import Config, Experiment, Rows, by_seed, main, spread

TARGET = "raspberry-pi-zero-2w"
KB = 1000
VGG, RESNET = "cifar-vgg16-bn", "cifar-resnet20"
# Where the project has an aim, then where others have published; (KB, value type).
CELLS: dict[str, tuple[tuple[int, str], ...]] = {
    VGG: (
        (300, "int8"), (120, "int4"), (120, "codebook16"), (120, "int8"), (384, "int8"),
        (135, "int4"), (101, "int4"), (200, "int4"),
    ),
    RESNET: ((96, "int8"), (64, "int8"), (64, "int4"), (40, "int4"), (40, "int8"), (28, "int4")),
}  # fmt: skip
AIMS = {(VGG, 300): 93.5, (VGG, 120): 91.0}
SEEDS = range(3)
FULL: Config = {"epochs": 120, "train_images": None}
SHORT: Config = {"epochs": 3, "train_images": 10_000}
STRATEGY = {"strategy": "cubic", "options": {}}


def cell(network: str, kilobytes: int, values: str, scale: Config) -> Config:
    """Return the configuration of a point; other codecs would make it another one."""
    from hwprune.targets import load

    codecs = list(load(TARGET).codecs)
    budget: Config = {"budget_bytes": kilobytes * KB, "values": values, "codecs": codecs}
    return {"network": network, **budget, **STRATEGY, **scale, **retraining(network)}


def rows(scale: Config) -> Rows:
    """Return all rows: by network, then by seed."""
    return [
        (cell(network, kilobytes, values, scale), seed)
        for network, cells in CELLS.items()
        for seed in SEEDS
        for kilobytes, values in cells
    ]


def run(config: Config, seed: int, folder: Path, experiment: Experiment) -> None:
    """Compile one row and add it to the record."""
    from hwprune.training.devices import resolve

    model = open_network(config, folder)
    compile_row(
        experiment,
        config,
        seed,
        model,
        open_data(config, folder, seed),
        TARGET,
        recipe={"compiled": resolve().startswith("cuda"), **config.get("recipe", {})},
        further=lambda artifact: {
            "sha256": artifact.report["artifact"]["sha256"],
            "bound_bytes": round(artifact.report["result"]["bound_bytes"], 1),
            "dense_sha256": source_digest(model),
        },
    )


def table(experiment: Experiment, scale: Config) -> str:
    """Return bytes and accuracy of the files, next to what is asked for and the entropy."""
    lines = [
        "| network | budget, KB | values | nonzeros | file, B | entropy, B | test accuracy, % | "
        "seeds | asked for |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network, cells in CELLS.items():
        for kilobytes, values in cells:
            config = cell(network, kilobytes, values, scale)
            seen = by_seed(experiment, config)
            facts = " | | "
            for row in experiment.rows():
                if row.status == "run" and dict(row.config) == config:
                    extra: Any = row.model_extra
                    facts = (
                        f"{extra['nonzeros']:,} | {extra['artifact_bytes']:,} | "
                        f"{extra['bound_bytes']:,.0f}"
                    )
            aim = AIMS.get((network, kilobytes))
            lines.append(
                f"| {network} | {kilobytes} | {values} | {facts} | {spread(list(seen.values()))} | "
                f"{len(seen)} | {'' if aim is None else aim} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(__doc__, "bytes_at_accuracy", rows, table, full=FULL, short=SHORT, measure=run))
