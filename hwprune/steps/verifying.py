"""Is the file what was promised? Checked on the file itself, in stock onnxruntime on this host."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hwprune.errors import HwpruneError
from hwprune.export.artifact import read_artifact
from hwprune.export.operators import altered_functions
from hwprune.export.pipeline import decoded_parameters, renewed
from hwprune.export.template import Template, Written
from hwprune.ir import Data, Masks, Model
from hwprune.steps.output import write_file
from hwprune.targets import Target
from hwprune.verify import accuracy, latency, memory, parity, speeds
from hwprune.verify.parity import Parity

# Against the torch network that holds the decoded weights; what quantising costs is reported apart.
MAX_RELATIVE_ERROR = 1e-4
_PARITY_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Checked:
    """What verification found.

    Attributes:
        problems: what is wrong, in sentences; empty where the file is right.
        parity: file against torch, None where the file does not run.
        speeds: native kernels against stock onnxruntime, None where there is one speed.
        one_speed: why there is one, None where kernels ran.
    """

    problems: tuple[str, ...]
    parity: Parity | None
    speeds: Parity | None = None
    one_speed: str | None = None


def verify_file(
    path: Path,
    written: Written,
    masks: Masks | None,
    model: Model,
    template: Template,
    *,
    target: Target,
    budget_bytes: int,
    data: Data | None,
) -> Checked:
    """Check a written file: form, size, function bodies, stored weights, and outputs.

    Args:
        path: the file.
        written: what was meant to be written.
        masks: what must be stored (None for a dense file).
        model: the network it was made of, its module holding the weights.
        template: the network's artifact without masks.
        target: the device.
        budget_bytes: what the file may weigh.
        data: where samples for the comparison come from; random ones without.
    """
    problems: list[str] = []
    size = path.stat().st_size
    if size != len(written.data):
        problems.append(f"the file has {size} bytes, {len(written.data)} were written")
    if size > budget_bytes:
        problems.append(f"the file has {size} bytes, the budget is {budget_bytes}")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # onnx raises several unrelated classes
        problems.append(f"onnx.checker refuses it: {str(error).splitlines()[0]}")
    try:
        if altered := altered_functions(onnx.load(str(path))):
            problems.append(f"function bodies differ from their names: {', '.join(altered)}")
        if masks is not None:
            stored = sum(layer.nonzeros for layer in read_artifact(str(path)).layers)
            expected = sum(int(np.count_nonzero(masks[name])) for name in masks)
            if stored != expected:
                problems.append(f"{stored} nonzeros are stored, the masks hold {expected}")
        feeds = _samples(model, data)
        found = _parity(path, written, model.module, template, feeds)
        one_speed = _why_one_speed(path, target)
        both = speeds.compare_speeds(str(path), feeds) if one_speed is None else None
    except HwpruneError as error:
        return Checked((*problems, error.message), None)
    if not found.relative_error <= MAX_RELATIVE_ERROR:
        problems.append(
            f"outputs differ from the torch network with the decoded weights by "
            f"{found.relative_error:.1e} of their range, more than {MAX_RELATIVE_ERROR:.0e}"
        )
    return Checked(tuple(problems), found, both, one_speed)


def _why_one_speed(path: Path, target: Target) -> str | None:
    if target.runtime.kind != "onnxruntime":
        return f"{target.name} runs firmware"
    return speeds.why_one_speed(read_artifact(str(path)))


def _parity(
    path: Path, written: Written, trained: Any, template: Template, feeds: list[NDArray[Any]]
) -> Parity:
    import torch

    module = copy.deepcopy(trained)
    if written.encoding is not None:
        template = renewed(template, trained)
        named = dict(module.named_parameters(remove_duplicate=False))
        named |= dict(module.named_buffers(remove_duplicate=False))
        decoded = decoded_parameters(template, written, trained)
        with torch.no_grad():
            for name, value in decoded.items():
                named[name].copy_(torch.from_numpy(value))
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(array) for array in feeds))
    references = [output.detach().numpy() for output in _tensors(outputs)]
    return parity.compare(str(path), feeds, references, batch=len(feeds[0]))


def _tensors(outputs: Any) -> Iterator[Any]:
    """Yield the tensors of a nested output, in the order in which the exporter flattens it."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, (tuple, list)):
        for output in outputs:
            yield from _tensors(output)
    elif outputs is not None:
        yield outputs


def _samples(model: Model, data: Data | None) -> list[NDArray[Any]]:
    inputs = model.inputs
    fixed = next((spec.shape[0] for spec in inputs if spec.shape and spec.shape[0]), None)
    count = fixed or _PARITY_SAMPLES
    if data is not None and len(data.validation) >= count:
        return [np.asarray(a) for a in data.validation.batch(np.arange(count, dtype=np.int64))]
    generator = np.random.default_rng(0)
    arrays: list[NDArray[Any]] = []
    for spec in inputs:
        shape = spec.with_batch(count)
        if np.issubdtype(np.dtype(spec.dtype), np.floating):
            arrays.append(generator.standard_normal(shape).astype(spec.dtype))
        else:
            arrays.append(generator.integers(0, 2, shape).astype(spec.dtype))
    return arrays


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured beside right and wrong; None where it was not.

    Attributes:
        dense_accuracy: of the dense file on the test split, in onnxruntime.
        final_accuracy: of the file that is shipped, likewise.
        validation_accuracy: of the file that is shipped on the validation split: next to the
            accuracy that training ended with, it shows what quantising cost.
        latency: by label: dense, stock and kernels.
        memory: of a fresh process that has loaded the file, by label.
    """

    dense_accuracy: float | None
    final_accuracy: float | None
    validation_accuracy: float | None
    latency: dict[str, latency.LatencyResult]
    memory: dict[str, memory.MemoryResult]


def measure_files(
    path: Path,
    dense: Written | None,
    data: Data | None,
    *,
    folder: Path,
    threads: int,
    with_latency: bool,
    with_kernels: bool,
) -> Measured:
    """Measure accuracy and latency of the shipped file, beside the dense one where there is one.

    Args:
        path: the file that is shipped.
        dense: the dense file, None where it is the one that is shipped.
        data: for accuracy.
        folder: where the dense file may be put for the time.
        threads: of onnxruntime while measuring latency.
        with_latency: whether this host's latency says anything about the target.
        with_kernels: whether native kernels can run the file.

    Raises:
        VerificationError: a file does not run.
    """
    files = {"stock": str(path)}
    if dense is not None:
        dense_path = folder / "dense.onnx"
        write_file(dense_path, dense.data)
        files = {"dense": str(dense_path), **files}
    dense_accuracy = final_accuracy = validation_accuracy = None
    if data is not None and data.test.labels is not None and len(data.test):
        final_accuracy = accuracy.accuracy_of(files["stock"], data.test)
        if dense is not None:
            dense_accuracy = accuracy.accuracy_of(files["dense"], data.test)
        if data.validation.labels is not None and len(data.validation):
            validation_accuracy = accuracy.accuracy_of(files["stock"], data.validation)
    results: dict[str, latency.LatencyResult] = {}
    resident: dict[str, memory.MemoryResult] = {}
    if with_latency:
        files |= {"kernels": str(path)} if with_kernels else {}
        results = latency.measure(files, threads=threads, kernels={"kernels"})
        resident = {
            label: memory.resident(file, kernels=label == "kernels")
            for label, file in files.items()
        }
    return Measured(dense_accuracy, final_accuracy, validation_accuracy, results, resident)
