"""The runtime in C computes every tensor of every network as the reference does, to the bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from random_networks import KINDS, random_input

from hwprune.firmware import emit, memory_plan, reference
from hwprune.firmware.emit import BOARD
from hwprune.firmware.formats import FORMATS
from hwprune.firmware.host import OPTIONS, HostModel, checksum
from hwprune.firmware.link import WARNINGS
from hwprune.firmware.network import IntegerNetwork

SEEDS = 17  # of each kind: 204 networks
# What stands for a core: of 64-bit products, of floats, of neither (unsigned, four pixels).
CORES = {
    "wide": (),
    "float": ("-DHWP_FLOAT=1",),
    "armv6m": ("-DHWP_UNSIGNED=1", "-DHWP_WIDE=0"),
    "unsigned": ("-DHWP_UNSIGNED=1",),
}
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")


def write(folder: Path, rng: np.random.Generator, made: IntegerNetwork) -> memory_plan.MemoryPlan:
    plan = memory_plan.plan(made)
    chosen = {layer.name: FORMATS[int(rng.integers(len(FORMATS)))] for layer in made.layers}
    emit.write(made, folder, plan, chosen)
    return plan


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_equals_the_reference(kind: str, tmp_path: Path) -> None:
    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, len(kind)])
        made = KINDS[kind](rng)
        x = random_input(rng, made, samples=2)
        plan = write(tmp_path / str(seed), rng, made)
        core = list(CORES)[seed % len(CORES)]
        outputs, sums = HostModel(tmp_path / str(seed), plan, CORES[core]).run(x)
        expected = reference.run(made, x)
        for name, output in zip(made.outputs, outputs, strict=True):
            assert np.array_equal(output, expected[name]), (seed, core)
        for i, of_run in enumerate(sums):
            assert set(of_run) >= set(made.outputs) - set(plan.renamed)
            wrong = [name for name in of_run if checksum(expected[name][i]) != of_run[name]]
            assert wrong == [], (seed, core)


REQUANTIZATION = r"""
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "hwp_internal.h"

static uint64_t state = 88172645463325252u;
static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

/* Scales and sums of all sizes, and sums next to k + 1/2, where roundings part. */
int main(void) {
  long wrong = 0;
  for (long i = 0; i < 3000000; i++) {
    float scale = ldexpf(1.0f + (float)(next() & 0x7fffff) / 8388608.0f, 1 - (int)(next() % 24));
    if (i % 7 == 0) scale = ldexpf(1.0f + (float)(next() & 15) / 16.0f, 1 - (int)(next() % 24));
    double sum;
    if (i % 3 == 0)
      sum = (double)((int64_t)(next() % 2000001) - 1000000);
    else if (i % 3 == 1)
      sum = ((double)((int)(next() % 511) - 255) + 0.5) / (double)scale +
            (double)((int)(next() % 3) - 1);
    else
      sum = (double)(int32_t)next();
    if (fabs(sum * (double)scale) >= 1073741824.0 || fabs(sum) > 2147483000.0) continue;
    const int32_t acc = (int32_t)llrint(sum);
    const volatile float product = (float)acc * scale;
    float expected = rintf(product);
    expected = expected < -256 ? -256 : expected > 255 ? 255 : expected;
    hwp_scale ready;
    hwp_prepare(&ready, scale);
    int32_t made = hwp_scaled(acc, &ready);
    made = made < -256 ? -256 : made > 255 ? 255 : made;
    if (made != (int32_t)expected && wrong++ < 3)
      printf("%d * %a: %d and not %d\n", acc, (double)scale, made, (int)expected);
  }
  return wrong > 0;
}
"""


def requantization(folder: Path, runtime: Path, core: str) -> subprocess.CompletedProcess[str]:
    (folder / "main.c").write_text(REQUANTIZATION)
    subprocess.run(
        ["cc", "-std=c11", "-O2", *CORES[core], f"-I{runtime}", str(folder / "main.c"),
         str(runtime / "hwp_requantize.c"), "-lm", "-o", str(folder / "main")],
        check=True,
    )  # fmt: skip
    return subprocess.run([folder / "main"], capture_output=True, text=True, check=False)


@needs_compiler
@pytest.mark.parametrize("core", CORES)
def test_requantization_equals_single_precision(core: str, tmp_path: Path) -> None:
    done = requantization(tmp_path, BOARD.parent, core)
    assert done.returncode == 0, done.stdout


def mutated(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert text.count(old) == 1, "the runtime has changed: change this test with it"
    (folder / name).write_text(text.replace(old, new))


# What is nearly right: halves up, halves away from zero, one rounding where there are two.
ROUNDINGS = {
    "no exact path": ("hwp_internal.h", "<= scale->zone)", "> UINT32_MAX - 1u)"),
    "halves up": ("hwp_requantize.c", "(rest == half && (quotient & 1))", "rest == half"),
    "product unrounded": ("hwp_requantize.c", "to_single(size * factor", "(size * factor"),
    "margin for the sum alone": ("hwp_requantize.c", "near = 1u << 17", "near = 0"),
}


@needs_compiler
@pytest.mark.parametrize("change", ROUNDINGS)
def test_a_rounding_that_is_nearly_right_is_noticed(change: str, tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    shutil.copytree(BOARD.parent, runtime)
    mutated(runtime, *ROUNDINGS[change])
    assert requantization(tmp_path, runtime, "wide").returncode == 1


LAYERS = {
    "add": ("hwp_layers.c", "31 + (quotient & 1)) >> 6", "32 + 0 * quotient) >> 6"),
    "max_pool": ("hwp_layers.c", "int32_t most = *at;", "int32_t most = HWP_OFFSET;"),
    "residual": ("hwp_conv2d.c", "job->bias += dropped * input->zero;", "(void)dropped;"),
}


@needs_compiler
@pytest.mark.parametrize("kind", LAYERS)
def test_a_formula_that_is_nearly_right_is_noticed(kind: str, tmp_path: Path) -> None:
    different = False
    for seed in range(30):
        rng = np.random.default_rng([seed, 7])
        made = KINDS[kind](rng)
        x = random_input(rng, made, samples=20)
        if not seed:
            write(tmp_path, rng, made)
            mutated(tmp_path / "src", *LAYERS[kind])
        else:
            emit.write(made, tmp_path / "other", memory_plan.plan(made))
            for name in ("model.c", "model.h"):
                shutil.copy(tmp_path / "other" / "src" / name, tmp_path / "src" / name)
        expected = reference.run(made, x)[made.outputs[0]]
        different = replayed(tmp_path, x, ()) != expected.tobytes()
        if different:
            break
    assert different


REPLAY = r"""
#include <stdio.h>
#include "model.h"

/* Standard input: inputs one after the other. Standard output: their outputs. */
int main(void) {
  static int8_t input[MODEL_INPUT_SIZE], output[MODEL_OUTPUT_SIZE];
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
         "-o", str(program)],
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
