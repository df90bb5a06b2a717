"""Which defaults should bidirectional pruning have? A small screen on ResNet-20, one seed: a hint.

The pretrained ResNet-20 is compiled to 40 KiB (int8) with two short epochs on the first 10,000
training images, for several depths of the extreme state, regrowth steps and initial values of
regrown weights, next to one-way pruning (cubic) at the same cost. Validation accuracy of the
written file decides; the choice does not look at the test set, though the record holds it too.

    python benchmarks/resnet20_defaults.py --data-dir DIR [--rows 0,2-4] [--table] [--restart]

A row that was interrupted goes on from its last epoch.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Experiment, command_line, data_folder, measure_rows
from compiling import compile_row

BUDGET_BYTES = 40 * 1024
TRAIN_IMAGES, EPOCHS, SEED = 10_000, 2, 0


def _arm(strategy: str, **options: Any) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "options": options,
        "budget_bytes": BUDGET_BYTES,
        "train_images": TRAIN_IMAGES,
        "epochs": EPOCHS,
    }


ROWS = [
    _arm("cubic"),
    _arm("cubic", exchange=0.3),
    _arm("bidirectional", depth=0.9, initial="zero"),
    _arm("bidirectional", depth=0.9, initial="pretrained"),
    _arm("bidirectional", depth=0.95, initial="zero"),
    _arm("bidirectional", depth=0.75, initial="zero"),
    _arm("bidirectional", depth=0.5, initial="zero"),
    _arm("bidirectional", depth=0.9, steps=1, initial="zero"),
    _arm("bidirectional", depth=0.9, exchange=0.3, initial="zero"),
]


def run(config: dict[str, Any], folder: Path, experiment: Experiment) -> None:
    """Compile one row and save it."""
    from hwprune.frontend import load_data, load_model
    from hwprune.steps.choosing import Part
    from hwprune.verify.accuracy import accuracy_of

    data = load_data(f"cifar10:{folder}?normalize=imagenet", seed=SEED)
    data = replace(data, train=Part(data.train, np.arange(TRAIN_IMAGES, dtype=np.int64)))
    compile_row(
        experiment,
        config,
        SEED,
        load_model(str(folder / "weights" / "cifar10_resnet20.pth")),
        data,
        "raspberry-pi-zero-2w",
        further=lambda artifact: {
            "validation_accuracy": accuracy_of(artifact.path, data.validation),
            "extreme_validation_accuracy": artifact.report["accuracy"]["extreme"],
        },
    )


def table(experiment: Experiment) -> str:
    """Return the record as a Markdown table."""
    lines = ["| strategy | options | nonzeros | validation | test |", "|---|---|---|---|---|"]
    for row in experiment.rows():
        options = row.config["options"]
        assert isinstance(options, dict)
        told = ", ".join(f"{name} {value}" for name, value in options.items()) or "defaults"
        cells = "not run | |"
        if row.status == "run" and row.accuracy is not None:
            extra: Any = row.model_extra
            cells = (
                f"{extra['nonzeros']:,} | {100 * extra['validation_accuracy']:.2f} | "
                f"{100 * row.accuracy:.2f} |"
            )
        lines.append(f"| {row.config['strategy']} | {told} | {cells}")
    return "\n".join(lines)


def main() -> int:
    """Run the rows that were asked for, then print the table."""
    arguments = command_line(__doc__, resumes=True).parse_args()
    experiment = Experiment(
        "resnet20_defaults", ["python", "benchmarks/resnet20_defaults.py", "--data-dir", "DIR"]
    )
    folder = Path() if arguments.table else data_folder(arguments.data_dir)
    if folder is None:
        return 0
    return measure_rows(
        arguments,
        experiment,
        [(config, SEED) for config in ROWS],
        lambda config, _: run(config, folder, experiment),
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
