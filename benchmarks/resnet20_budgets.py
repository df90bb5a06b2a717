"""How accurate is ResNet-20 on CIFAR-10 at a byte budget?

The pretrained ResNet-20 (91.73 %) goes through the whole compiler at six budgets with int8 values,
by the default (``auto``), by cubic pruning with its own settings and by one dip below the budget,
at the same epochs, recipe and distillation; and once with all of its weights, int8, untrained.
Records of before the dip was renamed call it bidirectional. Accuracy is that of the written file
on the test set, in onnxruntime.

    python benchmarks/resnet20_budgets.py --data-dir DIR [--epochs N] [--rows 0,2-4] [--table]
        [--restart]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth`` (the checkpoint of
akamaster/pytorch_resnet_cifar10). The compiler keeps its state after every epoch, and a row that
was interrupted goes on from there; rows that were saved are not run again.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from common import Experiment, command_line, data_folder, measure_rows
from compiling import compile_row

from hwprune.ir import Artifact
from hwprune.targets import load

KIB = 1024
TARGET = "raspberry-pi-zero-2w"
ARMS = {
    "the default": ("auto",),
    "cubic, its own settings": ("cubic",),
    "one dip": ("bidirectional-single", "bidirectional"),  # the second: its former name
}
# (budget in KiB, seed), the most telling first: a run may be cut short.
CELLS = [
    (40, 0), (64, 0), (96, 0), (32, 0), (48, 0), (128, 0), (40, 1), (64, 1), (40, 2), (64, 2),
]  # fmt: skip
ALL_WEIGHTS_BYTES = 512 * KIB  # more than all of them take as int8
DENSE_BYTES = 1_078_903  # of the dense fp32 file, as `hwprune plan` has it


def rows(epochs: int) -> list[tuple[dict[str, Any], int]]:
    """Return every (config, seed): the default at each cell, the whole network, then the controls.

    What fits a budget depends on the codecs: with other ones a row is another row.
    """
    common = {"values": "int8", "codecs": list(load(TARGET).codecs), "options": {}}

    def arm(strategy: str) -> list[tuple[dict[str, Any], int]]:
        shared = {**common, "epochs": epochs, "strategy": strategy}
        return [({"budget_bytes": budget * KIB, **shared}, seed) for budget, seed in CELLS]

    whole = {"budget_bytes": ALL_WEIGHTS_BYTES, **common, "epochs": 0, "strategy": "dense"}
    return [*arm("auto"), (whole, 0), *arm("cubic"), *arm("bidirectional-single")]


def run(config: dict[str, Any], seed: int, folder: Path, experiment: Experiment) -> None:
    """Compile one row and save it."""
    from hwprune.frontend import load_data, load_model

    model = load_model(str(folder / "weights" / "cifar10_resnet20.pth"))
    data = load_data(f"cifar10:{folder}?normalize=imagenet", seed=seed)
    compile_row(experiment, config, seed, model, data, TARGET, further=_course)


def _course(artifact: Artifact) -> dict[str, Any]:
    """Return what a row holds of the way to its file."""
    found = artifact.report["accuracy"]
    return {
        "extreme_validation_accuracy": found["extreme"],
        "trajectory": [
            {key: point[key] for key in ("epoch", "action", "nonzeros", "accuracy")}
            for point in found["trajectory"]
            if point["accuracy"] is not None
        ],
    }


def measured(experiment: Experiment) -> dict[tuple[int, int], dict[str, list[Any]]]:
    """Return (epochs, budget in bytes) -> arm -> the rows of today's codecs that were run."""
    codecs = list(load(TARGET).codecs)
    arms = {strategy: name for name, strategies in ARMS.items() for strategy in strategies}
    found: dict[tuple[int, int], dict[str, list[Any]]] = {}
    for row in experiment.rows():
        config: dict[str, Any] = dict(row.config)
        if config.get("codecs") == codecs and row.status == "run" and config["strategy"] in arms:
            group = found.setdefault((config["epochs"], config["budget_bytes"]), {})
            group.setdefault(arms[config["strategy"]], []).append(row)
    return found


def whole(experiment: Experiment) -> list[Any]:
    """Return the rows that kept all weights."""
    return [row for row in experiment.rows() if row.config["strategy"] == "dense"]


def table(experiment: Experiment) -> str:
    """Return the rows as a Markdown table: means over seeds, their number.

    Nonzeros are the means of each arm: bytes are equal, and what positions cost differs.
    """
    columns = " | ".join(f"{name} | nonzeros" for name in ARMS)
    lines = [f"| epochs | budget | {columns} | seeds |", "|---" * (3 + 2 * len(ARMS)) + "|"]
    order = sorted(measured(experiment).items(), key=lambda each: (each[0][0], -each[0][1]))
    for (epochs, budget), arms in order:
        cells = []
        for done in (arms.get(name, []) for name in ARMS):
            values = [100 * row.accuracy for row in done]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "")
            cells.append(f"{statistics.mean(row.nonzeros for row in done):,.0f}" if done else "")
        seeds = ", ".join(str(len(arms.get(name, []))) for name in ARMS)
        lines.append(f"| {epochs} | {budget // KIB} KiB | {' | '.join(cells)} | {seeds} |")
    lines += [
        f"\nAll weights as int8, untrained: {row.artifact_bytes:,} B, {100 * row.accuracy:.2f} %"
        for row in whole(experiment)
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the rows that were asked for, then print the table."""
    parser = command_line(__doc__, resumes=True)
    parser.add_argument("--epochs", type=int, default=12, help="epochs a run, at most 12")
    arguments = parser.parse_args()
    if not 1 <= arguments.epochs <= 12:
        parser.error("--epochs must be 1 to 12")
    experiment = Experiment(
        "resnet20_budgets", ["python", "benchmarks/resnet20_budgets.py", "--data-dir", "DIR"]
    )
    folder = Path() if arguments.table else data_folder(arguments.data_dir)
    if folder is None:
        return 0
    return measure_rows(
        arguments,
        experiment,
        rows(arguments.epochs),
        lambda config, seed: run(config, seed, folder, experiment),
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
