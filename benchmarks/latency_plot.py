"""Draw the record of benchmarks/latency.py: speed-up over dense onnxruntime against sparsity.

python benchmarks/latency_plot.py      writes docs/latency.svg (needs matplotlib: the dev extra)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bench_record
from common import RESULTS

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "latency.svg"
STYLES = {
    "kernels": ("hwprune kernels", "#1f77b4", "o"),
    "deepsparse": ("DeepSparse", "#d62728", "s"),
    "openvino": ("OpenVINO", "#7f7f7f", "^"),
}

TICKS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40)


def series(rows: list[bench_record.Row]) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return (network, batch, threads) -> engine -> [(sparsity in per cent, speed-up)]."""
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for row in rows:
        if row.status != "run":
            continue
        config: dict[str, Any] = dict(row.config)
        key = (config["network"], config["batch"], config["threads"])
        if config["sparsity"] == 0 or config["mask"] != "uniform" or "values" in config:
            continue  # nothing of ours runs at 0 %; a panel compares random fp32 weights
        for engine, speedup in (row.model_extra or {})["speedup"].items():
            if engine in STYLES:
                point = (100 * config["sparsity"], speedup)
                found.setdefault(key, {}).setdefault(engine, []).append(point)
    return found


def main() -> int:
    """Draw one panel per network, batch and number of threads that was measured."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "hwprune"  # the same record gives the same file
    from matplotlib import pyplot

    record = bench_record.read(RESULTS / "latency.json")
    panels = series(list(record.rows)) if record is not None else {}
    if not panels:
        print("there is no measured row in benchmarks/results/latency.json", file=sys.stderr)
        return 1
    columns = 3
    height = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(12, 3.4 * height), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, ((network, batch, threads), engines) in zip(axes.flat, panels.items(), strict=False):
        for engine, points in engines.items():
            label, colour, marker = STYLES[engine]
            x, y = zip(*sorted(points), strict=True)
            # Evenly spaced cells: most of what matters happens between 95 and 99.5 %.
            axis.plot([f"{each:g}" for each in x], y, marker=marker, color=colour, label=label)
        axis.axhline(1, color="#bbbbbb", linewidth=1)
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.set_yticks([tick for tick in TICKS if low <= tick <= high])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_title(f"{network}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
        axis.set_xlabel("sparsity, %")
        axis.set_ylabel("times dense onnxruntime")
    axes.flat[0].legend()
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})
    print(FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
