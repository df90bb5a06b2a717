"""Draw records: fig1, fig2, bytes_at_accuracy (with the published points) and ours alone.

python benchmarks/accuracy/figures.py [NAME ...]    writes docs/NAME.svg (matplotlib: the dev extra)

A point of ours is a row of benchmarks/results; one that was not run is not drawn, and a panel
without any says so. Where no row of the full scale was run, those of ``--short`` are drawn, and
said to be.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bytes_at_accuracy
import fig1
import fig2
import published
import resnet20_budgets
import shrink_exchange
from study import Config, Experiment, by_seed, differences, interval

DOCS = Path(__file__).resolve().parents[2] / "docs"
TITLES = {
    "cifar-resnet20": "ResNet-20", "cifar-vgg16-bn": "VGG16", "cifar-densenet121": "DenseNet-121",
    "cifar-efficientnet-b0": "EfficientNet-B0",
}  # fmt: skip
OURS = {"iterative": "#1f77b4", "one-shot": "#2ca02c"}
PAPER, OTHERS = "#d62728", "#7f7f7f"
MARKERS = "sD^vPX*"
KILOBYTES, BYTES = (20, 30, 50, 100, 200, 300, 400), (15, 500)
TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
Series = Sequence[tuple[float, Sequence[float]]]


def chosen(experiment: Experiment, network: str, full: Config, short: Config) -> Config:
    """Return the scale to draw: the full one, or the short one where only that was run."""

    def has(scale: Config) -> bool:
        wanted = {"network": network, **scale}
        return any(
            row.status == "run" and {key: row.config.get(key) for key in wanted} == wanted
            for row in experiment.rows()
        )

    return short if not has(full) and has(short) else full


def words(scale: Config, unit: str) -> str:
    """Return a scale in words."""
    epochs = f"{scale['epochs']} epoch{'s' if scale['epochs'] > 1 else ''} a {unit}"
    images = scale["train_images"]
    return epochs if images is None else f"{epochs}, {images:,} images only"


def _line(axis: Any, points: Series, label: str, colour: str, place: Callable[[float], float],
          **style: Any) -> None:  # fmt: skip
    """Draw means over seeds, with their standard deviation where there are several."""
    if not points:
        return
    x = [place(at) for at, _ in points]
    y = [100 * statistics.mean(seen) for _, seen in points]
    errors = [100 * statistics.stdev(seen) if len(seen) > 1 else 0.0 for _, seen in points]
    seeds = max(len(seen) for _, seen in points)
    label = f"{label}, {seeds} seed{'s' if seeds > 1 else ''}"
    style = {"marker": "o", "markersize": 4, "capsize": 2, **style}
    axis.errorbar(x, y, yerr=errors, label=label, color=colour, **style)


def _sparsity_axis(axis: Any, low: float, high: float) -> None:
    """Spread out what matters, between 90 and 99.5 %: a logarithm of what is kept."""
    axis.set_xscale("log")
    axis.set_xlim(1 - low, 1 - high)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axis.set_xticks([1 - tick for tick in ticks], [f"{100 * tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("sparsity, %")
    axis.set_ylabel("CIFAR-10 test accuracy, %")


def _head(axis: Any, title: str, scale: str, anything: bool) -> None:
    """Name a panel, and say how its rows were run, or that none was."""
    axis.set_title(f"{title}, {scale}" if anything else title)
    if not anything:
        axis.text(0.5, 0.6, "hwprune: not run", transform=axis.transAxes, ha="center", alpha=0.6)


def _kept(sparsity: float) -> float:
    return 1 - sparsity


def _others(axis: Any, network: str, low: float = 0.0) -> None:
    known = [each for each in published.OTHERS if each.network == network and each.sparsity >= low]
    for number, source in enumerate(dict.fromkeys(each.source for each in known)):
        points = [each for each in known if each.source == source]
        axis.errorbar(
            [1 - each.sparsity for each in points],
            [each.accuracy for each in points],
            yerr=[each.spread for each in points],
            fmt=MARKERS[number % len(MARKERS)], color=OTHERS, mfc="none", markersize=6,
            label=source,
        )  # fmt: skip


def draw_fig1(pyplot: Any, experiment: Experiment) -> Any:
    """Return Figure 1: a panel for each network."""
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9))
    for axis, network in zip(axes.flat, fig1.NETWORKS, strict=True):
        scale = chosen(experiment, network, fig1.FULL, fig1.SHORT)
        found = fig1.curves(experiment, network, scale)
        for mode, points in found.items():
            series = [(sparsity, seen) for sparsity, _, seen in points]
            _line(axis, series, f"hwprune, {mode}", OURS[mode], _kept)
        paper = [point for point in published.PAPER_ONE_WAY if point.network == network]
        if paper:
            x, y = [1 - point.sparsity for point in paper], [point.accuracy for point in paper]
            axis.plot(x, y, "*", color=PAPER, ms=11, label=published.PAPER)
        for point in paper:
            axis.annotate(f" {point.source}", (1 - point.sparsity, point.accuracy), fontsize=7)
        if network in published.PAPER_DENSE:
            dense = published.PAPER_DENSE[network]
            axis.axhline(dense, color=PAPER, lw=0.8, ls=":", label=f"{published.PAPER}, dense")
        if network in published.PAPER_LOSS:
            at, loss = published.PAPER_LOSS[network]
            note = f"{published.PAPER}: {loss} points lost at {100 * at:g} %"
            axis.text(0.03, 0.94, note, transform=axis.transAxes, color=PAPER)
        _others(axis, network)
        _sparsity_axis(axis, 0.0, 0.995)
        _head(axis, TITLES[network], words(scale, "stage"), any(found.values()))
        _legend(axis)
    return figure


def draw_fig2(pyplot: Any, experiment: Experiment) -> Any:
    """Return Figure 2: a panel for each mode."""
    scale = chosen(experiment, fig2.NETWORK, fig2.FULL, fig2.SHORT)
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5))
    for axis, (mode, states) in zip(axes, fig2.STATES.items(), strict=True):
        random = fig2.trajectory(mode, scale, regrow_score="random")
        grown = _states(experiment, fig2.trajectory(mode, scale), states)
        arms: dict[str, Series] = {
            "regrown": grown,
            "regrown at random": _states(experiment, random, states),
            "one-way at the same cost": [
                (sparsity, list(seen.values()))
                for number, sparsity in enumerate(states)
                if number
                and (seen := fig2.at(experiment, fig2.one_way(mode, number, scale), sparsity))
            ],
        }
        styles: Mapping[str, Mapping[str, Any]] = {
            "regrown at random": {"color": "#9467bd", "ls": "--"},
            "one-way at the same cost": {"color": "#2ca02c", "ls": ""},
        }
        for label, series in arms.items():
            style = {"color": OURS["iterative"], **styles.get(label, {})}
            colour = style.pop("color")
            _line(axis, series, f"hwprune, {label}", colour, _kept, **style)
        paper = published.PAPER_TRAJECTORIES[mode]
        axis.plot(
            [1 - each.sparsity for each in paper], [each.accuracy for each in paper], "*-",
            color=PAPER, ms=11, lw=0.8, label=f"{published.PAPER}, regrown",
        )  # fmt: skip
        _others(axis, fig2.NETWORK, 0.9)
        _sparsity_axis(axis, 0.9, 0.995)
        _head(axis, f"VGG16, {mode}", words(scale, "stage"), any(arms.values()))
        _legend(axis)
    return figure


def _states(experiment: Experiment, config: Config, states: Sequence[float]) -> Series:
    found = [(sparsity, fig2.at(experiment, config, sparsity)) for sparsity in states]
    return [(sparsity, list(seen.values())) for sparsity, seen in found if seen]


def draw_bytes_at_accuracy(pyplot: Any, experiment: Experiment) -> Any:
    """Return accuracy against the bytes of files, and against the entropy of what is in them."""
    module = bytes_at_accuracy
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5))
    for axis, (network, cells) in zip(axes, module.CELLS.items(), strict=True):
        scale = chosen(experiment, network, module.FULL, module.SHORT)
        files: dict[str, list[tuple[float, list[float]]]] = {}
        bounds: list[tuple[float, list[float]]] = []
        for kilobytes, values in cells:
            config = module.cell(network, kilobytes, values, scale)
            seen = list(by_seed(experiment, config).values())
            if not seen:
                continue
            sizes = by_seed(experiment, config, "artifact_bytes").values()
            files.setdefault(values, []).append((statistics.mean(sizes) / module.KB, seen))
            least = by_seed(experiment, config, "bound_bytes").values()
            bounds.append((statistics.mean(least) / module.KB, seen))
        for number, (values, points) in enumerate(files.items()):
            colour = ("#1f77b4", "#2ca02c", "#9467bd")[number % 3]
            _line(axis, sorted(points), f"hwprune's files, {values}", colour, float)
        label = "entropy of their positions and values"
        _line(axis, sorted(bounds), label, "black", float, marker="|", markersize=9, ls="")
        codes = [code for code in published.CODES if code.network == network]
        for number, source in enumerate(dict.fromkeys(code.source for code in codes)):
            mine = [code for code in codes if code.source == source]
            axis.plot(
                [code.kilobytes for code in mine], [code.accuracy for code in mine],
                MARKERS[number], color=PAPER, label=source,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlim(*BYTES)
        axis.set_xticks(KILOBYTES, [str(each) for each in KILOBYTES])
        axis.minorticks_off()
        axis.set_xlabel("KB (1,000 bytes)")
        axis.set_ylabel("CIFAR-10 test accuracy, %")
        _head(axis, TITLES[network], words(scale, "run"), bool(files))
        _legend(axis, "lower right")
    return figure


def draw_shrink_exchange(pyplot: Any, experiment: Experiment) -> Any:
    """Return how far each arm is ahead of cubic pruning in 60 events, a panel for each network."""
    module = shrink_exchange
    titles = {"mlp": "MLP, 89,400 weights", "cnn": "CNN, 14,288 weights"}
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for axis, (network, sparsities) in zip(axes, module.RECORDED.items(), strict=True):
        for number, name in enumerate(each for each in module.ARMS if each != module.CUBIC):
            label = name
            for place, sparsity in enumerate(sparsities):
                first, second = (
                    by_seed(experiment, module.cell(network, each, sparsity, module.SMALL))
                    for each in (name, module.CUBIC)
                )
                if len(ahead := differences(first, second)) < 2:
                    continue
                mean, (low, high) = statistics.mean(ahead), interval(ahead)
                axis.errorbar(
                    place + 0.15 * (number - 1.5), mean, yerr=[[mean - low], [high - mean]],
                    fmt="o", capsize=3, color=f"C{number}", label=label,
                )  # fmt: skip
                label = "_"  # once in the legend
        axis.axhline(0, color=OTHERS, lw=0.8)
        axis.set_xticks(range(len(sparsities)), [f"{100 * each:g} %" for each in sparsities])
        axis.set_title(titles[network])
        axis.set_ylabel("points ahead of cubic, test")
    _legend(axes[1], "upper left")
    return figure


def draw_resnet20_budgets(pyplot: Any, experiment: Experiment) -> Any:
    """Return accuracy against the bytes of the file: what runs of the most epochs came to."""
    module = resnet20_budgets
    epochs = max((int(row.config["epochs"]) for row in experiment.rows()), default=0)
    figure, axis = pyplot.subplots(figsize=(7, 3.6))
    names = {"the default": "hwprune", "cubic, its own settings": "one-way (cubic, LAMP)"}
    found = dict(module.measured(experiment))
    for (label, name), colour in zip(names.items(), OURS.values(), strict=True):
        points = [
            (budget / module.KIB, [row.accuracy for row in arms[label]])
            for (ran, budget), arms in sorted(found.items())
            if ran == epochs and label in arms
        ]
        _line(axis, points, f"{name}, {epochs} epochs", colour, float)
    for row in module.whole(experiment):
        size, accuracy = row.artifact_bytes / module.KIB, 100 * row.accuracy
        axis.plot(size, accuracy, "s", color="black", label="all weights, int8 (no training)")
        axis.plot(module.DENSE_BYTES / module.KIB, 100 * row.dense_accuracy, "D", color=OTHERS,
                  label="all weights, fp32")  # fmt: skip
    axis.set_xscale("log")
    ticks = (32, 40, 48, 64, 96, 128, 256, 512, 1024)
    axis.set_xticks(ticks, [f"{each:,}" for each in ticks])
    axis.minorticks_off()
    axis.set_xlabel("KiB of the ONNX file")
    axis.set_ylabel("CIFAR-10 test accuracy, %")
    axis.set_title("ResNet-20 through hwprune compile")
    _legend(axis, "lower right")
    return figure


def _legend(axis: Any, place: str = "lower left") -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, loc=place)


FIGURES = {
    "fig1": draw_fig1, "fig2": draw_fig2, "bytes_at_accuracy": draw_bytes_at_accuracy,
    "shrink_exchange": draw_shrink_exchange, "resnet20_budgets": draw_resnet20_budgets,
}  # fmt: skip


def main(names: Sequence[str], folder: Path = DOCS) -> int:
    """Draw the figures of these names, all where there is none."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "hwprune"  # the same record gives the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # letters as letters: a third of the bytes
    from matplotlib import pyplot

    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        print(f"no figure {unknown[0]!r}: one of {', '.join(FIGURES)}", file=sys.stderr)
        return 2
    for name in names or FIGURES:
        figure = FIGURES[name](pyplot, Experiment(name, []))
        figure.tight_layout()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)
        print(folder / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
