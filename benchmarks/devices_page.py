"""docs/devices.md out of the record of devices.py: plain tables, and what their numbers are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench_record import BenchRecord, Row

Config = Mapping[str, Any]

_HEAD = """\
# Devices

<!-- Written by benchmarks/devices.py from benchmarks/results/devices.json: do not edit. -->

What two networks come to on every built-in device profile: how many weights fit, what the file
weighs, how accurate it still is. `docs/targets.md` says where the budgets come from.

## How to reproduce it

```bash
pip install '.[compile]'                        # in a checkout
python benchmarks/devices.py                    # the demo network; downloads nothing
python benchmarks/devices.py --data-dir DIR     # and the ResNet-20
python benchmarks/devices.py --page             # this page again, from the record
```

`DIR` (or the variable `HWPRUNE_DATA`) holds `cifar-10-batches-py`, the unpacked Python version of
[CIFAR-10](https://www.cs.toronto.edu/~kriz/cifar.html), and `weights/cifar10_resnet20.pth`, the
state dict of [akamaster's ResNet-20](https://github.com/akamaster/pytorch_resnet_cifar10).
Each row is saved when it is measured, so a run that was stopped goes on where it was. To measure
anew, move `benchmarks/results/devices.json` away.

## What is measured, and what is not

- *Budget*: the profile's default, unless the section says otherwise. *File* is the whole ONNX file
  in bytes; it is what the budget counts.
- *Most nonzeros* is what fits the budget with the stored value type, for the connections that LAMP
  scores of the trained weights choose. *Nonzeros* is what the file holds; training chose them, and
  what lies elsewhere can take a few bytes more or less.
- *Strategy*, where weights have to go, is what was hwprune's default when the row was run (today it
  is `cubic`, one-way), with the fraction of the budget that `bidirectional` pruned down to before
  it regrew, and the epochs that were trained; the record has all its options.
  It is `dense (0)` where every weight fits, as fp32 or quantised: nothing was trained there, and
  only weights that are zero once quantised are not stored.
- *Accuracy* is top-1 on the test split, of the file, in onnxruntime on the host; *dense* is the
  dense fp32 file of the same network. One seed: a difference of a few images means nothing.
- *Host latency* is the median of single inferences, one thread, in the onnxruntime of **the host
  named below, not of the device**. Other load on the host was not controlled. onnxruntime decodes
  a pruned file when it loads it and runs at dense speed: no gain is to be expected.
- Microcontrollers: the size of the ONNX file is compared with the budget. Nothing was linked and
  nothing ran on a device: the scope reads `onnx-size-only, not linked`, and the latency is null.
- *Measured with*: devices that agree in budget, opset, IR version, inlining, codecs, value types
  and kind of runtime have the same outcome. It was measured once, for the device named there.
- Rows are measured when they are run, not when the compiler changes: a row that was run by an
  earlier one may come out a little differently today (its file's size, its strategy's defaults).
- No number on this page was measured on a device.
"""

# Heading and alignment.
_COLUMNS = (
    ("device", "---"),
    ("budget", "--:"),
    ("most nonzeros", "--:"),
    ("nonzeros", "--:"),
    ("sparsity", "--:"),
    ("file", "--:"),
    ("values", "---"),
    ("form", "---"),
    ("strategy (epochs)", "---"),
    ("accuracy: dense", "--:"),
    ("accuracy: file", "--:"),
    ("host latency: dense, file", "--:"),
    ("verdict (scope)", "---"),
    ("measured with", "---"),
)


def page(wanted: Sequence[Config], seed: int, record: BenchRecord) -> str:
    """Return the page: one table per network and budget, a line per wanted row, run or not."""
    sections = [_HEAD, _environment(record)]
    groups: dict[tuple[str, str], list[Config]] = {}
    for config in wanted:
        groups.setdefault((config["network"], config["budget"]), []).append(config)
    for configs in groups.values():
        rows = [record.row(config, seed) for config in configs]
        sections.append(_section(configs, rows))
    return "\n".join(sections)


def _section(configs: Sequence[Config], rows: Sequence[Row | None]) -> str:
    first = configs[0]
    which = "the devices' default budgets"
    if first["budget"] == "forced":
        which = f"{first['budget_bytes']:,} B everywhere"
    lines = [f"## {first['network']}: {which}", "", *_summary(configs, rows), ""]
    lines.append("| " + " | ".join(name for name, _ in _COLUMNS) + " |")
    lines.append("|" + "|".join(rule for _, rule in _COLUMNS) + "|")
    for config, row in zip(configs, rows, strict=True):
        lines.append("| " + " | ".join(cells(config, row)) + " |")
    return "\n".join([*lines, ""])


def _summary(configs: Sequence[Config], rows: Sequence[Row | None]) -> list[str]:
    """Return a sentence or two that the table bears out."""
    done = [values(row) for row in rows if row is not None]
    lines = []
    if len(done) < len(rows):
        lines.append(f"{len(rows) - len(done)} of {len(rows)} rows were not run.")
    compiled = [found for found in done if "error" not in found]
    if compiled:
        one = compiled[0]
        whole = sum(found["max_nonzeros"] == found["weights"] for found in compiled)
        least = min(found["sparsity"] for found in compiled)
        lines.append(f"{one['weights']:,} prunable weights; {one['samples']:,} test images.")
        lines.append(
            f"Every weight fits on {whole} of the {len(compiled)} devices that were run."
            if whole
            else f"Every file is at least {100 * least:.1f} % sparse."
        )
    if any(_foreign(config, values(row)) for config, row in zip(configs, rows, strict=True) if row):
        lines.append(
            "A star: the file holds values that the profile does not list among those its runtime "
            "decodes."
        )
    return [" ".join(lines)]


def values(row: Row) -> dict[str, Any]:
    """Return a row's measurements as plain values."""
    return row.model_dump(mode="json")


def cells(config: Config, row: Row | None) -> list[str]:
    """Return a table line's cells; a row that was not run says so."""
    head = [config["target"], f"{config['budget_bytes']:,} B"]
    if row is None:
        return [*head, "not run", *[""] * (len(_COLUMNS) - 3)]
    found = values(row)
    if "error" in found:
        verdict = f"does not fit (exit code {found['exit_code']}): {found['error']}"
        line = " ".join(verdict.replace("|", "/").split())
        return [*head, *[""] * (len(_COLUMNS) - 4), line, found["measured_with"]]
    star = " \\*" if _foreign(config, found) else ""
    return [
        *head,
        f"{found['max_nonzeros']:,}",
        f"{found['nonzeros']:,}",
        f"{100 * found['sparsity']:.2f} %",
        f"{found['artifact_bytes']:,} B",
        ", ".join(found["value_types_used"]) + star,
        found["form"],
        _strategy(found),
        _percent(found["dense_accuracy"]),
        _percent(found["accuracy"]),
        _latency(found["host_latency"]),
        _verdict(found),
        found["measured_with"],
    ]


def _foreign(config: Config, found: Mapping[str, Any]) -> bool:
    """Return whether the file holds values that its target is not said to decode."""
    return not set(found.get("value_types_used", ())) <= set(config["value_types"])


def _strategy(found: Mapping[str, Any]) -> str:
    depth = found["strategy_options"].get("depth")
    return f"{found['strategy']}{'' if depth is None else f' {depth}'} ({found['trained_epochs']})"


def _percent(fraction: float | None) -> str:
    return "null" if fraction is None else f"{100 * fraction:.2f} %"


def _latency(latency: Mapping[str, Any] | None) -> str:
    if latency is None:
        return "null"
    return f"{latency['dense']['p50_ms']:.3f}, {latency['artifact']['p50_ms']:.3f} ms"


def _verdict(found: Mapping[str, Any]) -> str:
    fits = "fits" if found["fits"] else "does not fit"
    verified = "verified" if found["verified"] else "not verified"
    return f"{fits}, {verified} ({found['scope']})"


def _environment(record: BenchRecord) -> str:
    lines = ["## The host", "", "| what | value |", "|---|---|"]
    for name, value in record.environment.items():
        lines.append(f"| {name} | {'not installed as a package' if value is None else value} |")
    return "\n".join([*lines, ""])
