"""What the verifier finds: checks and how they came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from hwprune.errors import HwpruneError, worst_exit_code
from hwprune.export.artifact import ArtifactFile
from hwprune.ir import LimitResult
from hwprune.verify.parity import Parity

SCOPE_HOST = "onnx file, on this host"
SCOPE_UNLINKED = "onnx-size-only, not linked"

_T = TypeVar("_T")


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
    outcome: Literal["passed", "failed", "skipped"]
    message: str
    hint: str | None = None
    exit_code: int = 0
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The answer for one artifact.

    Attributes:
        path: the file, as given.
        steps: every check, in order.
        limits: the limits that could be measured.
        scope: what the answer covers, in words.
        artifact: the file as read; None where it cannot be.
        parity: the file against the network it was made of, None where that was not compared.
        speeds: native kernels against stock onnxruntime, None where that was not compared.
        no_kernels: why the file does not run with native kernels here, None where it does.
    """

    path: str
    steps: tuple[Step, ...]
    limits: tuple[LimitResult, ...]
    scope: str
    artifact: ArtifactFile | None
    parity: Parity | None = None
    speeds: Parity | None = None
    no_kernels: str | None = None

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

    @property
    def problems(self) -> tuple[str, ...]:
        """Return what is wrong, in sentences; empty where the file is right."""
        return tuple(step.message for step in self.failures)


class Skipped(Exception):
    """A check does not apply; the message says why."""


@dataclass(slots=True)
class Log:
    """Collects steps. A check is a function that returns what it found, or raises."""

    steps: list[Step] = field(default_factory=list)

    def step(self, name: str, check: Callable[[], _T]) -> _T | None:
        """Run a check; return what it found, None where it failed or was skipped."""
        try:
            found = check()
        except Skipped as why:
            self.steps.append(Step(name, "skipped", str(why)))
        except HwpruneError as error:
            self.failed(name, error)
        else:
            self.passed(name, str(found))
            return found
        return None

    def passed(self, name: str, message: str) -> None:
        """Note that a check passed."""
        self.steps.append(Step(name, "passed", message))

    def failed(self, name: str, error: HwpruneError) -> None:
        """Note an error as the outcome of a check."""
        kind = type(error).__name__
        self.steps.append(Step(name, "failed", error.message, error.hint, error.exit_code, kind))
