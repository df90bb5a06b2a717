"""The exceptions hwprune raises, and the exit code that each becomes at the command line.

    HwpruneError                    1  base; raised itself only for a broken internal promise
    +-- InputError                  2  something that the user handed in
    |   +-- UsageError              2  options that contradict each other or cannot be met
    |   +-- ModelError              2  the model file cannot be read, or is not of its --arch
    |   |   +-- UnsafeModelError    2  reading it would run code
    |   +-- DataError               2  the data source
    |   +-- TargetError             2  the device profile
    |   +-- ArtifactError           2  an artifact that cannot be read
    |   +-- ExportError             2  the network cannot be expressed for this target
    |   +-- OutputError             2  the output folder
    |   +-- CheckpointError         2  the checkpoint of a run that --resume would continue
    |   +-- KernelsError            2  the library of sparse kernels is absent or refused
    +-- LimitError                  3  a --require or the budget in `check` is not met
    +-- InfeasibleError             4  the floor is above the budget
    +-- VerificationError           5  what was written is not what was promised
        +-- ExternalDataError       5  a part of the artifact lies in another file

A message says what was given and what was expected; the hint says what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class HwpruneError(Exception):
    """Base of every error that hwprune raises on purpose.

    Args:
        message: what was given and what was expected, without a trailing newline.
        hint: what to do next, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(HwpruneError):
    """Something that the user handed in cannot be used."""

    exit_code: ClassVar[int] = 2


class UsageError(InputError):
    """Options contradict each other, or ask for what this run cannot do."""


class ModelError(InputError):
    """The model file cannot be read, or does not fit its architecture."""


class UnsafeModelError(ModelError):
    """Reading the model file would run code stored in it."""


class DataError(InputError):
    """The data source cannot be read, or does not fit the model."""


class TargetError(InputError):
    """The device profile is unknown or not valid."""


class ArtifactError(InputError):
    """An artifact cannot be read."""


class ExportError(InputError):
    """The network uses something that the target's runtime cannot express."""


class OutputError(InputError):
    """The output folder cannot be written, or holds somebody else's files."""


class CheckpointError(InputError):
    """The checkpoint of an interrupted run is damaged, or is one of another run."""


class KernelsError(InputError):
    """The library of sparse kernels is absent, or onnxruntime refuses it."""


class LimitError(HwpruneError):
    """A limit is not met: ``--require``, or the budget in ``hwprune check``."""

    exit_code: ClassVar[int] = 3


class InfeasibleError(HwpruneError):
    """No pruning can reach the budget: the floor is above it."""

    exit_code: ClassVar[int] = 4


class VerificationError(HwpruneError):
    """What was written is not what was promised."""

    exit_code: ClassVar[int] = 5


class ExternalDataError(VerificationError):
    """A part of the artifact lies in another file, so its own size says nothing."""


# What to report when several things went wrong at once, most important first.
EXIT_CODE_ORDER: tuple[int, ...] = (1, 2, 5, 4, 3, 0)


def worst_exit_code(codes: list[int]) -> int:
    """Return the exit code that stands for all of ``codes`` (0 for none)."""
    return min(codes, key=EXIT_CODE_ORDER.index, default=0)
