"""What the gate finds: steps, results, and what it needs to know of a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from hwprune.errors import HwpruneError, worst_exit_code
from hwprune.export.artifact import ArtifactFile
from hwprune.ir import LimitResult

Outcome = Literal["passed", "failed", "skipped"]

SCOPE_HOST = "onnx file, on this host"
SCOPE_UNLINKED = "onnx-size-only, not linked"


class RuntimeFacts(Protocol):
    """What a target's runtime can read."""

    @property
    def kind(self) -> str:
        """``onnxruntime`` or ``firmware``."""

    @property
    def version(self) -> str | None:
        """Its version."""

    @property
    def opset(self) -> int:
        """The opset that artifacts must not exceed."""

    @property
    def ir_version(self) -> int:
        """The IR version that artifacts must not exceed."""

    @property
    def inline_functions(self) -> bool:
        """Whether it cannot fold model-local functions."""


class TargetFacts(Protocol):
    """What the gate needs to know of a target; ``hwprune.targets.Target`` has it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def kind(self) -> Literal["linux", "microcontroller"]:
        """What sort of device it is."""

    @property
    def budget_bytes(self) -> int:
        """What a file may weigh."""

    @property
    def runtime(self) -> RuntimeFacts:
        """What executes the file."""

    @property
    def codecs(self) -> Sequence[str]:
        """The codecs it can decode."""

    @property
    def value_types(self) -> Sequence[str]:
        """The value types it can decode."""


@dataclass(frozen=True, slots=True)
class Step:
    """One check and how it came out.

    Attributes:
        name: what was checked.
        outcome: passed, failed or skipped.
        message: what was found.
        hint: what to do next.
        exit_code: 0 unless it failed.
        error_type: the class of the error that a failure stands for.
    """

    name: str
    outcome: Outcome
    message: str
    hint: str | None = None
    exit_code: int = 0
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The gate's answer for one artifact.

    Attributes:
        path: the file, as given.
        steps: every check, in order.
        limits: the limits that could be measured.
        scope: what the answer covers, in words.
        artifact: the file as read; None where it cannot be.
    """

    path: str
    steps: tuple[Step, ...]
    limits: tuple[LimitResult, ...]
    scope: str
    artifact: ArtifactFile | None

    @property
    def exit_code(self) -> int:
        """Return the code that stands for all failures; 0 where there is none."""
        return worst_exit_code([step.exit_code for step in self.steps])

    @property
    def ok(self) -> bool:
        """Return whether nothing failed."""
        return self.exit_code == 0

    @property
    def failures(self) -> tuple[Step, ...]:
        """Return the checks that failed."""
        return tuple(step for step in self.steps if step.outcome == "failed")


@dataclass(slots=True)
class Log:
    """Collects steps; a check is a function that returns what it found or raises."""

    steps: list[Step] = field(default_factory=list)

    def step(self, name: str, check: Callable[[], str]) -> bool:
        """Run a check; return whether it passed."""
        try:
            self.steps.append(Step(name, "passed", check()))
            return True
        except HwpruneError as error:
            self.failed(name, error)
            return False

    def failed(self, name: str, error: HwpruneError) -> None:
        """Note an error as the outcome of a check."""
        kind = type(error).__name__
        self.steps.append(Step(name, "failed", error.message, error.hint, error.exit_code, kind))

    def skip(self, name: str, why: str) -> None:
        """Note that a check does not apply, and why."""
        self.steps.append(Step(name, "skipped", why))
