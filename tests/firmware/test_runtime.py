"""The runtime in C computes every tensor of every network as the reference does, to the bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from random_networks import KINDS, network, random_input

from hwprune.firmware import emit, memory_plan, reference
from hwprune.firmware.emit import BOARD
from hwprune.firmware.formats import FORMATS
from hwprune.firmware.host import OPTIONS, HostModel, checksum
from hwprune.firmware.link import WARNINGS
from hwprune.firmware.network import (
    SOFTMAX_SCALE,
    AveragePool,
    IntegerNetwork,
    QuantizedTensor,
    Softmax,
)

SEEDS = 17  # of each kind: 204 networks
# What stands for a core: of 64-bit products, and of none (unsigned, four pixels).
CORES = {
    "wide": (),
    "armv6m": ("-DHWP_UNSIGNED=1", "-DHWP_WIDE=0"),
    "unsigned": ("-DHWP_UNSIGNED=1",),
}
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")


def write(folder: Path, rng: np.random.Generator, made: IntegerNetwork) -> memory_plan.MemoryPlan:
    plan = memory_plan.plan(made)
    chosen = {layer.name: FORMATS[int(rng.integers(len(FORMATS)))] for layer in made.layers}
    emit.write(made, folder, plan, chosen)
    return plan


def compare(kind: str, folder: Path, options: tuple[str, ...] = ()) -> None:
    """Compute random networks of a kind on this machine, in place of one core after the other."""
    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, len(kind)])
        made = KINDS[kind](rng)
        x = random_input(rng, made, samples=2)
        plan = write(folder / str(seed), rng, made)
        core = list(CORES)[seed % len(CORES)]
        outputs, sums = HostModel(folder / str(seed), plan, (*CORES[core], *options)).run(x)
        expected = reference.run(made, x)
        for name, output in zip(made.outputs, outputs, strict=True):
            assert np.array_equal(output, expected[name]), (seed, core)
        for i, of_run in enumerate(sums):
            assert set(of_run) >= set(made.outputs) - set(plan.renamed)
            wrong = [name for name in of_run if checksum(expected[name][i]) != of_run[name]]
            assert wrong == [], (seed, core)


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_equals_the_reference(kind: str, tmp_path: Path) -> None:
    compare(kind, tmp_path)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sanitizers_find_nothing_in_any_of_these_shapes(kind: str, tmp_path: Path) -> None:
    """In a process of its own, which has the sanitizer from the start."""
    asked = ["cc", "-print-file-name=libasan.so"]
    library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    here = str(Path(__file__).parent)
    code = (
        "import pathlib, sys, test_runtime as t; t.compare(sys.argv[1], pathlib.Path(sys.argv[2]), "
        "t.SANITIZE)"
    )
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code, kind, str(tmp_path)], capture_output=True, text=True,
        check=False, env={
            **os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": paths,
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


UPPER = r"""
#include <stdio.h>
#include "hwp_internal.h"

/* The upper half of a product of two words, whatever the core multiplies with. */
int main(void) {
  uint64_t state = 88172645463325252u;
  for (long i = 0; i < 3000000; i++) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    const int32_t sum = (int32_t)state >> (i % 32), factor = (int32_t)(state >> 33);
    if (hwp_upper(sum, factor) != (int32_t)(((int64_t)sum * factor) >> 32)) return 1;
  }
  return hwp_upper(INT32_MIN, INT32_MAX) != (int32_t)(((int64_t)INT32_MIN * INT32_MAX) >> 32);
}
"""


@needs_compiler
def test_a_core_without_long_products_rescales_alike(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(UPPER)
    command = ["cc", "-O2", *WARNINGS, f"-I{BOARD.parent}", "main.c", "-o", "main"]
    subprocess.run([*command, "-DHWP_WIDE=0"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"], check=False).returncode == 0


def mutated(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert text.count(old) == 1, "the runtime has changed: change this test with it"
    (folder / name).write_text(text.replace(old, new))


def pairs(rng: np.random.Generator) -> tuple[IntegerNetwork, np.ndarray]:
    """Averages of two, of which every other one is a tie."""
    x = QuantizedTensor("x", (1, 1, 2), np.float32(1), 3)
    y = QuantizedTensor("y", (1, 1, 1), np.float32(1), int(rng.integers(-5, 6)))
    made = network([AveragePool("y", ("x",), "y", (1, 2), (1, 2))], [x, y])
    return made, random_input(rng, made, samples=200)


def one_rounding_or_two(rng: np.random.Generator) -> tuple[IntegerNetwork, np.ndarray]:
    """Averages of six, in which it matters whether the product is rounded before the sum."""
    sums = np.arange(-6 * 128, 6 * 127 + 1)
    while True:
        scale, zero = np.float32(0.5 + rng.random()), int(rng.integers(-100, 100))
        factor = np.float32(1) / (scale * np.float32(6))
        two = sums.astype(np.float32) * factor + np.float32(zero)
        one = (sums * float(factor) + zero).astype(np.float32)
        parted = sums[(np.rint(two) != np.rint(one)) & (np.abs(two) < 120)]
        if len(parted):
            break
    x = QuantizedTensor("x", (1, 1, 6), np.float32(1), 0)
    y = QuantizedTensor("y", (1, 1, 1), scale, zero)
    made = network([AveragePool("y", ("x",), "y", (1, 6), (1, 6))], [x, y])
    spread = np.stack([(parted + i) // 6 for i in range(6)], 1)  # six values of this sum
    return made, spread.astype(np.int8).reshape(-1, 1, 1, 6)


def near_ties(rng: np.random.Generator) -> tuple[IntegerNetwork, np.ndarray]:
    """Probabilities that two orders of the same product round apart."""
    x = QuantizedTensor("x", (10,), np.float32(0.2), 0)
    y = QuantizedTensor("y", (10,), SOFTMAX_SCALE, -128)
    values = rng.integers(-128, 128, (400_000, 10))
    powers = reference.softmax_table(x.scale, 10)[values.max(1, keepdims=True) - values]
    total = np.zeros((len(values), 1), np.float32)
    for i in range(10):
        total += powers[:, i : i + 1]
    one, other = (powers * np.float32(255)) / total, powers * (np.float32(255) / total)
    parted = (np.rint(one) != np.rint(other)).any(1)
    made = network([Softmax("y", ("x",), "y")], [x, y])
    return made, values[parted].astype(np.int8)


def random(kind: str) -> Callable[[np.random.Generator], tuple[IntegerNetwork, np.ndarray]]:
    def make(rng: np.random.Generator) -> tuple[IntegerNetwork, np.ndarray]:
        made = KINDS[kind](rng)
        return made, random_input(rng, made, samples=20)

    return make


AVERAGE = "hwp_round(product + (float)zero)"
# Formulas that are nearly right, and inputs that tell them from the right ones.
FORMULAS = {
    "rescaling a half too low": (
        random("conv"), "hwp_internal.h", "#define HWP_HALF 128", "#define HWP_HALF 127",
    ),
    "rescaling of another height": (
        random("depthwise"), "hwp_internal.h", "multiplier) >> 32)", "multiplier) >> 31 >> 1) + 1",
    ),
    "rescaling in 128ths": (
        random("linear"), "hwp_internal.h", "(hwp_upper(sum, multiplier) + rounding) >> 8",
        "(hwp_upper(sum, multiplier) / 2 + rounding / 2) >> 7",
    ),
    "a sum with halves up": (
        random("add"), "hwp_layers.c", "31 + (quotient & 1)) >> 6", "32 + 0 * quotient) >> 6",
    ),
    "a sum with halves away from zero": (
        random("add"), "hwp_layers.c", "31 + (quotient & 1)) >> 6", "31 + (quotient >= 0)) >> 6",
    ),
    "an average with halves up": (
        pairs, "hwp_layers.c", AVERAGE, "(int32_t)__builtin_floorf(product + (float)zero + 0.5f)",
    ),
    "an average with halves away from zero": (
        pairs, "hwp_layers.c", AVERAGE, "(int32_t)__builtin_roundf(product + (float)zero)",
    ),
    "an average of one rounding": (
        one_rounding_or_two, "hwp_layers.c", AVERAGE,
        "hwp_round(__builtin_fmaf((float)sum, pool->scale[count - 1], (float)zero))",
    ),
    "an average over padding": (
        random("average_pool"), "hwp_layers.c", "pool->count_pads ? 0 : count - 1", "0",
    ),
    "probabilities by another factor": (
        near_ties, "hwp_layers.c", "* 255.0f / total;", "* (255.0f / total);",
    ),
    "a largest value that is zero": (
        random("max_pool"), "hwp_layers.c", "hwp_sum most = *at;", "hwp_sum most = HWP_OFFSET;",
    ),
    "a filter's part beyond the edge": (
        random("residual"), "hwp_conv2d.c", "to[-1] >> 16) * input->zero)", "to[-1] >> 16) * 0)",
    ),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_that_is_nearly_right_is_noticed(name: str, tmp_path: Path) -> None:
    make, *change = FORMULAS[name]
    for seed in range(30):
        made, x = make(np.random.default_rng([seed, 7]))
        emit.write(made, tmp_path, memory_plan.plan(made))
        expected = reference.run(made, x)[made.outputs[0]].tobytes()
        assert replayed(tmp_path, x, ()) == expected
        mutated(tmp_path / "src", *change)
        if replayed(tmp_path, x, ("-Wno-error",)) != expected:
            return
    pytest.fail("not noticed")


REPLAY = r"""
#include <stdio.h>
#include "model.h"

/* Standard input: inputs one after the other. Standard output: their outputs. */
int main(void) {
  static hwp_element input[MODEL_INPUT_SIZE], output[MODEL_OUTPUT_SIZE];
  while (fread(input, 1, sizeof input, stdin) == sizeof input) {
    if (model_run(input, output) != HWP_OK) return 1;
    fwrite(output, 1, sizeof output, stdout);
  }
  return 0;
}
"""
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def replayed(folder: Path, x: np.ndarray, options: tuple[str, ...]) -> bytes:
    """Compile a folder's own sources, run them on a batch, and return the outputs."""
    (folder / "main.c").write_text(REPLAY)
    sources = [*(folder / "src").glob("*.c"), folder / "main.c"]
    program = folder / "main"
    subprocess.run(
        ["cc", *OPTIONS, *WARNINGS, *options, f"-I{folder / 'src'}", *map(str, sources),
         "-lm", "-o", str(program)],
        check=True,
    )  # fmt: skip
    done = subprocess.run([program], input=x.tobytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_sanitizers_find_nothing(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(101)
    made = KINDS[kind](rng)
    x = random_input(rng, made)
    write(tmp_path, rng, made)
    core = list(CORES)[list(KINDS).index(kind) % len(CORES)]
    output = replayed(tmp_path, x, (*SANITIZE, *CORES[core]))
    assert output == reference.run(made, x)[made.outputs[0]].tobytes()


@needs_compiler
def test_damaged_streams_are_refused_and_nothing_outside_is_read(tmp_path: Path) -> None:
    source = Path(__file__).parent / "fuzz_decode.c"
    decoder = BOARD.parent / "hwp_decode.c"
    program = tmp_path / "fuzz"
    subprocess.run(
        ["cc", *OPTIONS, *WARNINGS, *SANITIZE, f"-I{BOARD.parent}", str(source), str(decoder),
         "-o", str(program)],
        check=True,
    )  # fmt: skip
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused, decoded = map(int, done.stdout.split())
    assert refused > 1000
    assert decoded > 1000
