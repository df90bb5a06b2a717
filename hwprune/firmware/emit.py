"""Writes a network as a C library that a person can read, beside the runtime that runs it.

    folder/
      src/                  model.h, model.c and the runtime: all that a program compiles
      CMakeLists.txt        the library `model`; library.properties and zephyr/ say the same to
                            Arduino and Zephyr
      examples/.../main.c   a program that runs it once
      board/                start-up, linker script and compiler for one chip: with them the CMake
                            project by itself makes an image of the example

All numbers that make the network are constant arrays in model.c; nothing in it is code but a few
lines that hand them to the runtime.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import ExportError
from hwprune.firmware.code_size import part_bytes
from hwprune.firmware.fixed_point import layer_multipliers
from hwprune.firmware.formats import (
    FORMATS,
    FormatName,
    StoredLayer,
    StoredRows,
    choose,
    columns_of,
    encode,
)
from hwprune.firmware.memory_plan import MemoryPlan, PlannedLayer, column_offsets, convolution_of
from hwprune.firmware.network import (
    Add,
    AveragePool,
    Concat,
    Conv2d,
    GlobalAveragePool,
    IntegerNetwork,
    Linear,
    MaxPool,
    QuantizedTensor,
    Reshape,
    Softmax,
    Weighted,
    accumulator_bound,
    pool_multiplier,
)
from hwprune.firmware.reference import float_bias, softmax_table

# What start-ups, linker scripts and harnesses are made of; the runtime lies around it.
BOARD = Path(__file__).parent / "runtime" / "board"
# Bytes of the runtime's descriptors on a 32-bit core; biases and scales are words.
NETWORK_BYTES, TENSOR_BYTES, LAYER_BYTES = 36, 20, 16
CONV_BYTES, ADD_BYTES, POOL_BYTES, GLOBAL_POOL_BYTES = 68, 6, 12, 12
WORD_BYTES = 4
# The same where activations are fp32, and what hwp.h says of it.
FLOAT_CONV_BYTES, FLOAT_ADD_BYTES = 76, 12
AS_FLOAT = "#define HWP_FLOAT 0", "#define HWP_FLOAT 1"
RAM_LIMIT = "MODEL_RAM_LIMIT"
_NUMBERS = {"int8_t": "<i1", "uint8_t": "<u1", "uint32_t": "<u4"}


@dataclass(frozen=True, slots=True)
class EmittedModel:
    """What was written.

    Attributes:
        folder: where.
        formats: how each weighted layer is stored, by its name.
        constant_bytes: what the constants of model.c take in flash.
    """

    folder: Path
    formats: Mapping[str, FormatName]
    constant_bytes: int


def write(
    network: IntegerNetwork,
    folder: Path,
    plan: MemoryPlan,
    formats: Mapping[str, FormatName] | None = None,
    board: Mapping[str, str] | None = None,
) -> EmittedModel:
    """Write a network's library.

    Args:
        network: a valid one.
        folder: is made; files of these names in it are replaced.
        plan: of the same network.
        formats: of the weighted layers, by their names; ``layer_formats`` chooses them otherwise.
        board: what else to write, by path: the start-up and linker script of ``link.board_files``.

    Raises:
        ExportError: a layer is beyond what the runtime's descriptors hold.
    """
    writer = _ModelWriter(network, plan, formats or layer_formats(network, plan))
    source = folder / "src"
    files = {
        source / "model.h": writer.header(),
        source / "model.c": writer.model(),
        folder / "CMakeLists.txt": CMAKE,
        folder / "library.properties": ARDUINO.format(name=_plain(network.name)),
        folder / "zephyr" / "module.yml": ZEPHYR_MODULE,
        folder / "zephyr" / "CMakeLists.txt": ZEPHYR_CMAKE,
        folder / "examples" / "run_once" / "main.c": writer.example(),
    }
    for path in runtime_files():
        files[source / path.name] = path.read_text()
    if network.activations == "fp32":
        files[source / "hwp.h"] = files[source / "hwp.h"].replace(*AS_FLOAT)
    files |= {folder / name: text for name, text in (board or {}).items()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    stored = {name: rows.format for name, rows in writer.stored.items()}
    return EmittedModel(folder, stored, writer.constant_bytes)


def layer_formats(
    network: IntegerNetwork, plan: MemoryPlan, spare_bytes: int = 0, core: str = ""
) -> dict[str, FormatName]:
    """Return how each weighted layer is best stored: see ``formats.choose``."""
    layers: dict[str, StoredLayer] = {}
    for number, planned in enumerate(plan.layers):
        if isinstance(planned.layer, (Conv2d, Linear)):
            conv, offsets = _addressed(network, plan, planned.layer)
            alive = columns_of(conv.weight) != 0
            layers[conv.name] = StoredLayer(alive, offsets, plan.schedule.count(number))
    code = {name: part_bytes(core, f"decode_{name}") for name in FORMATS}
    return choose(layers, code, spare_bytes)


def _addressed(
    network: IntegerNetwork, plan: MemoryPlan, layer: Weighted
) -> tuple[Conv2d, NDArray[np.int64]]:
    """Return a layer as a convolution, and where its columns lie in the input's memory."""
    source = plan.renamed.get(layer.inputs[0], layer.inputs[0])
    conv, place = convolution_of(layer, network.tensors[source]), plan.placements[source]
    return conv, column_offsets(conv, place.chw[0], place.pitch)


def formats_in(folder: Path, plan: MemoryPlan) -> dict[str, FormatName] | None:
    """Return how a folder's model.c stores the layers of its plan; None where it does not say."""
    model = folder / "src" / "model.c"
    text = model.read_text(errors="replace") if model.is_file() else ""
    found = [name for name in re.findall(r"hwp_decode_(\w+)", text) if name in FORMATS]
    layers = [each.layer.name for each in plan.layers if isinstance(each.layer, (Conv2d, Linear))]
    return dict(zip(layers, found, strict=True)) if len(found) == len(layers) else None


def ram_limit_in(folder: Path) -> int | None:
    """Return the RAM that a folder's plan had to be within; None where model.h does not say."""
    header = folder / "src" / "model.h"
    text = header.read_text(errors="replace") if header.is_file() else ""
    found = re.search(rf"^#define {RAM_LIMIT} (\d{{1,12}}) ", text, re.MULTILINE)
    return None if found is None else int(found[1])


def runtime_files() -> list[Path]:
    """Return the runtime's own sources and headers."""
    return sorted(path for path in BOARD.parent.iterdir() if path.suffix in (".c", ".h"))


class _ModelWriter:
    """Collects the constants of a network; each method makes a part of a file."""

    def __init__(
        self, network: IntegerNetwork, plan: MemoryPlan, formats: Mapping[str, FormatName]
    ) -> None:
        self.network = network
        self.is_float = network.activations == "fp32"
        # What a program hands over, what sums are, and what they are multiplied by.
        self.element = "float" if self.is_float else "int8_t"
        self.sum = "float" if self.is_float else "int32_t"
        self.plan = plan
        self.formats = formats
        self.stored: dict[str, StoredRows] = {}
        self.constant_bytes = 0
        self._count(NETWORK_BYTES)
        self.lines: list[str] = []
        self.tensors = list(plan.placements)
        self.names = _identifiers([_layer_name(planned) for planned in plan.layers])
        self.tensor_names = _identifiers(self.tensors)

    # ---- model.h --------------------------------------------------------------------------------

    def header(self) -> str:
        """Return model.h: sizes, scales, and the functions that a program calls."""
        given = self.network.tensors[self.network.input]
        channels, height, width = given.chw
        outputs = [self.network.tensors[name] for name in self.network.outputs]
        lines = [
            f"/* {_plain(self.network.name)}: a network with {self.network.activations} "
            "activations, made by hwprune. */",
            "#ifndef MODEL_H",
            "#define MODEL_H",
            "",
            '#include "hwp.h"',
            "",
            *([] if self.is_float else ["/* A value q stands for SCALE * (q - ZERO_POINT). */"]),
            f"#define MODEL_INPUT_CHANNELS {channels}",
            f"#define MODEL_INPUT_HEIGHT {height}",
            f"#define MODEL_INPUT_WIDTH {width}",
            f"#define MODEL_INPUT_SIZE {given.size}",
            *self._quantization("MODEL_INPUT", given),
        ]
        for place, tensor in enumerate(outputs):
            prefix = "MODEL_OUTPUT" + (str(place) if place else "")
            lines += [f"#define {prefix}_SIZE {tensor.size}", *self._quantization(prefix, tensor)]
        arguments = self._output_arguments()
        limit = [f"#define {RAM_LIMIT} {self.plan.limit} /* that it had to be within */"]
        limit = [] if self.plan.limit is None else limit
        lines += [
            f"#define MODEL_RAM_BYTES {self.plan.ram_bytes} /* without the stack */",
            *limit,
            "",
            "/* Computes the outputs, [channel][row][x] as the input, which may lie in flash.",
            " * Returns HWP_OK, or HWP_CORRUPT where the stored weights were damaged. */",
            f"int model_run(const {self.element} *input, {arguments});",
            "",
            "/* The same with an input that is handed over row by row, as the network asks for",
            " * it: it need never lie in memory as a whole. */",
            f"int model_run_rows(hwp_read_row *read, void *context, {arguments});",
            "",
            "extern const hwp_network model_network;",
            "",
            "#endif",
        ]
        return "\n".join(lines) + "\n"

    def _output_arguments(self) -> str:
        return ", ".join(f"{self.element} *{name}" for name in self._outputs())

    def _outputs(self) -> list[str]:
        return ["output" + (str(i) if i else "") for i in range(len(self.network.outputs))]

    # ---- model.c --------------------------------------------------------------------------------

    def model(self) -> str:
        """Return model.c."""
        self.lines = [
            f"/* {_plain(self.network.name)}: weights, where tensors lie, the order of layers. */",
            '#include "model.h"',
            "",
            "/* Tensors and layers by their numbers. */",
            f"enum {{ {', '.join('T_' + name for name in self.tensor_names)} }};",
            f"enum {{ {', '.join('L_' + name for name in self.names)} }};",
        ]
        parameters = [
            self._parameters(planned, name)
            for planned, name in zip(self.plan.layers, self.names, strict=True)
        ]
        self._array("hwp_tensor", "tensors", [self._tensor(name) for name in self.tensors])
        self._count(TENSOR_BYTES * len(self.tensors))
        rows = []
        for planned, (kernel, constants) in zip(self.plan.layers, parameters, strict=True):
            inputs = [f"T_{self._tensor_name(name)}" for name in planned.inputs[:2]] or ["0"]
            output = f"T_{self._tensor_name(planned.output)}"
            rows.append(
                f"{{{kernel}, {constants}, {planned.rows}, {planned.height}, "
                f"{{{', '.join(inputs)}}}, {output}}}"
            )
        self._array("hwp_layer", "layers", rows)
        self._count(LAYER_BYTES * len(rows))
        steps = [f"L_{self.names[number]}" for number in self.plan.schedule]
        self._numbers("uint8_t", "schedule", steps)
        self._count(len(steps))
        self._network()
        return "\n".join(self.lines) + "\n"

    def _network(self) -> None:
        plan, given = self.plan, self.network.tensors[self.network.input]
        channels, height, width = given.chw
        outputs = [self.plan.renamed.get(name, name) for name in self.network.outputs]
        copies = [
            f"  hwp_copy_out(&model_network, T_{self._tensor_name(name)}, {argument});"
            for name, argument in zip(outputs, self._outputs(), strict=True)
        ]
        self.lines += [
            "",
            f"static _Alignas(4) hwp_value arena[{plan.arena_size}];",
            f"static uint32_t taps[{plan.taps}];",
            f"static uint16_t first[{plan.windows}], done[{len(plan.layers)}];",
            "static hwp_source source;",
            "",
            "const hwp_network model_network = {",
            "    tensors, layers, schedule, arena, taps, first, done, &source,",
            f"    {len(plan.schedule)}, {len(plan.layers)}, {plan.windows}}};",
            "",
            f"int model_run_rows(hwp_read_row *read, void *context, {self._output_arguments()}) {{",
            "  const int status = hwp_run(&model_network, read, context);",
            "  if (status != HWP_OK) return status;",
            *copies,
            "  return HWP_OK;",
            "}",
            "",
            f"int model_run(const {self.element} *input, {self._output_arguments()}) {{",
            f"  hwp_array array = {{input, {channels}, {height}, {width}}};",
            f"  return model_run_rows(hwp_read_array, &array, {', '.join(self._outputs())});",
            "}",
        ]

    def _tensor_name(self, name: str) -> str:
        return self.tensor_names[self.tensors.index(name)]

    def _tensor(self, name: str) -> str:
        place, tensor = self.plan.placements[name], self.network.tensors[name]
        channels, height, width = place.chw
        return (
            f"{{{place.offset}, {channels}, {height}, {width}, {place.pitch}, {place.rows}, "
            f"HWP_ZERO({tensor.zero_point}), {place.gap}, {place.window}}}"
        )

    def _parameters(self, planned: PlannedLayer, name: str) -> tuple[str, str]:
        """Write what a layer needs; return its kernel and a pointer to that."""
        layer = planned.layer
        if layer is None:
            return "hwp_input", "0"
        if isinstance(layer, Reshape):
            return "hwp_reshape", "0"
        x, y = self.network.tensors[planned.inputs[0]], self.network.tensors[layer.output]
        self._comment(layer.name, type(layer).__name__, x, y)
        if isinstance(layer, (Conv2d, Linear)):
            self._convolution(layer, name)
            return "hwp_conv2d", f"&layer_{name}"
        if isinstance(layer, Add):
            low, high = self._clamp(layer)
            ratios = f"{{{layer.ratios[0]}, {layer.ratios[1]}}}"
            size = FLOAT_ADD_BYTES if self.is_float else ADD_BYTES
            self._constant("hwp_add_parameters", name, f"{{{ratios}, {low}, {high}}}", size)
            return "hwp_add", f"&layer_{name}"
        if isinstance(layer, GlobalAveragePool):
            sums = f"sums_{name}" if planned in self.plan.summing else "0"
            if planned in self.plan.summing:
                self.lines.append(f"static {self.sum} {sums}[{y.chw[0]}];")
            (multiplier,), shift = self._multipliers(layer)
            text = f"{{{sums}, {multiplier}, {shift}}}"
            self._constant("hwp_global_pool_parameters", name, text, GLOBAL_POOL_BYTES)
            return "hwp_global_pool", f"&layer_{name}"
        if isinstance(layer, Softmax):
            if self.is_float:
                return "hwp_softmax", "0"
            self._floats(f"scale_{name}", softmax_table(x.scale, x.size))
            return "hwp_softmax", f"scale_{name}"
        if isinstance(layer, Concat):
            inputs = ", ".join(f"T_{self._tensor_name(source)}" for source in planned.inputs)
            text = f"{{{len(planned.inputs)}, {{{inputs}}}}}"
            self._constant("hwp_concat_parameters", name, text, 1 + len(planned.inputs))
            return "hwp_concat", f"&layer_{name}"
        return self._pool(layer, name, x, y)

    def _pool(
        self, layer: MaxPool | AveragePool, name: str, x: QuantizedTensor, y: QuantizedTensor
    ) -> tuple[str, str]:
        count = layer.kernel[0] * layer.kernel[1]
        scales, kernel, count_pads = "0", "hwp_max_pool", 0
        if isinstance(layer, AveragePool):
            kernel, scales, count_pads = "hwp_average_pool", f"scale_{name}", int(layer.count_pads)
            counts = [count] if layer.count_pads else range(1, count + 1)
            self._floats(scales, [pool_multiplier(x, y, pixels) for pixels in counts])
        numbers = (*layer.kernel, *layer.strides, *layer.pads[:2], count_pads)
        text = f"{{{scales}, {', '.join(map(str, numbers))}}}"
        self._constant("hwp_pool_parameters", name, text, POOL_BYTES)
        return kernel, f"&layer_{name}"

    def _convolution(self, layer: Weighted, name: str) -> None:
        conv, offsets = _addressed(self.network, self.plan, layer)
        place = self.plan.placements[self.plan.renamed.get(conv.inputs[0], conv.inputs[0])]
        x = self.network.tensors[conv.inputs[0]]
        multipliers, shift = self._multipliers(layer)
        rows = columns_of(conv.weight)
        stored = encode(rows, offsets, self.formats[conv.name], shift)
        self.stored[conv.name] = stored
        arrays = []
        words = stored.format == "words"
        for kind, part, data in (
            ("uint32_t" if words else "uint8_t", "index", stored.index),
            ("int8_t", "values", stored.values),
            ("uint8_t", "counts", stored.counts),
        ):
            cast = "(const uint8_t *)" if kind == "uint32_t" else ""
            arrays.append(f"{cast}{part}_{name}" if data else "0")
            if data:
                numbers = np.frombuffer(data, _NUMBERS[kind]).tolist()
                self._numbers(kind, f"{part}_{name}", map(str, numbers))
                self._count(len(data))
        sums = rows.astype(np.int64).sum(1)
        if self.is_float:
            biases = [_float(bias) for bias in float_bias(conv)]
        else:
            folded = conv.bias.astype(np.int64) - x.zero_point * sums
            biases = [
                f"HWP_BIAS({b}, {w})" for b, w in zip(folded << shift, sums << shift, strict=True)
            ]
        self._numbers(self.sum, f"bias_{name}", biases)
        self._numbers(self.sum, f"multiplier_{name}", multipliers)
        self._count(WORD_BYTES * len(biases))
        self._count(WORD_BYTES * len(biases))
        outputs, per_group, kernel_rows, kernel_columns = conv.weight.shape
        channels, _, _ = place.chw
        row_columns, width = per_group * kernel_columns, kernel_columns
        step = conv.dilations[0] * channels * place.pitch
        if step == per_group * place.pitch:  # kernel rows follow one another as channels do
            row_columns *= kernel_rows
        elif kernel_rows == 1:  # a step over the last kernel row is never taken, and may not fit
            step = 0
        reciprocal = -(-65_536 // width)
        inexact = [c for c in range(row_columns) if c * reciprocal >> 16 != c // width]
        if inexact and row_columns > per_group * width:
            row_columns = per_group * width
            inexact = [c for c in inexact if c < row_columns]
        if inexact:
            raise ExportError(
                f"{conv.name!r} has {per_group} channels of {width} columns in each kernel row, "
                "more than firmware's division holds",
                hint="a narrower kernel, or fewer channels",
            )
        lengths = [len(stored.index), len(stored.values), len(stored.counts)]
        filters = (
            f"{{hwp_decode_{stored.format}, {', '.join(arrays)}, {', '.join(map(str, lengths))},\n"
            f"     {reciprocal}, {rows.shape[1]}, {stored.most}, {row_columns}, {step}, "
            f"{offsets[-1]}, {place.pitch - width * conv.dilations[1]}, {conv.dilations[1]}, "
            f"{stored.rice}, {16 + shift}}}"
        )
        reach = (kernel_rows - 1) * conv.dilations[0] + 1
        numbers = (
            outputs // conv.groups, per_group, reach, *conv.strides, *conv.pads[:2],
            *self._clamp(conv),
        )  # fmt: skip
        text = f"{{{filters},\n    bias_{name}, multiplier_{name}, {', '.join(map(str, numbers))}}}"
        size = FLOAT_CONV_BYTES if self.is_float else CONV_BYTES
        self._constant("hwp_conv2d_parameters", name, text, size)

    def _clamp(self, layer: Conv2d | Add) -> list[str]:
        if not self.is_float:
            return [str(int(bound)) for bound in layer.clamp]
        return [_float(np.float32(bound)) for bound in layer.clamp]

    def _multipliers(self, layer: Weighted | GlobalAveragePool) -> tuple[list[str], int]:
        if self.is_float:
            return [_float(scale) for scale in self.network.multipliers(layer)], 0
        found, shift = _multipliers(self.network, layer)
        return [*map(str, found)], shift

    def _quantization(self, prefix: str, tensor: QuantizedTensor) -> list[str]:
        if self.is_float:
            return []
        return [
            f"#define {prefix}_SCALE {_float(tensor.scale)} /* {float(tensor.scale):.6g} */",
            f"#define {prefix}_ZERO_POINT {tensor.zero_point}",
        ]

    def _comment(self, name: str, kind: str, x: QuantizedTensor, y: QuantizedTensor) -> None:
        shapes = f"{_by(x.shape)} -> {_by(y.shape)}"
        self.lines += ["", f"/* {_plain(name)}: {kind}, {shapes} */"]

    def _count(self, size: int) -> None:
        """Add a constant to what flash holds: compilers begin each one on a word."""
        self.constant_bytes += -(-size // WORD_BYTES) * WORD_BYTES

    def _constant(self, kind: str, name: str, text: str, size: int) -> None:
        self._count(size)
        self.lines.append(f"static const {kind} layer_{name} = {text};")

    def _array(self, kind: str, name: str, rows: Sequence[str]) -> None:
        self.lines += ["", f"static const {kind} {name}[] = {{"]
        self.lines += [f"    {row}," for row in rows] + ["};"]

    def _floats(self, name: str, values: Iterable[np.float32]) -> None:
        texts = [_float(value) for value in values]
        self._count(WORD_BYTES * len(texts))
        self._numbers("float", name, texts)

    def _numbers(self, kind: str, name: str, numbers: Iterable[str]) -> None:
        self.lines.append(f"static const {kind} {name}[] = {{")
        line = "   "
        for number in numbers:
            if len(line) + len(number) > 97:
                self.lines.append(line)
                line = "   "
            line += f" {number},"
        self.lines += [line, "};"]

    # ---- the example ----------------------------------------------------------------------------

    def example(self) -> str:
        """Return a program that runs the network once."""
        outputs, zero = self._outputs(), "0.0f" if self.is_float else "MODEL_INPUT_ZERO_POINT"
        return "\n".join(
            [
                "/* Runs the network once, on rows as a sensor or a file would give them. */",
                '#include "model.h"',
                "",
                *(f"static {self.element} {name}[MODEL_{name.upper()}_SIZE];" for name in outputs),
                "",
                f"static void read_row(void *context, unsigned row, {self.element} *pixels,",
                "                     unsigned pitch) {",
                "  (void)context, (void)row;",
                "  for (unsigned channel = 0; channel < MODEL_INPUT_CHANNELS; channel++)",
                "    for (unsigned x = 0; x < MODEL_INPUT_WIDTH; x++)",
                f"      pixels[channel * pitch + x] = {zero}; /* your pixel */",
                "}",
                "",
                "int main(void) {",
                f"  return model_run_rows(read_row, 0, {', '.join(outputs)});",
                "}",
                "",
            ]
        )


def _layer_name(planned: PlannedLayer) -> str:
    return planned.layer.name if planned.layer else "input"


def _multipliers(
    network: IntegerNetwork, layer: Weighted | GlobalAveragePool
) -> tuple[list[int], int]:
    """Return the multipliers of a layer and its shift; none of its sums passes 2^31 so long."""
    found, shift = layer_multipliers(network, layer)
    bound = 0
    if not isinstance(layer, GlobalAveragePool):
        bound = accumulator_bound(layer.weight, layer.bias)
    if not found.all() or bound << shift >= 1 << 31:
        scales = network.multipliers(layer)
        raise ExportError(
            f"the scales of {layer.name!r}, from {scales.min(initial=1):g} to "
            f"{scales.max(initial=0):g} steps of its output, are beyond what firmware computes "
            "with integers",
            hint="calibrate with data as the network will see it; pool large images in two layers",
        )
    return found.tolist(), shift


def _float(value: np.float32) -> str:
    return float(value).hex() + "f"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _plain(name: str) -> str:
    """Return a name that cannot end a comment."""
    return re.sub(r"[^A-Za-z0-9_./-]", "_", name).replace("*/", "__").replace("/*", "__")


def _identifiers(names: Sequence[str]) -> list[str]:
    """Return ends of C identifiers, all different, that still look like the names."""
    made: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        candidate, number = plain, 2
        while candidate in made:
            candidate, number = f"{plain}_{number}", number + 1
        made.append(candidate)
    return made


CMAKE = """\
# The network and its runtime as a static library: add_subdirectory(...), then link `model`.
# By itself: an image of the example for the chip of board/, see there.
cmake_minimum_required(VERSION 3.13)
project(model C)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF) # -std=c11, as verified: in GNU C products and sums may be fused
file(GLOB MODEL_SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/src/*.c)
add_library(model STATIC ${MODEL_SOURCES})
target_include_directories(model PUBLIC src)
target_compile_options(model PRIVATE -O2 -ffunction-sections -fdata-sections)
set(BOARD ${CMAKE_CURRENT_SOURCE_DIR}/board)
if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR AND CMAKE_CROSSCOMPILING)
  add_executable(image.elf examples/run_once/main.c ${BOARD}/start.c ${BOARD}/memory.c)
  target_compile_options(image.elf PRIVATE -O2)
  target_link_options(image.elf PRIVATE -nostdlib -Wl,--gc-sections -T ${BOARD}/link.ld)
  target_link_libraries(image.elf model gcc)
  add_custom_command(TARGET image.elf POST_BUILD
    COMMAND ${CMAKE_OBJCOPY} -O binary image.elf image.bin)
endif()
"""
ARDUINO = """\
name={name}
version=1.0.0
author=hwprune
maintainer=hwprune
sentence=A sparse int8 network and its runtime.
paragraph=Include model.h and call model_run.
category=Data Processing
url=
architectures=*
includes=model.h
"""
ZEPHYR_MODULE = """\
name: hwprune_model
build:
  cmake: zephyr
"""
ZEPHYR_CMAKE = """\
file(GLOB MODEL_SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/../src/*.c)
zephyr_library_named(hwprune_model)
zephyr_library_sources(${MODEL_SOURCES})
zephyr_include_directories(${CMAKE_CURRENT_SOURCE_DIR}/../src)
"""
