"""From the pruned network to a microcontroller's C: int8 activations, memory, files.

What a run for a microcontroller gives beside its ONNX file, where there are data and every layer
has an integer form. The image is what the budget counts then: ``with_fitted_budget`` finds, before
training, what the ONNX file may weigh for that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hwprune.encoding import unpack
from hwprune.errors import ExportError, HwpruneError, InfeasibleError, UsageError
from hwprune.export.graph import message_of
from hwprune.export.template import Template, Written
from hwprune.firmware import cycles, emit
from hwprune.firmware.calibrate import METHODS, Method, histograms
from hwprune.firmware.code_size import code_bytes
from hwprune.firmware.lower import FloatNetwork, in_fp32, quantize, read_layers
from hwprune.firmware.network import IntegerNetwork
from hwprune.firmware.qlinear import to_onnx
from hwprune.ir import Data, Masks, Split, ValueType
from hwprune.sampling import evenly_spread
from hwprune.sparsity import rank_weights
from hwprune.steps.output import write_file
from hwprune.steps.packing import PackedModel
from hwprune.steps.planning import Candidate, Prepared, module_weights, plan_shared
from hwprune.targets import Target
from hwprune.units import format_bytes
from hwprune.verify import runner
from hwprune.verify.firmware import (
    board_files,
    core_of,
    network_name,
    planned,
    sha256_of,
    stack_of,
)

if TYPE_CHECKING:
    from hwprune.job import Job

CALIBRATION_SAMPLES, _BATCH = 256, 32
_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Firmware:
    """A network as firmware.

    Attributes:
        network: with its scales.
        method: how ranges of activations were chosen; None where they are fp32.
        error: mean squared error of the outputs by the variance of those in fp32.
        formats: how each layer's weights are stored, by its name.
        constant_bytes: what the constants take of the flash.
        sha256: of the file that holds the network.
    """

    network: IntegerNetwork
    method: Method | None
    error: float
    formats: Mapping[str, str]
    constant_bytes: int
    sha256: str


# -- before training ------------------------------------------------------------------------------


def firmware_layers(job: Job, template: Template) -> tuple[FloatNetwork | None, str]:
    """Return the layers of the firmware that a job makes, or None and why it makes none.

    RAM is checked in either case.

    Raises:
        ExportError: firmware was asked for, and a layer has no integer form.
        UsageError: firmware, or a limit on it, was asked for, and cannot be made.
        InfeasibleError: no plan of the memory fits.
    """
    if job.target.kind != "microcontroller":
        return None, ""
    why = ""
    try:
        layers = check_ram(float_model(template), job.model.name, job.target)
    except ExportError as error:
        if job.firmware:
            raise
        why = error.message + (f" ({error.hint})" if error.hint else "")
        _check_largest(template, job.target)
    if job.firmware is False:
        why = "firmware: not asked for (--no-firmware)"
    elif job.data is None and not job.firmware:
        why = (
            "firmware: not made: int8 activations are calibrated with --data; --firmware alone "
            "makes it with fp32 activations, of four times the RAM"
        )
    if why:
        asked = [limit.text for limit in job.limits if limit.needs_firmware]
        if asked:
            raise UsageError(
                f"--require {asked[0]}: cannot be measured in this run: {why}",
                hint="leave this limit out, or give what it needs",
            )
        return None, why
    return layers, ""


def check_ram(model: onnx.ModelProto, name: str, target: Target) -> FloatNetwork:
    """Return a network's layers, which fit the RAM if enough of their weights are removed.

    Args:
        model: of fp32.
        name: a short name for files.
        target: the device.

    Raises:
        ExportError: a layer has no integer form.
        InfeasibleError: more than the target has; names the layer that peaks, and what would fit.
    """
    layers = read_layers(model, name)
    try:
        _plan_empty(layers, target)
    except InfeasibleError as error:
        fitting = _largest_input(model, target)
        if fitting is None:
            raise
        shape = "x".join(map(str, fitting))
        raise InfeasibleError(
            error.message, hint=f"take a target with more RAM, or a smaller input: {shape} fits"
        ) from None
    return layers


def _plan_empty(layers: FloatNetwork, target: Target) -> None:
    empty = [
        replace(layer, weight=None if layer.weight is None else np.zeros_like(layer.weight))
        for layer in layers.layers
    ]
    planned(_as_computed(replace(layers, layers=tuple(empty)), target), target)


def _largest_input(model: onnx.ModelProto, target: Target) -> tuple[int, ...] | None:
    """Return the largest input of the same proportions that fits; None where its size is fixed."""
    sizes = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim][1:]
    channels, *sides = sizes

    def scaled(first: int) -> tuple[int, ...]:
        return (channels, *(max(1, side * first // sides[0]) for side in sides))

    def fits(first: int) -> bool:
        smaller = onnx.ModelProto()
        smaller.CopyFrom(model)
        dims = smaller.graph.input[0].type.tensor_type.shape.dim
        for dim, size in zip(dims[1:], scaled(first), strict=True):
            dim.dim_value = size
        try:
            _plan_empty(read_layers(smaller, "n"), target)
        except InfeasibleError:
            return False
        return True

    best = 0
    for step in (32, 16, 8, 4, 2, 1):
        low, high = best // step, -(-sides[0] // step) if sides else 0
        try:
            while low + 1 < high:
                middle = (low + high) // 2
                low, high = (middle, high) if fits(middle * step) else (low, middle)
        except HwpruneError:  # such a size suits no stride, or a linear layer takes no other at all
            break
        best = low * step
    return scaled(best) if best else None


def fits_ram(layers: FloatNetwork, target: Target) -> bool:
    """Return whether a network fits with the weights that it has.

    The fullest filter decides: its weights are decoded into RAM.
    """
    try:
        planned(_as_computed(layers, target), target)
    except InfeasibleError:
        return False
    return True


def _as_computed(layers: FloatNetwork, target: Target) -> IntegerNetwork:
    """Return the network in its right sizes; the scales of int8 tensors have no meaning."""
    if target.activations == "fp32":
        return in_fp32(layers)
    names = (layers.input, *(layer.name for layer in layers.layers))
    return quantize(layers, dict.fromkeys(names, (-1.0, 1.0)))


def _check_largest(template: Template, target: Target) -> None:
    """Refuse a network of which a single tensor is larger than the RAM.

    Raises:
        InfeasibleError: names the tensor's layer.
    """
    known = onnx.shape_inference.infer_shapes(float_model(template), data_prop=True).graph
    sizes = {
        info.name: [d.dim_value or 1 for d in info.type.tensor_type.shape.dim]
        for info in (*known.input, *known.value_info, *known.output)
    }
    largest = max(sizes, key=lambda name: int(np.prod(sizes[name])))
    size = int(np.prod(sizes[largest]))
    if size > target.ram_bytes:
        shape = "x".join(map(str, sizes[largest]))
        raise InfeasibleError(
            f"the tensor {largest!r} of {shape} takes {size:,} B as int8, and {target.name} has "
            f"{format_bytes(target.ram_bytes)} of RAM",
            hint="take a target with more RAM, or a smaller input",
        )


def with_fitted_budget(job: Job, prepared: Prepared) -> Job:
    """Return the job that makes firmware, with the budget of the ONNX file for such an image.

    It is that of the pretrained weights: masks that training finds take nearly the same.

    Raises:
        InfeasibleError: the image does not fit even with hardly any weights.
    """
    kind: ValueType = "int8" if "int8" in job.value_types else job.value_types[0]
    job = replace(job, value_types=(kind,), firmware=True)

    def left_at(budget: int) -> int:
        with _below_any_file():
            whole, found, _ = plan_shared(
                prepared, job.target, budget, job.value_types, job.sharing, asked=job.sharing_asked
            )
        plan, written = found[kind].plan, _as_planned(whole, found[kind], kind)
        left = job.budget_bytes - image_plan(whole.template, written, job.target).flash_bytes
        return 0 if plan.limited_by == "weights" and left > 0 else left

    return replace(job, budget_bytes=_largest_budget(left_at, job.budget_bytes, job.budget_bytes))


def packed_for_image(
    module: Any, pack: Callable[..., PackedModel], masks: Masks,
    *, budget_bytes: int, goal: int, target: Target,
) -> PackedModel:  # fmt: skip
    """Return the file whose image fills its budget; the module's weights follow it.

    Args:
        module: the network with its trained weights.
        pack: packs masks within ``budget_bytes``, and zeroes what does not fit in the module.
        masks: what training left.
        budget_bytes: of the ONNX file, from ``with_fitted_budget``.
        goal: of the image.
        target: the device.
    """
    trained = {name: value.clone() for name, value in module.state_dict().items()}

    def at(budget: int) -> PackedModel:
        module.load_state_dict(trained)
        return pack(masks, budget_bytes=budget)

    def left_at(budget: int) -> int:
        with _below_any_file():
            packed = at(budget)
        return goal - image_plan(packed.template, packed.written, target).flash_bytes

    return at(_largest_budget(left_at, budget_bytes, goal))


def _largest_budget(left_at: Callable[[int], int], start: int, goal: int) -> int:
    """Return the largest budget of the ONNX file at which the image fits.

    Args:
        left_at: bytes of the image's budget that are left; raises InfeasibleError where the weights
            are too many for the RAM, _NoFileError where the budget is below what any file takes.
        start: where to begin.
        goal: the image's budget.

    Raises:
        InfeasibleError: at no budget.
    """
    # Budgets at which the image fits, at which it does not, and at which there is no file.
    low, high, floor, budget = 0, 0, 0, start
    refused: InfeasibleError | None = None
    smallest = 0  # image that was seen
    for _ in range(_ROUNDS):
        try:
            left = left_at(budget)
        except _NoFileError as error:
            refused, floor, left = refused or error, budget, 0
        except InfeasibleError as error:
            refused, high, left = refused or error, budget, -budget // 2
        else:
            smallest = min(smallest or goal - left, goal - left)
            low, high = (budget, high) if left >= 0 else (low, budget)
            if 0 <= left <= goal // 100:
                break
        least = max(low, floor)
        if high and high - least <= goal // 200:
            break
        if high and least:
            budget = (least + high) // 2
        elif floor:  # it was too small from the start
            break
        else:
            budget = max(1, budget + left - (goal // 200 if left < 0 else 0))
    if low:
        return low
    if refused is not None and not smallest:
        raise refused
    raise InfeasibleError(
        f"the image takes {format_bytes(smallest)} of flash with hardly any weights, more than the "
        f"budget of {format_bytes(goal)}: the runtime's code and what is not pruned",
        hint=f"give --budget {smallest + smallest // 10} or more, or --no-firmware for an ONNX "
        "file alone",
    )


class _NoFileError(InfeasibleError):
    """The budget is below what any ONNX file takes."""


@contextmanager
def _below_any_file() -> Iterator[None]:
    try:
        yield
    except InfeasibleError as error:
        raise _NoFileError(error.message, hint=error.hint) from None


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """What an image of a plan takes.

    Attributes:
        flash_bytes: constants to the byte, and the reserve for code.
        ram_bytes: activations and what weights are decoded into; the stack comes on top.
        peak: the layer at which the most is in use.
        streamed: tensors of which only some rows are in memory at a time.
        instructions: of a run, projected; None for a core of which nothing is known.
        cycles: the fewest and the most, likewise.
    """

    flash_bytes: int
    ram_bytes: int
    peak: str
    streamed: tuple[str, ...]
    instructions: int | None
    cycles: tuple[int, int] | None


def image_plan(template: Template, written: Written, target: Target) -> ImagePlan:
    """Return what the image of a network takes, whatever its scales will be.

    The same with any compiler or none: what is trained and stored depends on no linker.

    Raises:
        InfeasibleError: its weights are too many for the RAM.
    """
    network = _as_computed(read_layers(float_model(template, written), "network"), target)
    plan = planned(network, target)
    with tempfile.TemporaryDirectory() as room:
        made = emit.write(network, Path(room), plan)
    core = core_of(target)
    flash = made.constant_bytes + code_bytes(core, plan, made.formats.values())
    runs = cycles.projected(core, plan.instructions)
    return ImagePlan(flash, plan.ram_bytes, plan.peak, plan.streamed, *runs)


def planned_image(
    prepared: Prepared, found: Mapping[ValueType, Candidate], target: Target
) -> tuple[ImagePlan | None, tuple[str, ...]]:
    """Return what the image of the int8 plan takes, or None with sentences that say why not.

    Raises:
        InfeasibleError: RAM is too small for it; names the layer that peaks.
    """
    if target.kind != "microcontroller" or "int8" not in found:
        return None, ()
    try:
        check_ram(float_model(prepared.template), "network", target)
    except ExportError as error:
        _check_largest(prepared.template, target)
        return None, (error.message + (f" ({error.hint})" if error.hint else ""),)
    written = _as_planned(prepared, found["int8"], "int8")
    return image_plan(prepared.template, written, target), ()


def _as_planned(prepared: Prepared, candidate: Candidate, kind: ValueType) -> Written:
    """Return the file of a plan over the pretrained weights."""
    template = prepared.template
    weights = module_weights(prepared.model.module, template)
    ranking = rank_weights(weights, "lamp", candidate.plan.weights)
    return template.write_sparse(candidate.masks(ranking), kind)


# -- after packing --------------------------------------------------------------------------------


def make_firmware(
    template: Template, written: Written, data: Data | None, target: Target, folder: Path,
    name: str, budget_bytes: int,
) -> Firmware:  # fmt: skip
    """Calibrate, choose scales, and write the folder.

    Args:
        template: what the file was made of, without dead channels.
        written: the file.
        data: the training part is calibrated with; what ranges to take is judged on validation;
            None for activations of fp32.
        target: the device.
        folder: is made.
        name: of the network.
        budget_bytes: of the image; what is left of it makes streamed layers faster.

    Raises:
        DataError: samples that calibrate nothing.
        ExportError, InfeasibleError: as ``firmware_layers``.
    """
    model = float_model(template, written)
    layers = read_layers(model, name)
    method: Method | None = None
    if data is None:
        network, error = in_fp32(layers), 0.0
    else:
        network, method, error = calibrated(model, layers, data)
    plan, board = planned(network, target), board_files(target, stack_of(network))

    def write(spare: int) -> tuple[emit.EmittedModel, int]:
        formats = emit.layer_formats(network, plan, spare, core_of(target))
        made = emit.write(network, folder, plan, formats, board)
        code = code_bytes(core_of(target), plan, formats.values())
        return made, budget_bytes - made.constant_bytes - code

    made, left = write(0)
    if plan.streamed and left > 0:
        made, left = write(left)
        if left < 0:
            made, _ = write(0)
    write_file(
        folder / network_name(network), to_onnx(network).SerializeToString(deterministic=True)
    )
    return Firmware(network, method, error, made.formats, made.constant_bytes, sha256_of(folder))


def calibrated(
    model: onnx.ModelProto, layers: FloatNetwork, data: Data
) -> tuple[IntegerNetwork, Method, float]:
    """Return the integer network whose outputs are nearest to those in fp32, and how near."""
    # A batch that was exported fixed stays so in the fp32 network.
    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or _BATCH
    found = histograms(model, layers.values, _batches(data.train, size))
    batches = _batches(data.validation if len(data.validation) else data.train, size)
    expected = _outputs(model, layers.input, batches)
    best: tuple[IntegerNetwork, Method, float] | None = None
    for method in METHODS:
        ranges = {tensor: each.range(method) for tensor, each in found.items()}
        ranges[layers.input] = found[layers.input].range("minmax")
        network = quantize(layers, ranges)
        outputs = _outputs(to_onnx(network), layers.input, batches)
        error = max(
            float(((one - other) ** 2).mean() / max(float(other.var()), 1e-30))
            for one, other in zip(outputs, expected, strict=True)
        )
        if best is None or error < best[2]:
            best = network, method, error
    assert best is not None
    return best


def _batches(split: Split, size: int) -> list[NDArray[Any]]:
    """Return samples from all over a split, in batches of a size."""
    count = min(CALIBRATION_SAMPLES, len(split))
    size = min(size, count)
    count -= count % size
    places = evenly_spread(len(split), count)
    return [
        np.asarray(split.batch(places[start : start + size])[0], np.float32)
        for start in range(0, count, size)
    ]


def _outputs(
    model: onnx.ModelProto, given: str, batches: list[NDArray[Any]]
) -> list[NDArray[np.float32]]:
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        session = runner.open_session(str(path))
        parts = [session.run(None, {given: batch}) for batch in batches]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def float_model(template: Template, written: Written | None = None) -> onnx.ModelProto:
    """Return the dense fp32 network that a file decodes to, under the names of parameters."""
    graph, tensors = template.graph, dict(template.graph.tensors)
    if written is not None:
        tensors |= {name: unpack(packed) for name, packed in written.packed.items()}
        tensors |= written.biases
    structure = graph.structure
    made = helper.make_graph(
        [message_of(node) for node in graph.nodes],
        "g",
        [ir.to_proto(value) for value in structure.inputs],
        [ir.to_proto(value) for value in structure.outputs],
        [
            numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in tensors.items()
        ],
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=template.ir_version
    )
