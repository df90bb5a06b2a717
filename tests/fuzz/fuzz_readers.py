"""Fuzz what reads other people's files: anything but an error in a sentence is a finding.

    python tests/fuzz/fuzz_readers.py [READER ...] [--seconds 60] [--findings FOLDER]

Needs atheris (``pip install atheris``; Linux). Each reader runs in a process of its own, guided by
the coverage of hwprune's own code, from the seeds below and those in tests/fuzz/corpus/READER. A
finding is an exception that is no ``HwpruneError``, a message of more than 4,000 characters, 5
seconds for one input, or 1 GB. It is kept in the folder of findings; put it into the corpus once
it is mended. The exit code is 1 where there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MOST_CHARACTERS = 4_000
MOST_BYTES = 1 << 20  # of an input
SECONDS_EACH, MEGABYTES = 5, 1_000
SHARED = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())


class Reader:
    """What is fuzzed: files that are whole, and what reads one."""

    def __init__(
        self,
        suffix: str,
        seeds: Callable[[], Sequence[bytes]],
        read: Callable[[str], Any],
        wrap: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """Take the parts; ``wrap`` makes a file of the bytes that are fuzzed."""
        self.suffix, self.seeds, self.read, self.wrap = suffix, seeds, read, wrap


def texts(*patterns: str) -> Callable[[], list[bytes]]:
    """Return the files of the checkout that match, as seeds."""
    return lambda: [path.read_bytes() for pattern in patterns for path in ROOT.glob(pattern)]


def _saved(**options: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    state = {"conv.weight": torch.ones(2, 1, 3, 3), "fc.bias": torch.zeros(2).half()}
    torch.save({"state_dict": state, "epoch": 3}, stream, **options)
    return stream.getvalue()


def _pickles() -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(_saved())) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]


def _in_archive(pickled: bytes) -> bytes:
    source, stream = zipfile.ZipFile(io.BytesIO(_saved())), io.BytesIO()
    with source, zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    return stream.getvalue()


def _program() -> list[bytes]:
    import torch

    stream = io.BytesIO()
    exported = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(2, 3),))
    torch.export.save(exported, stream)
    return [stream.getvalue()]


def _safetensors() -> list[bytes]:
    from safetensors.numpy import save

    return [save({"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float16)})]


def _npz() -> list[bytes]:
    stream = io.BytesIO()
    np.savez(stream, x_train=np.zeros((4, 1, 2, 2), np.float32), y_train=np.arange(4) % 2)
    return [stream.getvalue()]


def _onnx() -> list[bytes]:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17)]
    return [helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()]


@cache
def _compiled(name: str) -> list[bytes]:
    """Compile a small network without training, once for each form; return a file of each."""
    import torch

    import hwprune

    found = []
    for form in "functions", "inlined":
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            layers = torch.nn.Linear(24, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)
            hwprune.compile(
                torch.nn.Sequential(*layers), target="raspberry-pi-5", epochs=0, budget="5KiB",
                example_input=torch.zeros(1, 24), output=f"{folder}/out", form=form,
            )  # fmt: skip
            found.append((Path(folder) / "out" / name).read_bytes())
    return found


def _files() -> list[bytes]:
    return _compiled("model.onnx")


def _reports() -> list[bytes]:
    return _compiled("report.json")


def _state() -> list[bytes]:
    import torch

    from hwprune.training.statefile import write_state

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        write_state(path, {"step": 3, "masks": [torch.ones(3, dtype=torch.bool)], "rate": 0.1})
        return [path.read_bytes()]


def _packed(path: str) -> None:
    """Unpack arrays of which the first bytes say codec, values and shape."""
    from hwprune.encoding import CODECS, unpack
    from hwprune.ir import Packed, ValueType

    data = Path(path).read_bytes()
    if len(data) < 8:
        return
    codec, values = list(CODECS)[data[0] % len(CODECS)], get_args(ValueType)[data[1] % 6]
    shape, cut = (data[2] % 40, data[3] % 40), 8 + data[4]
    types = (np.uint8, np.int8, np.uint16, np.float16, np.float32)
    value_type, index_type = types[data[5] % len(types)], types[data[6] % len(types)]

    def array(piece: bytes, kind: Any) -> Any:
        whole = len(piece) - len(piece) % np.dtype(kind).itemsize
        return np.frombuffer(piece[:whole], kind)

    arrays = {"values": array(data[8:cut], value_type), "index": array(data[cut:], index_type)}
    if data[7] & 1:
        arrays["scale"] = np.ones(shape[0], np.float16)
    if data[7] & 2:
        arrays["codebook"] = np.linspace(-1, 1, 16).astype(np.float16)
    unpack(Packed("w", shape, codec, values, arrays, data[7] >> 2 if data[7] & 64 else None))


def readers() -> dict[str, Reader]:
    """Return all readers by name."""
    from hwprune.export.artifact import csr_arrays
    from hwprune.frontend import load_model
    from hwprune.frontend.sources.arrays import read_npz
    from hwprune.kernels.model_file import ModelFile
    from hwprune.report import record
    from hwprune.targets.registry import load_file
    from hwprune.training import recipe_file
    from hwprune.training.statefile import read_state
    from hwprune.verify import gate_file, sidecar_report
    from hwprune.verify.limits import parse_limit

    def limit(path: str) -> None:
        parse_limit(Path(path).read_bytes().decode("utf-8", "replace"))

    def wire(path: str) -> None:
        with contextlib.suppress(ValueError, LookupError):  # which sessions turn into a sentence
            model = ModelFile(Path(path).read_bytes())
            ours = (place for place, node in enumerate(model.nodes) if node.domain == "hwprune")
            model.densified({*ours})

    limits = (b"size<=64KiB", b"latency.p50<=0.3x", b"accuracy>=91%", b"ram<=16 KiB")
    older = {"_use_new_zipfile_serialization": False}
    arrays = [bytes([each, each, 3, 3, 9, 0, 0, 1, *range(60)]) for each in range(9)]
    gate = b'[[artifact]]\npath = "a.onnx"\nrequire = ["size<=64KiB"]\nmay_worsen = {size = "1KiB"}'
    return {
        "limit": Reader("", lambda: limits, limit),
        "recipe": Reader(".toml", texts("hwprune/training/recipes/*.toml"),
                         recipe_file.load),
        "profile": Reader(".toml", texts("targets/*nano*.toml", "targets/nrf*.toml"), load_file),
        "gate": Reader(".toml", lambda: [gate], gate_file.read),
        "report": Reader(".json", _reports, record.read),
        "sidecar": Reader(".json", _reports, lambda path: sidecar_report.load(Path(path))),
        "state": Reader("", _state, lambda path: read_state(Path(path))),
        "wire": Reader(".onnx", _files, wire),
        "artifact": Reader(".onnx", _files, csr_arrays),
        "packed": Reader("", lambda: arrays, _packed),
        "checkpoint": Reader(".pt", lambda: [_saved()], load_model),
        "pickle": Reader(".pt", _pickles, load_model, _in_archive),
        "legacy": Reader(".pth", lambda: [_saved(**older)], load_model),
        "program": Reader(".pt2", _program, load_model),
        "safetensors": Reader(".safetensors", _safetensors, load_model),
        "npz": Reader(".npz", _npz, lambda path: read_npz(Path(path))),
        "onnx": Reader(".onnx", _onnx, load_model),
    }  # fmt: skip


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one reader in this process, until libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["hwprune"]):
        from hwprune.errors import HwpruneError

        reader = readers()[name]
    path = Path(tempfile.gettempdir()) / f"input{reader.suffix}"

    def once(data: bytes) -> None:
        path.write_bytes(reader.wrap(data))
        try:
            reader.read(str(path))
        except HwpruneError as error:
            said = f"{error.message}\n{error.hint}"
            if len(said) > MOST_CHARACTERS:
                raise AssertionError(f"a message of {len(said):,} characters") from error

    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


def campaign(name: str, seconds: int, findings: Path) -> tuple[int, str]:
    """Fuzz a reader in a process of its own; return executions and what was found."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=SHARED) as place:
        for number, seed in enumerate(readers()[name].seeds()):
            (Path(folder) / f"seed{number}").write_bytes(seed)
        corpus = HERE / "corpus" / name
        command = [
            sys.executable, __file__, "--inside", name, "--", folder,
            *([str(corpus)] if corpus.is_dir() else []),
            f"-max_total_time={seconds}", f"-timeout={SECONDS_EACH}", f"-max_len={MOST_BYTES}",
            f"-rss_limit_mb={MEGABYTES + 1_500}", f"-artifact_prefix={findings / name}-",
            "-print_final_stats=1", "-verbosity=1", "-seed=1",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": place}
        ran = subprocess.run(command, capture_output=True, env=environment, check=False)
    said = ran.stderr.decode(errors="replace") + ran.stdout.decode(errors="replace")
    counted = re.findall(r"number_of_executed_units: (\d+)", said) or re.findall(r"#(\d+)\t", said)
    return int(counted[-1]) if counted else 0, said[-3_000:] if ran.returncode else ""


def main() -> int:
    """Fuzz what was asked for, one reader after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    words = [*sys.argv[1:], "--"]
    place = words.index("--")
    options, rest = parser.parse_args(words[:place]), words[place + 1 : -1]
    if options.inside:
        fuzz(options.inside, rest)
        return 0
    options.findings.mkdir(parents=True, exist_ok=True)
    known = readers()
    if unknown := set(options.readers) - set(known):
        parser.error(f"no reader {sorted(unknown)[0]!r}: one of {', '.join(known)}")
    executions = found = 0
    for name in options.readers or known:
        count, said = campaign(name, options.seconds, options.findings)
        executions, found = executions + count, found + bool(said)
        print(f"{name}: {count:,} executions{', A FINDING' if said else ''}", flush=True)
        if said:
            print(said, flush=True)
    print(f"{executions:,} executions, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
