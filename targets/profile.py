"""A device profile as the other rooms see it: plain values, and the facts they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from hwprune.errors import TargetError, UsageError
from hwprune.ir import CodecName, ValueType
from hwprune.targets.explain import explain, give
from hwprune.targets.schema import Fact, MemoryTable, Profile

# The end of a field's name says its unit; the longest ending first.
_UNITS: tuple[tuple[str, str], ...] = (
    ("_bytes_per_s", "B/s"),
    ("_flop_per_s", "FLOP/s"),
    ("_op_per_s", "op/s"),
    ("_bytes", "B"),
    ("_hz", "Hz"),
)


class FactRow(NamedTuple):
    """One sourced value of a profile, ready to print.

    Attributes:
        field: its place in the file, such as ``memory.flash_bytes``.
        value: the value.
        unit: B, B/s, Hz, FLOP/s, op/s or nothing.
        source: where it is written.
        confirmed: False where the file says ``unconfirmed``.
    """

    field: str
    value: int | float | str | bool
    unit: str
    source: str
    confirmed: bool


class Runtime(BaseModel):
    """What executes the artifact.

    Attributes:
        kind: ``onnxruntime``, or ``firmware`` for a linked image.
        version: as the profile writes it; None for firmware.
        opset: the ONNX opset that an artifact must have.
        ir_version: the ONNX IR version that it must have.
        inline_functions: True where model-local functions must be inlined before shipping
            (onnxruntime older than 1.17 does not fold them).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["onnxruntime", "firmware"]
    version: str | None
    opset: int
    ir_version: int
    inline_functions: bool


class ImageRegions(BaseModel):
    """Where a linked image lies: what is left of flash and RAM when the reserves are taken off.

    Attributes:
        flash_origin: the address of its first byte.
        flash_bytes: what code and constants may take.
        ram_origin: the address of the first byte of RAM.
        ram_bytes: what variables, activations and the stack may take.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    flash_origin: int
    flash_bytes: int
    ram_origin: int
    ram_bytes: int


class Target(BaseModel):
    """A device.

    Attributes:
        name: its name, as in ``--target``.
        description: one line.
        kind: ``linux`` for a board, ``microcontroller`` for a chip without an operating system.
        aliases: its other names.
        core: the CPU core.
        cores: how many.
        clock_hz: their clock.
        fpu: its floating-point unit: none, single or double; None where the profile does not say.
        dsp: whether it has SIMD multiply-accumulate, likewise.
        ram_bytes: memory for activations, without what is reserved.
        memory_bytes: what a file could ever use: RAM of a board, flash of a microcontroller without
            what is reserved.
        ram_limit_bytes: what firmware may take of it, its stack included; None for all of it.
        activations: what firmware computes with: int8, or fp32 where nothing calibrates it.
        regions: where an image is linked; None where the profile does not say.
        budget_bytes: the default budget.
        budget_reason: one sentence on how the default budget comes about.
        runtime: what executes the artifact.
        codecs: the position codecs that the target decodes.
        value_types: the value types that the target decodes.
        source_path: the file that was read.
        rows: every sourced value, in the order of the schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    kind: Literal["linux", "microcontroller"]
    aliases: tuple[str, ...]
    core: str
    cores: int
    clock_hz: int
    fpu: Literal["none", "single", "double"] | None
    dsp: bool | None
    ram_bytes: int
    memory_bytes: int
    ram_limit_bytes: int | None = None
    activations: Literal["int8", "fp32"] = "int8"
    regions: ImageRegions | None
    budget_bytes: int
    budget_reason: str
    runtime: Runtime
    codecs: tuple[CodecName, ...]
    value_types: tuple[ValueType, ...]
    source_path: str
    rows: tuple[FactRow, ...]

    def facts(self) -> list[FactRow]:
        """Return every sourced value as (field, value, unit, source, confirmed)."""
        return list(self.rows)

    def computing_in(self, activations: Literal["int8", "fp32"]) -> Target:
        """Return the target whose firmware has such activations."""
        return self.model_copy(update={"activations": activations})

    def within_ram(self, limit: int | None) -> Target:
        """Return the target of whose RAM firmware may take so many bytes; None for all of it."""
        return self.model_copy(update={"ram_limit_bytes": limit})

    def in_form(self, form: str | None) -> Target:
        """Return the target as it takes a file of this form; None for its own.

        Args:
            form: ``functions``, or ``inlined`` for standard operators alone, which every runtime
                reads.

        Raises:
            UsageError: no such form, or functions where the runtime does not fold them.
        """
        if form not in (None, "functions", "inlined"):
            raise UsageError(f"form is {form!r}", hint="expected functions or inlined")
        if form == "functions" and self.runtime.inline_functions:
            raise UsageError(
                f"{self.name} needs the inlined form: its runtime does not fold functions",
                hint="give --form inlined, or leave --form out",
            )
        if form != "inlined":
            return self
        runtime = self.runtime.model_copy(update={"inline_functions": True})
        return self.model_copy(update={"runtime": runtime})


def build(table: Mapping[str, Any], *, name: str, path: str, origins: Mapping[str, str]) -> Target:
    """Validate a profile's table and work out what follows from it.

    Args:
        table: the profile after ``extends`` was followed.
        name: the file's stem, used where the table has no ``name``.
        path: the file, for messages.
        origins: for each field that was inherited, the file it stands in.

    Raises:
        TargetError: with one line per problem: field, what was given, what was expected.
    """
    try:
        profile = Profile.model_validate({"name": name, **table})
    except ValidationError as error:
        raise TargetError(
            explain(error, path=path, origins=origins),
            hint=f"docs/targets.md lists every field; `hwprune targets check {path}` tries again",
        ) from None
    problems = list(_contradictions(profile))
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise TargetError(
            f"{path} is not a valid device profile:\n{lines}",
            hint="docs/targets.md shows a complete profile for each kind",
        )
    budget_bytes, reason = _budget(profile)
    memory = profile.memory
    ram_bytes = memory.ram_bytes.value - _reserved(memory, "ram")
    memory_bytes = ram_bytes if profile.kind == "linux" else _flash_bytes(memory)
    if not 0 < budget_bytes <= memory_bytes:
        raise TargetError(
            f"{path}: budget: comes to {budget_bytes:,} B ({reason}); "
            f"expected between 1 and {memory_bytes:,} B, the device's memory",
            hint="lower the reserves under [budget], or state budget.default_bytes",
        )
    runtime = profile.runtime
    return Target(
        name=profile.name or name,
        description=profile.description,
        kind=profile.kind,
        aliases=profile.aliases,
        core=profile.cpu.core.value,
        cores=profile.cpu.cores.value,
        clock_hz=profile.cpu.clock_hz.value,
        fpu=profile.cpu.fpu.value if profile.cpu.fpu else None,
        dsp=profile.cpu.dsp.value if profile.cpu.dsp else None,
        ram_bytes=ram_bytes,
        memory_bytes=memory_bytes,
        regions=_regions(memory, memory_bytes, ram_bytes),
        budget_bytes=budget_bytes,
        budget_reason=reason,
        runtime=Runtime(
            kind=runtime.kind,
            version=runtime.version.value if runtime.version else None,
            opset=runtime.opset.value,
            ir_version=runtime.ir_version.value,
            inline_functions=runtime.inline_functions.value,
        ),
        codecs=profile.codecs,
        value_types=profile.value_types,
        source_path=path,
        rows=tuple(_rows(profile)),
    )


def _contradictions(profile: Profile) -> Iterator[str]:
    """Yield what is wrong between fields that are each right alone."""
    memory, budget, runtime = profile.memory, profile.budget, profile.runtime
    if profile.kind == "linux":
        expected = "onnxruntime"
        if memory.last_level_cache_bytes is None and budget.default_bytes is None:
            yield (
                "memory.last_level_cache_bytes: missing; expected for a linux board, "
                "unless budget.default_bytes states the default budget"
            )
        for field in ("runtime_bytes", "application_bytes", "application_fraction"):
            if getattr(budget, field) is not None:
                yield f"budget.{field}: expected for a microcontroller only, kind is linux"
    else:
        expected = "firmware"
        if memory.flash_bytes is None:
            yield "memory.flash_bytes: missing; expected for a microcontroller"
        elif _reserved(memory, "flash") >= memory.flash_bytes.value:
            yield "memory.flash_reserved_*_bytes: take all of the flash"
        if budget.default_bytes is None:
            if budget.runtime_bytes is None:
                yield "budget.runtime_bytes: missing; expected for a microcontroller"
            if budget.application_bytes is None and budget.application_fraction is None:
                yield (
                    "budget.application_bytes: missing; expected it or "
                    "budget.application_fraction for a microcontroller"
                )
    if _reserved(memory, "ram") >= memory.ram_bytes.value:
        yield "memory.ram_reserved_*_bytes: take all of the RAM"
    if (memory.flash_origin is None) != (memory.ram_origin is None):
        yield "memory.flash_origin, memory.ram_origin: expected both or neither"
    if runtime.kind != expected:
        yield f"runtime.kind = {give(runtime.kind)}: expected {give(expected)} for {profile.kind}"
    if runtime.kind == "onnxruntime" and runtime.version is None:
        yield "runtime.version: missing; expected the version of onnxruntime on the device"
    if runtime.ir_version.value < 8 and not runtime.inline_functions.value:
        yield (
            f"runtime.ir_version = {runtime.ir_version.value}: expected 8 or more, or "
            "inline_functions = true: older files cannot carry model-local functions"
        )


def _reserved(memory: MemoryTable, region: str) -> int:
    """Return what is reserved at both ends of ``flash`` or ``ram``."""
    facts = (getattr(memory, f"{region}_reserved_{end}_bytes") for end in ("head", "tail"))
    return sum(fact.value for fact in facts if fact is not None)


def _flash_bytes(memory: MemoryTable) -> int:
    assert memory.flash_bytes is not None  # _contradictions has seen to it
    return memory.flash_bytes.value - _reserved(memory, "flash")


def _regions(memory: MemoryTable, flash_bytes: int, ram_bytes: int) -> ImageRegions | None:
    if memory.flash_origin is None or memory.ram_origin is None:
        return None
    flash_head, ram_head = memory.flash_reserved_head_bytes, memory.ram_reserved_head_bytes
    return ImageRegions(
        flash_origin=memory.flash_origin.value + (flash_head.value if flash_head else 0),
        flash_bytes=flash_bytes,
        ram_origin=memory.ram_origin.value + (ram_head.value if ram_head else 0),
        ram_bytes=ram_bytes,
    )


def _budget(profile: Profile) -> tuple[int, str]:
    """Return the default budget in bytes and how it comes about."""
    memory, budget = profile.memory, profile.budget
    because = f": {budget.reason}" if budget.reason else ""
    if budget.default_bytes is not None:
        size_bytes = budget.default_bytes.value
        return size_bytes, f"the profile states {size_bytes:,} B = model budget{because}"
    if profile.kind == "linux":
        assert memory.last_level_cache_bytes is not None
        size_bytes = memory.last_level_cache_bytes.value
        return size_bytes, f"last-level cache {size_bytes:,} B = model budget{because}"
    assert budget.runtime_bytes is not None
    flash, runtime = _flash_bytes(memory), budget.runtime_bytes.value
    if budget.application_bytes is not None:
        application = budget.application_bytes.value
    else:
        assert budget.application_fraction is not None
        application = int(flash * budget.application_fraction.value)
    left = flash - runtime - application
    return left, (
        f"flash {flash:,} B - runtime {runtime:,} B - application {application:,} B "
        f"= model budget {left:,} B{because}"
    )


def _rows(section: BaseModel, prefix: str = "") -> Iterator[FactRow]:
    for field in type(section).model_fields:
        value = getattr(section, field)
        if isinstance(value, Fact):
            unit = next((unit for ending, unit in _UNITS if field.endswith(ending)), "")
            yield FactRow(prefix + field, value.value, unit, value.source, not value.unconfirmed)
        elif isinstance(value, BaseModel):
            yield from _rows(value, f"{prefix}{field}.")
