"""How accurate are MLPerf Tiny's ResNet-8 and DS-CNN as firmware of a given size?

Pretrained networks go through the whole compiler: trained, packed, linked, run on an emulated
board. The accuracy is that of the C, built for this host, on the whole test set: that of the
integer network in onnxruntime is beside it, and has to be the same.

ResNet-8 (87.19 %) has CIFAR-10. Of DS-CNN (91.5 %) we have the 1,000 maps of the benchmark's own
test alone, too few to train on: what is kept of its weights is fitted by least squares, without
labels, to inputs of one half, drawn by the seed, and the other half is the test set.

    python benchmarks/mcu_trained.py --data-dir DIR [--epochs N] [--rows 0,2-4] [--table]
        [--restart]

DIR holds ``cifar-10-batches-py``, ``kws01/kws01.npz``, ``weights/ic_resnet8.pth``,
``weights/kws_dscnn.pth`` and ``weights/reference_models.py`` with the classes ``ResNet8`` and
``DSCNN``. A row that was interrupted goes on from its last epoch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import Config, Experiment, command_line, data_folder, measure_rows, scratch
from compiling import compile_row

from hwprune.firmware.host import HostModel
from hwprune.firmware.qlinear import from_onnx
from hwprune.firmware.reference import quantize
from hwprune.frontend import load_data, load_model
from hwprune.ir import Artifact, Data, Model
from hwprune.targets import load
from hwprune.verify.firmware import FIRMWARE_NAME, QLINEAR_NAME, planned

TARGET = "nrf52840"
KIB = 1024
BATCH = 500
# Network, budget and RAM in KiB (of None what the chip has), seed; the most telling first.
CELLS = [
    ("resnet8", 24, None, 0), ("resnet8", 32, None, 0), ("ds_cnn", 24, 12, 0),
    ("resnet8", 24, None, 1), ("resnet8", 32, None, 1), ("ds_cnn", 24, 12, 1),
    ("resnet8", 24, None, 2), ("resnet8", 32, None, 2), ("ds_cnn", 24, 12, 2),
]  # fmt: skip
# What an int8 map of kws01 stands for.
KWS_ZERO_POINT, KWS_SCALE = 83, 0.5847029089927673


def rows(epochs: int) -> list[tuple[Config, int]]:
    """Return every configuration and seed."""
    found: list[tuple[Config, int]] = []
    for network, budget, ram, seed in CELLS:
        config: Config = {
            "network": network, "target": TARGET, "epochs": epochs, "budget_bytes": budget * KIB,
            "strategy": "auto", "options": {},
        }  # fmt: skip
        if ram is not None:
            config |= {"ram_bytes": ram * KIB}
        if network == "ds_cnn":
            config |= {"epochs": 0}
        found.append((config, seed))
    return found


def resnet8(folder: Path, seed: int) -> tuple[Model, Data]:
    """Return the network and CIFAR-10."""
    return (
        _model(folder, "ic_resnet8", "ResNet8", "x:Nx3x32x32:float32"),
        load_data(f"cifar10:{folder}?normalize=raw255", seed=seed),
    )


def ds_cnn(folder: Path, seed: int) -> tuple[Model, Data]:
    """Return the network and the halves of kws01."""
    held = np.load(folder / "kws01" / "kws01.npz")
    maps = (held["x"][:, None].astype(np.float32) - KWS_ZERO_POINT) * np.float32(KWS_SCALE)
    order = np.random.default_rng(seed).permutation(len(maps))
    train, test = order[: len(maps) // 2], order[len(maps) // 2 :]
    with scratch() as room:
        place = Path(room) / "kws01.npz"
        labels = held["y"]
        np.savez(place, x=maps[train], y=labels[train], x_test=maps[test], y_test=labels[test])
        data = load_data(f"npz:{place}?normalize=none", seed=seed)
    return _model(folder, "kws_dscnn", "DSCNN", "x:Nx1x49x10:float32"), data


def _model(folder: Path, name: str, kind: str, given: str) -> Model:
    weights = folder / "weights"
    arch = f"{weights / 'reference_models.py'}:{kind}"
    return load_model(str(weights / f"{name}.pth"), arch=arch, inputs=(given,))


NETWORKS = {"resnet8": resnet8, "ds_cnn": ds_cnn}


def accuracy_of_c(folder: Path, data: Data, target: str) -> float:
    """Return what a firmware folder's C, built for this host, gets right of the test set."""
    network = from_onnx(onnx.load(str(folder / QLINEAR_NAME)))
    model, right = HostModel(folder, planned(network, load(target))), 0
    given, labels = network.tensors[network.input], np.asarray(data.test.labels)
    for start in range(0, len(labels), BATCH):
        places = np.arange(start, min(start + BATCH, len(labels)))
        outputs, _ = model.run(quantize(np.asarray(data.test.batch(places)[0]), given))
        right += int((outputs[0].reshape(len(places), -1).argmax(1) == labels[places]).sum())
    return right / len(labels)


def run(config: Config, seed: int, folder: Path, experiment: Experiment) -> None:
    """Compile one row and save it."""
    model, data = NETWORKS[config["network"]](folder, seed)
    place = experiment.state_path(config, seed).with_suffix(".toml")
    target = str(config["target"])
    if "ram_bytes" in config:
        place.parent.mkdir(parents=True, exist_ok=True)
        size = f'{{ value = {config["ram_bytes"]}, source = "an aim of this benchmark" }}'
        place.write_text(f'extends = "{target}"\n[memory]\nram_bytes = {size}\n')
        target = str(place)

    def further(artifact: Artifact) -> dict[str, Any]:
        report = artifact.report
        keys = (
            "flash_bytes", "ram_bytes", "planned_ram_bytes", "stack_bytes", "board", "tensors",
            "instructions", "calibration", "error",
        )  # fmt: skip
        found = {key: report["firmware"].get(key) for key in keys}
        made = Path(artifact.path).parent / FIRMWARE_NAME
        return {
            "scope": report["verdict"]["scope"],
            "firmware": found,
            "accuracy_of_c": accuracy_of_c(made, data, target),
        }

    compile_row(experiment, config, seed, model, data, target, further=further)


def table(experiment: Experiment) -> str:
    """Return the record as a table."""
    lines = [
        "| network | budget | epochs | seed | image B | RAM B | M instructions | nonzeros "
        "| accuracy of the C | in onnxruntime |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in experiment.rows():
        asked = (row.config[key] for key in ("network", "budget_bytes", "epochs"))
        head = f"| {' | '.join(map(str, asked))} | {row.seed} |"
        if row.status != "run":
            lines.append(f"{head} not run | | | | | |")
            continue
        more = row.model_extra or {}
        found: Any = more["firmware"]
        count = f"{found['instructions'] / 1e6:.2f}" if found["instructions"] else ""
        lines.append(
            f"{head} {found['flash_bytes']:,} | {found['ram_bytes']:,} | {count} | "
            f"{row.nonzeros:,} | {more['accuracy_of_c']:.2%} | {row.accuracy:.2%} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the rows that were asked for, then print the table."""
    parser = command_line(__doc__, resumes=True)
    parser.add_argument("--epochs", type=int, default=60, help="epochs a run")
    options = parser.parse_args()
    experiment = Experiment(
        "mcu_trained", ["python", "benchmarks/mcu_trained.py", "--data-dir", "DIR"]
    )
    folder = Path() if options.table else data_folder(options.data_dir)
    if folder is None:
        return 0

    def one(config: Config, seed: int) -> None:
        run(config, seed, folder, experiment)

    return measure_rows(options, experiment, rows(options.epochs), one, table)


if __name__ == "__main__":
    sys.exit(main())
