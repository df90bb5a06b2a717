"""A model card: the README.md beside a file, with the front matter that Hugging Face reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hwprune.preprocessing import Preprocessing, parse
from hwprune.report import markdown
from hwprune.report.record import Record

# Data sets by their names there.
_DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "fashion-mnist": "fashion_mnist"}


def card(record: Record) -> str:
    """Return the card of a run's file as Markdown."""
    return "\n".join([*_front_matter(record), "", *_lines(record)]) + "\n"


def _front_matter(record: Record) -> Iterator[str]:
    """Yield YAML whose values are JSON, which YAML contains: nothing in them can end it."""
    how, metric = parse(record.metadata.get("preprocessing")), record.metric
    data = record.metadata.get("data", "").partition(" ")[0]
    images = how is not None and how.layout in ("NCHW", "NHWC") and metric.name == "accuracy"
    found: dict[str, Any] = {"library_name": "onnxruntime"}
    found["tags"] = ["hwprune", "onnx", "pruning", "sparse", record.target]
    if images:
        found["pipeline_tag"] = "image-classification"
    if data in _DATASETS:
        found["datasets"] = [_DATASETS[data]]
    if metric.name is not None and metric.final is not None:
        found["metrics"] = [metric.name]
        task = "image-classification" if images else "other"
        result = {
            "task": {"type": task},
            "dataset": {"name": data or "unnamed", "type": _DATASETS.get(data, data or "unnamed")},
            "metrics": [{"type": metric.name, "value": metric.final, "name": metric.name}],
        }
        found["model-index"] = [{"name": record.model, "results": [result]}]
    yield "---"
    for key, value in found.items():
        yield f"{key}: {json.dumps(value, ensure_ascii=True)}"
    yield "---"


def _lines(record: Record) -> Iterator[str]:
    yield from markdown.head(record)
    yield from ("## How to run it", "")
    yield "It needs onnxruntime (1.17 or newer, or the target's own), and no hwprune:"
    yield from ("", *(f"    {line}" for line in _snippet(record)), "")
    how = parse(record.metadata.get("preprocessing"))
    if how is not None:
        yield from ("Before that, of images and values as they are stored:", "")
        yield from (f"{n}. {markdown.text(step)}" for n, step in enumerate(how.sentences(), 1))
        yield ""
    if classes := record.class_names:
        shown = ", ".join(f"{n} {name}" for n, name in enumerate(classes[:100]))
        yield markdown.text(f"Outputs: {shown}{', ...' if len(classes) > 100 else ''}.")
        yield ""
    yield from markdown.metric_and_notes(record)
    yield "The whole record is in `report.json`, for people in `report.html`."


def _snippet(record: Record) -> Iterator[str]:
    how = parse(record.metadata.get("preprocessing"))
    yield "import numpy as np, onnxruntime"
    yield f"session = onnxruntime.InferenceSession({json.dumps(record.artifact.path)})"
    yield "name = session.get_inputs()[0].name"
    if how is not None and not how.embedded:
        yield from _arithmetic(how)
    outputs = "session.run(None, {name: x})"
    yield f"outputs = {outputs}"


def _arithmetic(how: Preprocessing) -> Iterator[str]:
    """Yield Python that makes the input of an array ``stored`` in the file's layout."""
    yield f"x = stored.astype(np.float32) / {how.scale:g}"
    across = f"[:{', None' * (len(how.layout) - 2)}]" if how.layout.startswith("NC") else ""
    for name in ("mean", "std"):
        if numbers := getattr(how, name):
            listed = ", ".join(f"{number:.7g}" for number in numbers)
            sign = "-" if name == "mean" else "/"
            yield f"x = x {sign} np.array([{listed}], np.float32){across}"
