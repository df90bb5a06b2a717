"""How accurate is MLPerf Tiny's ResNet-8 as firmware of 24 and 32 KiB for an nRF52840?

The pretrained network (87.19 %) goes through the whole compiler: trained, packed, linked, run on an
emulated board. The accuracy is that of the C, built for this host, on the whole test set: that of
the integer network in onnxruntime is beside it, and has to be the same.

    python benchmarks/mcu_trained.py --data-dir DIR [--epochs N] [--rows 0,2-4] [--table]
        [--restart]

DIR holds ``cifar-10-batches-py``, ``weights/ic_resnet8.pth`` and ``weights/reference_models.py``
with its class ``ResNet8``. A row that was interrupted goes on from its last epoch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import Config, Experiment, command_line, data_folder, measure_rows
from compiling import compile_row

from hwprune.firmware.host import HostModel
from hwprune.firmware.qlinear import from_onnx
from hwprune.firmware.reference import quantize
from hwprune.ir import Artifact, Data
from hwprune.targets import load
from hwprune.verify.firmware import FIRMWARE_NAME, QLINEAR_NAME, planned

TARGET = "nrf52840"
KIB = 1024
BATCH = 500
# Budget in KiB and seed, the most telling first: a run may be cut short.
CELLS = [(24, 0), (32, 0), (24, 1), (32, 1), (24, 2), (32, 2)]


def rows(epochs: int) -> list[tuple[Config, int]]:
    """Return every configuration and seed."""
    common = {"network": "resnet8", "target": TARGET, "epochs": epochs}
    return [
        ({**common, "budget_bytes": budget * KIB, "strategy": "auto", "options": {}}, seed)
        for budget, seed in CELLS
    ]


def accuracy_of_c(folder: Path, data: Data) -> float:
    """Return what a firmware folder's C, built for this host, gets right of the test set."""
    network = from_onnx(onnx.load(str(folder / QLINEAR_NAME)))
    model, right = HostModel(folder, planned(network, load(TARGET))), 0
    for start in range(0, len(data.test), BATCH):
        samples, labels = data.test.batch(np.arange(start, min(start + BATCH, len(data.test))))
        outputs, _ = model.run(quantize(np.asarray(samples), network.tensors[network.input]))
        right += int((outputs[0].reshape(len(labels), -1).argmax(1) == np.asarray(labels)).sum())
    return right / len(data.test)


def run(config: Config, seed: int, folder: Path, experiment: Experiment) -> None:
    """Compile one row and save it."""
    from hwprune.frontend import load_data, load_model

    weights = folder / "weights"
    model = load_model(
        str(weights / "ic_resnet8.pth"), arch=f"{weights / 'reference_models.py'}:ResNet8",
        inputs=("x:Nx3x32x32:float32",),
    )  # fmt: skip
    data = load_data(f"cifar10:{folder}?normalize=raw255", seed=seed)

    def further(artifact: Artifact) -> dict[str, Any]:
        report = artifact.report
        keys = (
            "flash_bytes", "ram_bytes", "planned_ram_bytes", "stack_bytes", "board", "tensors",
            "instructions", "method", "error",
        )  # fmt: skip
        found = {key: report["firmware"].get(key) for key in keys}
        made = Path(artifact.path).parent / FIRMWARE_NAME
        return {
            "scope": report["verdict"]["scope"],
            "firmware": found,
            "accuracy_of_c": accuracy_of_c(made, data),
        }

    compile_row(experiment, config, seed, model, data, TARGET, further=further)


def table(experiment: Experiment) -> str:
    """Return the record as a table."""
    lines = [
        "| budget | epochs | seed | image B | RAM B | M instructions | nonzeros | accuracy of the "
        "C | in onnxruntime |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in experiment.rows():
        head = f"| {row.config['budget_bytes']:,} | {row.config['epochs']} | {row.seed} |"
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
