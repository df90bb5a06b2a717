"""The values that travel from stage to stage. NumPy only: every room may import this one.

A stage takes some of these and returns others; none of them is changed after it was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hwprune.preprocessing import Preprocessing

ValueType = Literal["fp32", "fp16", "int8", "int4", "codebook16", "codebook256"]
VALUE_TYPES: tuple[ValueType, ...] = ("fp32", "fp16", "int8", "int4", "codebook16", "codebook256")

CodecName = Literal["cols8", "cols16", "gap4", "gap8", "gap16", "bitmap", "rice", "dense"]


def along_axis(numbers: NDArray[Any], axis: int, ndim: int) -> NDArray[Any]:
    """Return one number per channel, shaped to broadcast along an axis of ``ndim``."""
    shape = [1] * ndim
    shape[axis] = -1
    return numbers.reshape(shape)


# -- the model and its data ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input of a network.

    Attributes:
        name: the input's name in the exported file.
        shape: sizes; None is the shared dynamic batch N.
        dtype: a NumPy name, such as ``float32``.
        free: (axis, name) of further dynamic sizes; ``shape`` then holds one to try it with.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    free: tuple[tuple[int, str], ...] = ()

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """Return the shape with N replaced by ``batch``."""
        return tuple(batch if size is None else size for size in self.shape)


@dataclass(frozen=True, slots=True)
class Model:
    """A trained network as the frontend hands it on.

    Attributes:
        name: a short name for files and reports (the stem of the model's file).
        source: the path that was read, as given.
        kind: what the file was: state-dict, exported-program, torchscript, onnx or pickled-module.
        module: the ``torch.nn.Module`` in eval mode; opaque here, so that this file needs no torch.
        arch: the architecture's specification (such as ``cifar-resnet20``), None where the file
            carries it.
        inputs: one specification per input, in the order of the forward method.
        trainable: False where no gradient reaches the weights (TorchScript, much of ONNX).
        batchnorm_frozen: True where BN cannot be put in training mode (what was exported).
        trained: False where the weights are random: there is nothing yet to be kept or imitated.
        notes: sentences for the report: what was recognised, unwrapped or left out.
    """

    name: str
    source: str
    kind: Literal["state-dict", "exported-program", "torchscript", "onnx", "pickled-module"]
    module: Any
    arch: str | None
    inputs: tuple[TensorSpec, ...]
    trainable: bool = True
    batchnorm_frozen: bool = False
    trained: bool = True
    notes: tuple[str, ...] = ()


@runtime_checkable
class Split(Protocol):
    """One part of a data set. Images stay in their compact form until ``batch`` is called."""

    @property
    def labels(self) -> Any:
        """(n,) class indices; any array or tree of arrays, samples first; or None."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return one array per network input for these samples: (b, ...), normalised float32."""


@dataclass(frozen=True, slots=True)
class Data:
    """A data source after it was read.

    Attributes:
        name: the source as the user wrote it, without a path (``cifar10``, ``digits``, ``npz``).
        train: what weights may be fitted on.
        validation: what choices are made on; carved from train by seed where the source has none.
        test: what the final accuracy is measured on; nothing else may read it.
        classes: number of classes, None without labels.
        normalize: the normalisation that was applied, in words.
        augment: what fine-tuning may do to an input: ``none``, ``shift`` or ``crop-flip``.
        notes: sentences for the report.
        preprocessing: how stored values became inputs; None where there are several, or indices.
        class_names: in the order of the labels; empty where the source does not say.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int | None
    normalize: str
    augment: Literal["none", "shift", "crop-flip"] = "none"
    notes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()


# -- what may be pruned -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PrunableTensor:
    """A parameter that reaches the weight input of a convolution, product, lookup or RNN.

    Attributes:
        name: the parameter's key in the state dict (the first one, where it is tied).
        shape: its shape as stored.
        channel_axis: the axis of ``shape`` that counts output channels (int8 scales lie along it).
        operators: the ONNX operators that read it, in graph order; more than one where it is
            shared.
    """

    name: str
    shape: tuple[int, ...]
    channel_axis: int
    operators: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SkippedTensor:
    """A parameter that stays dense, and why."""

    name: str
    shape: tuple[int, ...]
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Masks:
    """Which connections are kept: a boolean array per prunable tensor, in the tensor's shape."""

    by_name: Mapping[str, NDArray[np.bool_]]

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    @property
    def nonzeros(self) -> int:
        """Return how many connections are kept."""
        return sum(int(np.count_nonzero(mask)) for mask in self.by_name.values())

    @property
    def weights(self) -> int:
        """Return how many connections there are."""
        return sum(mask.size for mask in self.by_name.values())

    def positions(self) -> dict[str, NDArray[np.int64]]:
        """Return the connections that are kept as sorted row-major positions, per tensor."""
        return {name: np.flatnonzero(mask) for name, mask in self.by_name.items()}


@dataclass(frozen=True, slots=True)
class Ranking:
    """Connections of all tensors in one order, the best first; ties are already broken by index.

    Attributes:
        shapes: shape per tensor name; the order of the names numbers the tensors.
        tensor: (m,) the tensor's number for each ranked connection.
        position: (m,) its row-major position inside that tensor.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tensor: NDArray[np.int32]
    position: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tensor)

    def top(self, count: int) -> dict[str, NDArray[np.int64]]:
        """Return the best ``count`` connections as sorted positions per tensor."""
        tensor, position = self.tensor[:count], self.position[:count]
        return {
            name: np.sort(position[tensor == number]) for number, name in enumerate(self.shapes)
        }

    def masks(self, count: int) -> Masks:
        """Return the best ``count`` connections as masks."""
        masks = {}
        for name, positions in self.top(count).items():
            flat = np.zeros(math.prod(self.shapes[name]), dtype=np.bool_)
            flat[positions] = True
            masks[name] = flat.reshape(self.shapes[name])
        return Masks(masks)


# -- bytes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packed:
    """One pruned tensor in its encoded form.

    Attributes:
        name: the parameter's name.
        shape: the dense shape.
        codec: how positions are stored.
        value_type: how values are stored.
        arrays: the stored arrays by role (``values``, ``index``, ``scale``, ``codebook``).
        count: how many values are stored, where two share a byte and the array does not say it.
    """

    name: str
    shape: tuple[int, ...]
    codec: CodecName
    value_type: ValueType
    arrays: Mapping[str, NDArray[Any]]
    count: int | None = None

    @property
    def nonzeros(self) -> int:
        """Return the number of stored values (for the dense codec: of all elements)."""
        return int(self.arrays["values"].size) if self.count is None else self.count


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one pruned tensor costs: bytes of its packed arrays, nodes, bias, names and headers."""

    name: str
    shape: tuple[int, ...]
    weights: int
    nonzeros: int
    codec: CodecName
    value_type: ValueType
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits a budget, found by the exact size model before (or after) any training.

    Attributes:
        budget_bytes: what the file may weigh.
        floor_bytes: the file with every prunable tensor empty; no pruning gets below.
        floor_parts: what makes the floor up, largest first: (what, bytes).
        value_type: the type of the stored values that the counts assume.
        max_nonzeros: how many connections fit, for the ranking that was given.
        used_bytes: the file's exact size at that count.
        layers: the cost of each tensor at that count.
        dense_bytes: the file's size with nothing pruned, fp32.
        limited_by: ``budget``, ``time`` where a limit of time leaves bytes over, or ``weights``
            where every connection is kept and room is left.
    """

    budget_bytes: int
    floor_bytes: int
    floor_parts: tuple[tuple[str, int], ...]
    value_type: ValueType
    max_nonzeros: int
    used_bytes: int
    layers: tuple[LayerPlan, ...]
    dense_bytes: int
    limited_by: Literal["budget", "time", "weights"]

    @property
    def weights(self) -> int:
        """Return how many prunable connections the network has."""
        return sum(layer.weights for layer in self.layers)

    @property
    def slack_bytes(self) -> int:
        """Return what the plan leaves unused."""
        return self.budget_bytes - self.used_bytes


# -- while it runs ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    """A sign of life for whoever watches.

    Attributes:
        stage: the stage in progress.
        message: a short line.
        done: steps of the stage that are done, where it has any.
        of: steps of the stage.
        values: numbers by name at the end of an epoch: ``epoch``, ``loss``, the metric's name (on
            validation), ``nonzeros`` and ``bytes`` of the file that they would make.
    """

    stage: str
    message: str
    done: int = 0
    of: int = 0
    values: Mapping[str, float] = field(default_factory=dict)


Say = Callable[[Status], None]


# -- outcomes -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LimitResult:
    """One ``--require`` and how it came out. ``value`` is None where it could not be measured."""

    field: str
    op: str
    limit: float
    value: float | None
    met: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to "does it fit, and is it right?".

    Attributes:
        fits: the real file is within the budget.
        verified: every check that was run passed.
        scope: what the verdict covers, in words (``onnx file on this host``, ``onnx-size-only, not
            linked``).
        limits: the user's own limits.
        exit_code: the process's exit code.
    """

    fits: bool
    verified: bool
    scope: str
    limits: Sequence[LimitResult] = ()
    exit_code: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Artifact:
    """A written artifact: where it is, what it weighs, and the record of the run that made it."""

    path: str
    bytes: int
    sha256: str
    verdict: Verdict
    report: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Artifact {self.path}: {'; '.join(text for _, text in self._lines())}>"

    def _repr_html_(self) -> str:
        """Return a few lines for a notebook."""
        rows = [("artifact", self.path), *self._lines()]
        cells = (
            f'<tr><th scope="row" style="text-align:left">{escape(label)}</th>'
            f'<td style="text-align:left">{escape(text)}</td></tr>'
            for label, text in rows
        )
        return f"<table>{''.join(cells)}</table>"

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Yield what counts, as far as it is known: size, verdict, nonzeros, the metric."""
        found, verdict = self.report, self.verdict
        budget = f" of {found['budget']['bytes']:,} B" if "budget" in found else ""
        yield "size", f"{self.bytes:,} B{budget}"
        state = "fits and verified" if verdict.exit_code == 0 else f"exit code {verdict.exit_code}"
        yield "verdict", state
        if "result" in found:
            result = found["result"]
            kept = f"{result['nonzeros']:,} of {result['weights']:,} weights kept"
            yield "nonzeros", f"{kept} ({100 * result['sparsity']:.2f} % sparse)"
        metric = found.get("metric") or {}
        if metric.get("final") is not None:
            before = "" if metric["dense"] is None else f", {metric['dense']:.4g} dense"
            yield metric["name"], f"{metric['name']} {metric['final']:.4g}{before}"
