"""Is the file what was promised, and how accurate and fast is it? Asked of the file itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import ExportError, VerificationError
from hwprune.export.pipeline import decoded_parameters, renewed
from hwprune.export.template import Template, Written
from hwprune.ir import Data, Masks, Model
from hwprune.steps.output import write_file
from hwprune.targets import Target
from hwprune.tasks import Task
from hwprune.verify import CheckResult, Made, check, latency, memory, metric_of, parity, runner
from hwprune.verify.runner import open_session

_SAMPLES, _SAMPLES_OF_ROUNDING, _SAMPLES_OF_EXPORT = 64, 16, 3
# An exported network that differs by more of its range is another network.
_GROSS = 1e-2
_ULP = 2.0**-23  # float32's relative spacing
# What onnxruntime computes by rational functions: right to an ulp of 1, however small the value is.
_GATES, _GATED = ("sigmoid", "tanh", "erf"), ("silu", "gelu", "mish")  # these times the input

Arrays = Sequence[NDArray[Any]]


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
) -> CheckResult:
    """Check a written file as ``hwprune check`` does, and against the network it was made of.

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
    module = _with_decoded_weights(written, template, model.module)
    how = template.deployment.embedded

    def read(inputs: Arrays) -> Arrays:
        """Return what the network reads, of what the file is given."""
        return inputs if how is None else [how.inputs(inputs[0])]

    samples = _samples(model, data)
    if how is not None and samples is not None:
        samples = [how.stored(samples[0])]
    made = Made(
        data=written.data,
        budget_bytes=budget_bytes,
        packed_layers=len(written.packed),
        nonzeros=None if masks is None else masks.nonzeros,
        network=lambda inputs: _run(module, read(inputs)),
        rounding=lambda inputs: _rounding(module, _few(model, read(inputs))),
        inputs=samples,
    )
    return check(str(path), target=target, made=made)


def check_export(model: Model, dense: Written, path: Path) -> None:
    """Compare the dense file with its network, before anything is trained.

    Only gross differences count: an operator that was exported as another one, a size that came out
    fixed. What rounding does is left to ``verify_file``.

    Args:
        model: the network.
        dense: its file before pruning.
        path: where to write it for onnxruntime.

    Raises:
        ExportError: it computes something else, or does not run.
    """
    write_file(path, dense.data)
    try:
        session = runner.open_session(str(path))
        names = [entry.name for entry in session.get_outputs()]
        count = runner.fixed_batch(session) or _SAMPLES_OF_EXPORT
        inputs = _drawn(model, count)
        try:
            try:
                expected = _run(copy.deepcopy(model.module), inputs)
            except IndexError:  # floats that rows are looked up by
                inputs = [np.zeros_like(array) for array in inputs]
                expected = _run(copy.deepcopy(model.module), inputs)
        except (RuntimeError, IndexError, ValueError):  # it takes none that are made up
            return
        found = parity.compare(
            runner.run(session, inputs), expected, limit=_GROSS, names=names, each=False
        )
    except VerificationError as error:
        wrong = error.message.replace(str(path), "the file")
    else:
        if found.relative_error <= _GROSS:
            return
        wrong = f"outputs differ by {found.relative_error:.1e} of their range"
    raise ExportError(
        f"{model.name} is another network once it is exported: {wrong}",
        hint="torch's exporter may write an operator as another one; say it with other operators",
    )


def sized_inputs(model: Model) -> Arrays | None:
    """Return one sample of the sizes that the user said, None where the file states all."""
    return _drawn(model, 1) if any(spec.free for spec in model.inputs) else None


def _samples(model: Model, data: Data | None) -> Arrays | None:
    inputs = model.inputs
    fixed = next((spec.shape[0] for spec in inputs if spec.shape and spec.shape[0]), None)
    count = fixed or _SAMPLES
    if data is None or len(data.validation) < count:
        # of the sizes that the user said, which no file holds
        return _drawn(model, count) if any(spec.free for spec in inputs) else None
    return [np.asarray(a) for a in data.validation.batch(np.arange(count, dtype=np.int64))]


def _drawn(model: Model, count: int) -> Arrays:
    draw = np.random.default_rng(0)
    shapes = [(spec.with_batch(count), spec.dtype) for spec in model.inputs]
    return [
        draw.standard_normal(shape).astype(dtype)
        if dtype == "float32"
        else draw.integers(0, 2, shape).astype(dtype)
        for shape, dtype in shapes
    ]


def _few(model: Model, inputs: Arrays) -> Arrays:
    """Return some of the samples, which show what rounding does as well as all."""
    fixed = any(spec.shape and spec.shape[0] for spec in model.inputs)
    return inputs if fixed else [array[:_SAMPLES_OF_ROUNDING] for array in inputs]


def _with_decoded_weights(written: Written, template: Template, trained: Any) -> Any:
    """Return a copy of the network that holds what the file's packed arrays decode to."""
    import torch

    module = copy.deepcopy(trained)
    if written.encoding is not None:
        named = dict(module.named_parameters(remove_duplicate=False))
        named |= dict(module.named_buffers(remove_duplicate=False))
        decoded = decoded_parameters(renewed(template, trained), written, trained)
        with torch.no_grad():
            for name, value in decoded.items():
                named[name].copy_(torch.from_numpy(value))
    return module


def _run(
    module: Any, inputs: Arrays, convert: Callable[[Any], Any] = lambda given: given
) -> Arrays:
    import torch

    run = getattr(module, "as_given", module)  # an ONNX file speaks for itself
    with torch.no_grad():
        outputs = run(*(convert(torch.from_numpy(array)) for array in inputs))
    # the frontend saw to it that there is one tensor, or a tuple
    several = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [output.detach().numpy() for output in several]


def _rounding(module: Any, inputs: Arrays) -> Arrays:
    """Return how far each output moves with the last bit of all weights, and in float64.

    Both show the magnitude that rounding acts on, which an output that hardly varies does not.
    """
    import torch

    base = _run(module, inputs)
    others = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for tensor in (*moved.parameters(), *moved.buffers()):
                if tensor.is_floating_point():
                    side = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
                    tensor.mul_(1 + _ULP * side)
        with _moved_gates(generator):
            others.append(_run(moved, inputs))
    try:
        wide = copy.deepcopy(module).double()
        others.append(_run(wide, inputs, lambda x: x.double() if x.is_floating_point() else x))
    except (RuntimeError, TypeError):  # it makes float32 tensors itself
        pass
    return parity.changes(base, others)


def _moved_gates(generator: Any) -> Any:
    """Return a context in which gates move by what runtimes' rational functions are off."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Moved(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:  # the operator's own result
            name = func.__name__.partition(".")[0].rstrip("_")
            factor = args[0].abs() if name in _GATED else 1.0
            found = func(*args, **(kwargs or {}))
            if name in _GATES or name in _GATED:
                side = torch.randint(0, 2, found.shape, generator=generator) * 2 - 1
                found.add_(_ULP * factor * side)
            return found

    return Moved()  # type: ignore[no-untyped-call]  # untyped in torch


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The caller's own metric of a file.

    Attributes:
        name: as reports and limits call it.
        higher_is_better: the direction.
        of: called with an ``onnxruntime.InferenceSession``, returns it; what it raises ends the
            run.
    """

    name: str
    higher_is_better: bool
    of: Callable[[Any], float]


@dataclass(frozen=True, slots=True)
class MetricValues:
    """A metric of the written files, in onnxruntime.

    Attributes:
        name: of the metric.
        higher_is_better: its direction.
        dense: of the dense file, None where that is the one that is shipped.
        final: of the file that is shipped.
        samples: of the test split, None where the caller's own function measured.
        validation: of the file that is shipped on the validation split: next to what training
            ended with, it shows what quantising cost.
    """

    name: str
    higher_is_better: bool
    dense: float | None
    final: float
    samples: int | None = None
    validation: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured beside right and wrong.

    Attributes:
        metric: None where there was nothing to measure it on.
        latency: by label: dense, stock and kernels.
        memory: of a fresh process that has loaded the file, by label.
    """

    metric: MetricValues | None
    latency: dict[str, latency.LatencyResult]
    memory: dict[str, memory.MemoryResult]


def measure_files(
    path: Path,
    dense: Written | None,
    data: Data | None,
    task: Task,
    *,
    folder: Path,
    inputs: Arrays | None = None,
    threads: int,
    with_latency: bool,
    with_kernels: bool,
    evaluation: Evaluation | None = None,
) -> Measured:
    """Measure metric and latency of the shipped file, beside the dense one where there is one.

    Args:
        path: the file that is shipped.
        dense: the dense file, None where it is the one that is shipped.
        data: for the metric.
        task: says which metric that is.
        evaluation: the caller's own metric instead.
        folder: where the dense file may be put for the time.
        inputs: for latency; None makes some of the sizes that the file states.
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
    found = None
    if evaluation is not None:
        of = {
            label: evaluation.of(open_session(file, threads=threads))
            for label, file in files.items()
        }
        found = MetricValues(
            evaluation.name, evaluation.higher_is_better, of.get("dense"), of["stock"]
        )
    elif data is not None and task.measurable(data.test) and len(data.test):
        of = {label: metric_of(file, data.test, task) for label, file in files.items()}
        validation, metric = None, task.metric
        if task.measurable(data.validation) and len(data.validation):
            validation = metric_of(files["stock"], data.validation, task)
        found = MetricValues(
            metric.name, metric.higher_is_better, of.get("dense"), of["stock"], len(data.test),
            validation,
        )  # fmt: skip
    results: dict[str, latency.LatencyResult] = {}
    resident: dict[str, memory.MemoryResult] = {}
    if with_latency:
        files |= {"kernels": str(path)} if with_kernels else {}
        results = latency.measure(files, inputs, threads=threads, kernels={"kernels"})
        resident = {
            label: memory.resident(file, kernels=label == "kernels")
            for label, file in files.items()
        }
    return Measured(found, results, resident)
