"""How accurate is ResNet-20 on CIFAR-10 at a byte budget, and does regrowth beat one-way pruning?

The pretrained ResNet-20 (91.73 %) goes through the whole compiler at six budgets with int8 values,
by one dip below the budget and by the strongest one-way strategy (cubic gradual), at the same
epochs, recipe and distillation. Records of before the dip was renamed call it bidirectional.
Accuracy is that of the written file on the test set, in
onnxruntime.

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
ONE_WAY = {"strategy": "cubic", "options": {}}
ONE_DIP = {"strategy": "bidirectional-single", "options": {}}
# (budget in KiB, seed), the most telling first: a run may be cut short.
CELLS = [
    (40, 0), (64, 0), (96, 0), (40, 1), (64, 1), (40, 2), (64, 2), (32, 0), (48, 0), (128, 0),
]  # fmt: skip


def rows(epochs: int) -> list[tuple[dict[str, Any], int]]:
    """Return every (config, seed), the two strategies of a cell next to each other.

    What fits a budget depends on the codecs: with other ones a row is another row.
    """
    common = {"values": "int8", "epochs": epochs, "codecs": list(load(TARGET).codecs)}
    return [
        ({"budget_bytes": budget * KIB, **common, **arm}, seed)
        for budget, seed in CELLS
        for arm in (ONE_WAY, ONE_DIP)
    ]


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


def table(experiment: Experiment) -> str:
    """Return the rows of today's codecs as a Markdown table: means over seeds, their number.

    Nonzeros are the means of each arm: bytes are equal, and what positions cost differs.
    """
    groups: dict[tuple[int, int], dict[str, list[Any]]] = {}
    codecs = list(load(TARGET).codecs)
    for row in experiment.rows():
        config = row.config
        if config.get("codecs") != codecs:
            continue
        key = (int(config["epochs"]), int(config["budget_bytes"]))  # type: ignore[arg-type]
        groups.setdefault(key, {}).setdefault(str(config["strategy"]), []).append(row)
    lines = [
        "| epochs | budget | one-way (cubic) | nonzeros | one dip | nonzeros | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for (epochs, budget), arms in sorted(
        groups.items(), key=lambda item: (item[0][0], -item[0][1])
    ):
        cells, seeds = [], []
        for names in (("cubic",), ("bidirectional-single", "bidirectional")):
            done = [row for name in names for row in arms.get(name, []) if row.status == "run"]
            seeds.append(str(len(done)))
            values = [100 * row.accuracy for row in done]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "not run")
            counts = [row.nonzeros for row in done]
            cells.append(f"{statistics.mean(counts):,.0f}" if counts else "")
        lines.append(
            f"| {epochs} | {budget // KIB} KiB | {' | '.join(cells)} | {' and '.join(seeds)} |"
        )
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
