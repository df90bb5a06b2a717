"""What a profile's TOML may say: the tables, their fields, and the type of each value.

A field's ``description`` says what is expected there; the error messages quote it.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hwprune.errors import UsageError
from hwprune.ir import CodecName, ValueType
from hwprune.units import parse_bytes

T = TypeVar("T")

FACT_FORM = '{ value = ..., source = "where it is written" }'
NAME_PATTERN = r"[a-z0-9][a-z0-9._+-]{0,63}"


def _size_from_text(value: Any) -> Any:
    """Accept ``"512KiB"`` beside a number of bytes."""
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except UsageError as error:
        raise PydanticCustomError("size", "{why}", {"why": error.message}) from None


def _printable(value: str) -> str:
    """Refuse what could steer a terminal: a profile may come from anywhere, and is printed."""
    if not value.strip() or not value.isprintable():
        raise PydanticCustomError("text", "a line of printable text")
    return value


def _all_different(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise PydanticCustomError("repeated", "no entry twice")
    return values


# The upper bounds keep slips (a size in bits, a clock in mHz) and absurd integers out.
Line = Annotated[StrictStr, AfterValidator(_printable)]
Size = Annotated[StrictInt, Field(gt=0, le=2**50), BeforeValidator(_size_from_text)]
Address = Annotated[StrictInt, Field(ge=0, lt=2**32)]
Count = Annotated[StrictInt, Field(gt=0, le=1_000_000)]
Rate = Annotated[StrictInt, Field(gt=0, le=10**18)]
Fraction = Annotated[StrictFloat, Field(ge=0, lt=1)]
Name = Annotated[StrictStr, Field(pattern=f"^{NAME_PATTERN}$")]


class Fact(BaseModel, Generic[T]):
    """A value and where it is written down.

    Attributes:
        value: the value.
        source: the document that states it, or who chose it.
        unconfirmed: True until somebody has read it in the device's own documentation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: T = Field(description="the value itself")
    source: Line = Field(description="the document that states the value, as a line of text")
    unconfirmed: StrictBool = Field(default=False, description="true or false")

    @model_validator(mode="before")
    @classmethod
    def _not_bare(cls, data: Any) -> Any:
        if not isinstance(data, (dict, Fact)):
            raise PydanticCustomError("bare", "{form}", {"form": FACT_FORM})
        return data


class ProfileSection(BaseModel):
    """Base of the tables."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _optional(description: str) -> Any:
    return Field(default=None, description=description)


_SIZE = 'a size, such as 524_288 or "512KiB"'
_ADDRESS = "an address from 0, such as 0x0800_0000"
_HERTZ = "a whole number of hertz, such as 100_000_000"


class CpuTable(ProfileSection):
    """``[cpu]``: what runs the network."""

    core: Fact[Line] = Field(description='the core\'s name, such as "Cortex-M4F"')
    cores: Fact[Count] = Field(description="how many cores: a whole number from 1")
    clock_hz: Fact[Rate] = Field(description=_HERTZ)
    fpu: Fact[Literal["none", "single", "double"]] | None = _optional(
        'the floating-point unit: "none", "single" or "double"'
    )
    dsp: Fact[StrictBool] | None = _optional("true where the core has SIMD multiply-accumulate")
    peak_fp32_flop_per_s: Fact[Rate] | None = _optional(
        "FLOP/s of all cores as a whole number (one multiply-add = two)"
    )


class MemoryTable(ProfileSection):
    """``[memory]``: where weights and activations can lie."""

    ram_bytes: Fact[Size] = Field(description=f"the memory that activations use: {_SIZE}")
    other_ram_bytes: Fact[Size] | None = _optional(f"RAM in further regions: {_SIZE}")
    flash_bytes: Fact[Size] | None = _optional(f"the flash that holds the image: {_SIZE}")
    flash_origin: Fact[Address] | None = _optional(f"where the flash begins: {_ADDRESS}")
    flash_reserved_head_bytes: Fact[Size] | None = _optional(
        f"what a bootloader takes at the beginning of the flash: {_SIZE}"
    )
    flash_reserved_tail_bytes: Fact[Size] | None = _optional(
        f"what settings or a file system take at its end: {_SIZE}"
    )
    ram_origin: Fact[Address] | None = _optional(f"where that memory begins: {_ADDRESS}")
    ram_reserved_head_bytes: Fact[Size] | None = _optional(
        f"what a radio stack takes at its beginning: {_SIZE}"
    )
    ram_reserved_tail_bytes: Fact[Size] | None = _optional(f"what is taken at its end: {_SIZE}")
    flash_external: Fact[StrictBool] | None = _optional("true where the flash is a chip beside")
    l2_per_core_bytes: Fact[Size] | None = _optional(_SIZE)
    last_level_cache_bytes: Fact[Size] | None = _optional(
        f"the largest cache that one thread's weights can stay in: {_SIZE}"
    )
    system_cache_bytes: Fact[Size] | None = _optional(_SIZE)
    bandwidth_bytes_per_s: Fact[Rate] | None = _optional("a whole number of bytes a second")


class AcceleratorTable(ProfileSection):
    """``[accelerator]``: a GPU, for information; hwprune's kernels run on the CPU."""

    name: Fact[Line] = Field(description="a line of text")
    cores: Fact[Count] | None = _optional("a whole number from 1")
    clock_hz: Fact[Rate] | None = _optional(_HERTZ)
    cache_bytes: Fact[Size] | None = _optional(_SIZE)
    peak_fp32_flop_per_s: Fact[Rate] | None = _optional("a whole number of FLOP/s")
    peak_fp16_flop_per_s: Fact[Rate] | None = _optional("a whole number of FLOP/s")
    peak_int8_op_per_s: Fact[Rate] | None = _optional("a whole number of operations a second")


class BudgetTable(ProfileSection):
    """``[budget]``: how the default budget comes about.

    ``default_bytes`` states it outright. Else a microcontroller's is flash - runtime - application
    (``application_bytes`` goes before ``application_fraction``), a board's its last-level cache.
    """

    default_bytes: Fact[Size] | None = _optional(f"the default budget itself: {_SIZE}")
    runtime_bytes: Fact[Size] | None = _optional(f"flash that hwprune's runtime takes: {_SIZE}")
    application_bytes: Fact[Size] | None = _optional(f"flash that your program takes: {_SIZE}")
    application_fraction: Fact[Fraction] | None = _optional(
        "the part of the flash that your program takes: 0.0 up to, not including, 1.0"
    )
    reason: Line | None = _optional("a sentence that is printed with the budget")


class RuntimeTable(ProfileSection):
    """``[runtime]``: what executes the artifact, and what it can read."""

    kind: Literal["onnxruntime", "firmware"] = Field(description='"onnxruntime" or "firmware"')
    version: Fact[Line] | None = _optional('the version as text, such as "1.11" or ">=1.17"')
    # The lower bounds keep slips out; what a lower opset cannot express, export refuses.
    opset: Fact[Annotated[StrictInt, Field(ge=13, le=99)]] = Field(
        description="the ONNX opset of artifacts: a whole number from 13"
    )
    ir_version: Fact[Annotated[StrictInt, Field(ge=7, le=99)]] = Field(
        description="the ONNX IR version of artifacts: a whole number from 7"
    )
    inline_functions: Fact[StrictBool] = Field(
        description="true where the runtime does not fold model-local functions at load"
    )


class Profile(ProfileSection):
    """A whole profile, after ``extends`` was followed."""

    name: Name | None = _optional(
        "lower-case letters, digits, '.', '_', '+' and '-', at most 64, a letter or digit first"
    )
    description: Line = Field(description="a line of text")
    kind: Literal["linux", "microcontroller"] = Field(description='"linux" or "microcontroller"')
    aliases: Annotated[tuple[Name, ...], AfterValidator(_all_different)] = Field(
        default=(), description="other names: lower-case letters, digits, '.', '_', '+' and '-'"
    )
    codecs: Annotated[
        tuple[CodecName, ...], Field(min_length=1), AfterValidator(_all_different)
    ] = Field(
        description='a list of "cols8", "cols16", "gap4", "gap8", "gap16", "bitmap", "rice" '
        'and "dense"'
    )
    value_types: Annotated[
        tuple[ValueType, ...], Field(min_length=1), AfterValidator(_all_different)
    ] = Field(
        description='a list of "fp32", "fp16", "int8", "int4", "codebook16" and "codebook256"'
    )
    cpu: CpuTable = Field(description="the table [cpu]")
    memory: MemoryTable = Field(description="the table [memory]")
    accelerator: AcceleratorTable | None = _optional("the table [accelerator]")
    budget: BudgetTable = Field(default=BudgetTable(), description="the table [budget]")
    runtime: RuntimeTable = Field(description="the table [runtime]")
