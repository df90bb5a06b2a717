"""Studies that are over: their records as tables. Nothing is run.

Their arms had strategies and options that were removed or renamed since (docs/strategies.md): names
are those of the record. Arms that differ in strategy and options only stand together, and are
compared with the first cubic one among them, paired by seed.

    python benchmarks/accuracy/history.py [equal_cost|regrowth_rules|tuning|resnet20_defaults]
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from study import Experiment, paired, spread

STUDIES = ("equal_cost", "regrowth_rules", "tuning", "resnet20_defaults")


def table(experiment: Experiment) -> str:
    """Return a record's rows that were run: validation and test accuracy by arm."""
    cells: dict[str, dict[str, list[Any]]] = {}
    for row in experiment.rows():
        if row.status == "run":
            rest = {k: v for k, v in row.config.items() if k not in ("strategy", "options")}
            options = row.config["options"]
            assert isinstance(options, dict)
            told = ", ".join(f"{key} {value}" for key, value in options.items()) or "defaults"
            arms = cells.setdefault(json.dumps(rest, sort_keys=True), {})
            arms.setdefault(f"{row.config['strategy']} | {told}", []).append(row)
    lines = ["| at | strategy | options | validation, % | test, % | seeds | test against cubic |"]
    lines.append("|---" * 7 + "|")
    for rest, arms in cells.items():
        config = json.loads(rest)
        at = f"{100 * config['sparsity']:g} %" if "sparsity" in config else ""
        at = at or f"{config['budget_bytes'] // 1024} KiB"
        first = next((rows for arm, rows in arms.items() if arm.startswith("cubic")), None)
        for arm, rows in arms.items():
            tested = {row.seed: row.accuracy for row in rows}
            seen = [row.model_extra["validation_accuracy"] for row in rows]
            against = ""
            if first is not None and rows is not first:
                against = paired(tested, {row.seed: row.accuracy for row in first})
            shown = f"{spread(seen)} | {spread(list(tested.values()))} | {len(rows)} | {against}"
            lines.append(f"| {at} | {arm} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", nargs="?", choices=STUDIES, default=STUDIES[0])
    name = parser.parse_args().study
    print(table(Experiment(name, ["python", "benchmarks/accuracy/history.py", name])))
