"""The verifier of a firmware folder: is it what its network says, does it link, does it run alike?

The folder holds ``model.qlinear.onnx``, which says all that the C in it is made from. So the C is
made again and compared; then it is linked for the target, run on an emulated board of the same
core, and every tensor compared with the reference and with onnxruntime.
"""

from __future__ import annotations

import filecmp
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hwprune.errors import (
    ArtifactError,
    HwpruneError,
    InfeasibleError,
    LimitError,
    TargetError,
    UsageError,
    VerificationError,
)
from hwprune.firmware import emit, emulate, link, memory_plan, reference
from hwprune.firmware.cycles import estimated
from hwprune.firmware.host import checksum
from hwprune.firmware.link import Chip, LinkedImage
from hwprune.firmware.memory_plan import MemoryPlan
from hwprune.firmware.network import Int8Array, IntegerNetwork
from hwprune.firmware.qlinear import from_onnx, to_onnx
from hwprune.ir import LimitResult
from hwprune.targets import Target, load
from hwprune.units import format_bytes, format_count
from hwprune.verify import runner, sidecar_report
from hwprune.verify.limits import Limit, evaluate, explain
from hwprune.verify.outcome import CheckResult, Log, Skipped

FIRMWARE_NAME = "firmware"  # in a run's folder
QLINEAR_NAME = "model.qlinear.onnx"
FLOAT_NAME = "model.fp32.onnx"  # in its place where activations are fp32
SCOPE_LINKED = "linked, not run"
SCOPE_NOT_LINKED = "not linked, not run"
_RANDOM_INPUTS = 2  # that a folder is run with, beside those that its maker gives
_WORD, _STACK_ALIGNMENT = 4, 16
# Cores of which QEMU has a small board only; a larger core runs their code unchanged.
ARMV6M = ("Cortex-M0", "Cortex-M0+")
ROOMY_ARMV6M = next(board for board in emulate.BOARDS if board.name == "mps2-an385")
# Where activations are fp32 each value is as near to onnxruntime's, by the largest of its tensor.
FLOAT_BOUND = 1e-5
# What a run may use of the stack, and an image leaves to it; with activations in fp32, whose
# arithmetic is a library's where there is no FPU.
STACK_BYTES, FLOAT_STACK_BYTES = 640, 832


@dataclass(frozen=True, slots=True)
class FirmwareFacts:
    """What was found of a firmware folder.

    Attributes:
        flash_bytes: .text, .rodata and .data of the linked image; None where it was not linked.
        ram_bytes: .data, .bss and the room of the stack, likewise.
        planned_ram_bytes: what the network itself takes, by the memory plan.
        stack_bytes: the most that a run used of the stack; None where it was not run.
        board: the emulated board; None likewise.
        inputs: how many inputs were run.
        tensors: how many tensors of each were compared.
        activations: int8, whose every bit is compared, or fp32.
        instructions: of one run by layer; None where they were not counted.
        estimated_cycles: of one run, from and to; None where the core's manual has no cycles.
        why_not: why it was not linked, or not run, with what to install.
    """

    flash_bytes: int | None = None
    ram_bytes: int | None = None
    planned_ram_bytes: int | None = None
    stack_bytes: int | None = None
    board: str | None = None
    inputs: int = 0
    tensors: int = 0
    activations: str = "int8"
    instructions: Mapping[str, int] | None = None
    estimated_cycles: tuple[int, int] | None = None
    why_not: str | None = None

    @property
    def scope(self) -> str:
        """Return what the verdict covers, in words."""
        if self.board is not None:
            equal = "bit-equal" if self.activations == "int8" else f"within {FLOAT_BOUND:g}"
            return f"linked, run on QEMU {self.board}, {equal}"
        return SCOPE_NOT_LINKED if self.flash_bytes is None else SCOPE_LINKED

    def as_record(self) -> dict[str, Any]:
        """Return what a report has of it."""
        count = None if self.instructions is None else sum(self.instructions.values())
        return {
            "flash_bytes": self.flash_bytes,
            "ram_bytes": self.ram_bytes,
            "planned_ram_bytes": self.planned_ram_bytes,
            "stack_bytes": self.stack_bytes,
            "board": self.board,
            "inputs": self.inputs,
            "tensors": self.tensors,
            "activations": self.activations,
            "instructions": count,
            "instructions_by_layer": None if count is None else dict(self.instructions or {}),
            "estimated_cycles": self.estimated_cycles,
        }


@dataclass(slots=True)
class FirmwareCheck:
    """A firmware folder under check.

    Attributes:
        result: every check, as of any other artifact.
        facts: what was found.
    """

    result: CheckResult
    facts: FirmwareFacts = field(default_factory=FirmwareFacts)


def is_firmware(path: str) -> bool:
    """Return whether a path is a firmware folder."""
    return network_file(Path(path)).is_file() and (Path(path) / "src").is_dir()


def network_name(network: IntegerNetwork) -> str:
    """Return the name of the file that holds a folder's network."""
    return QLINEAR_NAME if network.activations == "int8" else FLOAT_NAME


def network_file(folder: Path) -> Path:
    """Return the file that holds a folder's network."""
    found = folder / FLOAT_NAME
    return found if found.is_file() else folder / QLINEAR_NAME


def stack_of(network: IntegerNetwork) -> int:
    """Return what a run of a network may use of the stack."""
    return STACK_BYTES if network.activations == "int8" else FLOAT_STACK_BYTES


def planned(network: IntegerNetwork, target: Target, limit: int | None = None) -> MemoryPlan:
    """Return the memory plan of a network in what a target leaves to it.

    The stack, which begins at a multiple of 16, and the outputs that a program holds are taken off
    first.

    Args:
        network: a valid one.
        target: the device.
        limit: what a folder's plan was made for: that is found again, where the target holds it.

    Raises:
        ExportError: a layer is beyond what the runtime holds.
        InfeasibleError: no plan fits; names the layer that peaks and the bytes.
    """
    each = network.element_bytes
    outputs = sum(network.tensors[name].size * each + _WORD for name in network.outputs)
    limited = target.ram_limit_bytes
    ram = target.ram_bytes if limited is None else min(target.ram_bytes, limited)
    room = (ram - stack_of(network)) // _STACK_ALIGNMENT * _STACK_ALIGNMENT - outputs - _WORD
    if limit is not None:
        made = memory_plan.plan(network, limit)
        if made.ram_bytes <= room:
            return made
    return memory_plan.plan(network, room)


def chip_of(target: Target) -> Chip:
    """Return the facts that linking needs.

    Raises:
        TargetError: the profile does not say where flash and RAM lie.
    """
    regions = target.regions
    if regions is None:
        raise TargetError(
            f"the profile of {target.name} has no memory.flash_origin and memory.ram_origin",
            hint="add both, with their source: docs/targets.md",
        )
    return Chip(target.name, core_of(target), **regions.model_dump())


def core_of(target: Target) -> str:
    """Return a target's core by the name that code is built for."""
    return next((word for word in target.core.split() if word in link.CORES), target.core)


def board_files(target: Target, stack_bytes: int = STACK_BYTES) -> dict[str, str]:
    """Return what a folder has for a target alone: nothing where its regions are not known."""
    try:
        return link.board_files(chip_of(target), stack_bytes)
    except TargetError:
        return {}


def linked(folder: Path, target: Target, stack_bytes: int = STACK_BYTES) -> LinkedImage:
    """Link a folder for a target, with so much room for the stack.

    Raises:
        TargetError: no regions, no compiler, or a core that none is known for.
        InfeasibleError: the image does not fit flash or RAM.
        VerificationError: the compiler refuses the folder.
    """
    return link.link(folder, chip_of(target), stack_bytes=stack_bytes)


def check_firmware(
    path: str,
    *,
    target: Target | None = None,
    limits: Sequence[Limit] = (),
    budget_bytes: int | None = None,
    inputs: Int8Array | None = None,
) -> FirmwareCheck:
    """Check a firmware folder. Findings are returned, never raised; the folder is not changed.

    Args:
        path: the folder.
        target: the device; without it the one that the report beside the folder names.
        limits: ``flash``, ``ram`` and ``instructions`` are measured here, the rest comes from the
            report beside it, where that was written for exactly this network.
        budget_bytes: what the image may take of the flash; the report's without it.
        inputs: to run it with, beside random ones: (n, *shape of the input).
    """
    log, folder = Log(), Path(path)
    check = _FolderCheck(folder, target, budget_bytes, inputs)
    network = log.step("readable", check.read)
    if network is not None:
        log.step("report beside", check.as_promised)
        plan = log.step("fits in RAM", check.plan)
        if plan is not None and log.step("as written", check.as_made) is not None:
            with tempfile.TemporaryDirectory() as room:
                copy = Path(room) / "firmware"
                shutil.copytree(folder, copy)
                if log.step("links", lambda: check.links(copy)) is not None:
                    log.step("runs bit-equal", lambda: check.runs(copy))
    results: list[LimitResult] = []
    for limit in limits:
        log.step(f"require {limit.text}", lambda limit=limit: check.meets(limit, results))  # type: ignore[misc]
    result = CheckResult(path, tuple(log.steps), tuple(results), check.facts.scope, None)
    return FirmwareCheck(result, check.facts)


class _FolderCheck:
    """The checks of one folder, in order; each returns what it found or raises."""

    def __init__(
        self, folder: Path, target: Target | None, budget_bytes: int | None,
        inputs: Int8Array | None,
    ) -> None:  # fmt: skip
        self.folder, self.target, self.inputs = folder, target, inputs
        self.file = network_file(folder)
        self.budget_bytes = budget_bytes
        self.facts = FirmwareFacts()
        self.record: Mapping[str, Any] = {}

    def read(self) -> str:
        try:
            self.model = onnx.load(str(self.file))
        except Exception as error:  # protobuf's, and the file system's
            raise ArtifactError(f"{self.file} cannot be read: {runner.first_line(error)}") from None
        self.network = from_onnx(self.model)
        self.facts = replace(self.facts, activations=self.network.activations)
        return format_count(len(self.network.layers), "layer")

    def as_promised(self) -> str:
        """Find the report beside the folder, and hold the network's file against it."""
        place = self.folder.parent / sidecar_report.REPORT_NAME
        try:
            record = sidecar_report.load(place)
        except (FileNotFoundError, NotADirectoryError):
            raise Skipped(f"no {sidecar_report.REPORT_NAME} beside it") from None
        part = record.get("firmware")
        if not isinstance(part, Mapping):
            raise Skipped(f"the {sidecar_report.REPORT_NAME} beside it speaks of no firmware")
        sidecar_report.refuse_newer(record, place)
        if part.get("sha256") != sha256_of(self.folder):
            raise VerificationError(
                f"{self.file.name} is not the file that its report is about",
                hint="take the folder that hwprune wrote, or compile again",
            )
        self.record = record
        return "sha256 as promised"

    def plan(self) -> str:
        if self.target is None:
            name = self.record.get("target")
            if not isinstance(name, str):
                raise UsageError(
                    "no report beside the folder says which device it is for", hint="give --target"
                )
            self.target = load(name)
        self.planned = planned(self.network, self.target, emit.ram_limit_in(self.folder))
        size = self.planned.ram_bytes
        self.facts = replace(self.facts, planned_ram_bytes=size)
        return (
            f"{size:,} B for activations, the most at {self.planned.peak!r}; "
            f"{self.target.name} has {format_bytes(self.target.ram_bytes)}"
        )

    def as_made(self) -> str:
        """Make the C again and compare."""
        with tempfile.TemporaryDirectory() as room:
            assert self.target is not None
            formats = emit.formats_in(self.folder, self.planned)
            stack = stack_of(self.network)
            board = board_files(self.target, stack) if self._is_for(self.target) else {}
            emit.write(self.network, Path(room), self.planned, formats, board)
            made = [file.relative_to(room) for file in Path(room).rglob("*") if file.is_file()]
            for file in sorted(made):
                place = self.folder / file
                if not place.is_file():
                    raise VerificationError(f"{file} is missing")
                if not filecmp.cmp(place, Path(room) / file, shallow=False):
                    raise VerificationError(
                        f"{file} is not what {self.file.name} makes"
                        f"{_line(place, Path(room) / file)}",
                        hint="take the folder that hwprune wrote, or compile again",
                    )
            added = sorted(
                {f.relative_to(self.folder) for f in (self.folder / "src").iterdir()} - {*made}
            )
            if added:
                raise VerificationError(f"{added[0]} is no file of hwprune's, and would be linked")
        return f"{format_count(len(made), 'file')} as {self.file.name} makes them, byte for byte"

    def _is_for(self, target: Target) -> bool:
        """Return whether the folder's board is this target; a folder may be checked for another."""
        toolchain = self.folder / link.TOOLCHAIN_NAME
        return toolchain.is_file() and toolchain.read_text(errors="replace").startswith(
            f"# {target.name}:"
        )

    def links(self, folder: Path) -> str:
        assert self.target is not None
        try:
            image = linked(folder, self.target, stack_of(self.network))
        except TargetError as why:
            raise self._skipped(why) from None
        self.facts = replace(self.facts, flash_bytes=image.flash_bytes, ram_bytes=image.ram_bytes)
        budget = self.budget_bytes
        if budget is None and self.record.get("target") == self.target.name:
            part = self.record.get("budget")
            budget = part.get("bytes") if isinstance(part, Mapping) else None
        if isinstance(budget, int) and image.flash_bytes > budget:
            raise LimitError(
                f"the image takes {image.flash_bytes:,} B of flash, the budget is "
                f"{format_bytes(budget)}: this compiler makes more code than was reserved for it",
                hint="use GCC 12 or 13, or compile again with --budget "
                f"{2 * budget - image.flash_bytes}",
            )
        return (
            f"{image.flash_bytes:,} B of flash (.text, .rodata, .data), {image.ram_bytes:,} B of "
            f"RAM, {image.stack_bytes:,} of them for the stack"
        )

    def _skipped(self, why: HwpruneError) -> Skipped:
        sentence = why.message + (f": {why.hint}" if why.hint else "")
        self.facts = replace(self.facts, why_not=sentence)
        return Skipped(sentence)

    def runs(self, folder: Path) -> str:
        """Run the folder on a board, and compare every tensor."""
        assert self.target is not None
        core = chip_of(self.target).core
        try:
            board = emulate.board_for(core)
        except TargetError as why:
            raise self._skipped(why) from None
        x = self._samples()
        try:
            found = emulate.run(folder, self.planned, board, x, core=core)
        except InfeasibleError:  # what the harness takes beside the image
            if core not in ARMV6M:
                raise Skipped(f"QEMU's {board.name} has too little memory") from None
            board = ROOMY_ARMV6M
            found = emulate.run(folder, self.planned, board, x, core=core)
        expected = reference.run(self.network, x)
        every = folder.with_suffix(".onnx")
        every.write_bytes(to_onnx(self.network, real=False).SerializeToString())
        session = runner.open_session(str(every))
        names = [layer.output for layer in self.network.layers]
        stock = dict(zip(names, session.run(names, {self.network.input: x}), strict=True))
        for name, values in stock.items():
            if self.network.activations == "fp32":
                _within(name, expected[name], values)
                continue
            wrong = int((values != expected[name]).sum())
            if wrong:
                raise VerificationError(
                    f"{wrong:,} of {values.size:,} values of {name!r} are not onnxruntime's",
                    hint="this is a defect of hwprune: please report it with the folder",
                )
        for sums, place in zip(found.sums, range(len(x)), strict=True):
            for name, total in sums.items():
                if total != checksum(expected[name][place]):
                    raise VerificationError(
                        f"{name!r} is not the same on {board.name} for input {place}",
                        hint="the C, the compiler or a constant is not what was verified",
                    )
        stack = stack_of(self.network)
        if found.stack_bytes > stack:
            raise VerificationError(
                f"a run uses {found.stack_bytes:,} B of stack, the image leaves {stack:,}",
                hint="this is a defect of hwprune: please report it with the folder",
            )
        cycles = estimated(core, found.classes or {})
        self.facts = replace(
            self.facts, board=board.name, stack_bytes=found.stack_bytes, inputs=len(x),
            tensors=len(found.sums[0]), instructions=found.instructions,
            estimated_cycles=cycles,
        )  # fmt: skip
        return (
            f"{format_count(len(found.sums[0]), 'tensor')} of {format_count(len(x), 'input')} on "
            f"QEMU {board.name}, {found.stack_bytes:,} B of stack"
        )

    def _samples(self) -> NDArray[Any]:
        shape = self.network.tensors[self.network.input].shape
        draw = np.random.default_rng(0)
        if self.network.activations == "fp32":
            return draw.standard_normal((_RANDOM_INPUTS, *shape)).astype(np.float32)
        random = draw.integers(-128, 128, (_RANDOM_INPUTS, *shape)).astype(np.int8)
        return random if self.inputs is None else np.concatenate([self.inputs, random])

    def meets(self, limit: Limit, results: list[LimitResult]) -> str:
        measured = {"firmware": self.facts.as_record()}
        result = evaluate(limit, {**self.record, **measured})
        results.append(result)
        if not result.met:
            raise LimitError(explain(limit, result))
        return explain(limit, result)


def _within(name: str, expected: NDArray[np.float32], stock: NDArray[np.float32]) -> None:
    """Hold what the C computes against onnxruntime, whose sums are in another order."""
    apart, largest = float(np.abs(expected - stock).max()), float(np.abs(stock).max())
    if not apart <= FLOAT_BOUND * largest:
        raise VerificationError(
            f"{name!r} is up to {apart:.3g} from onnxruntime's, of which the largest is "
            f"{largest:.3g}: more than {FLOAT_BOUND:g} of it",
            hint="int8 activations are equal to the bit: give --data",
        )


def sha256_of(folder: Path) -> str:
    """Return the hash of the network that a firmware folder is made from."""
    return hashlib.sha256(network_file(folder).read_bytes()).hexdigest()


def _line(place: Path, made: Path) -> str:
    """Return where two texts begin to differ."""
    try:
        lines = [file.read_text(encoding="utf-8").splitlines() for file in (place, made)]
    except (OSError, UnicodeDecodeError):
        return ""
    pairs = zip(*lines, strict=False)
    first = next((at for at, (one, other) in enumerate(pairs, 1) if one != other), None)
    return f", from line {first or min(map(len, lines)) + 1} on"
