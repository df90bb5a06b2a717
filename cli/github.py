"""What a step of GitHub Actions reads: annotations on the lines of its log, and a summary page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwprune.verify import CheckResult

_SIGNS = {"passed": "✅", "failed": "❌", "skipped": "➖"}


def runs_here(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this is a step of GitHub Actions."""
    return environment.get("GITHUB_ACTIONS") == "true"


def commands(results: Sequence[CheckResult]) -> list[str]:
    """Return a workflow command for each check that failed."""
    return [
        f"::error file={_escaped(result.path, ':,')},title={_escaped(step.name, ':,')}"
        f"::{_escaped(step.message + (f' Hint: {step.hint}' if step.hint else ''))}"
        for result in results
        for step in result.failures
    ]


def summary(results: Sequence[CheckResult]) -> str:
    """Return the results as Markdown: a heading and a table for each artifact."""
    parts = []
    for result in results:
        lines = [
            f"### {_SIGNS['passed' if result.ok else 'failed']} `{_cell(result.path)}`",
            "",
            "| | check | |",
            "|---|---|---|",
        ]
        lines += [
            f"| {_SIGNS[step.outcome]} | {_cell(step.name)} "
            f"| {_cell(step.message + (f' ({step.hint})' if step.hint else ''))} |"
            for step in result.steps
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def add_to_summary(
    results: Sequence[CheckResult], environment: Mapping[str, str] = os.environ
) -> None:
    """Append the summary to the file that the runner shows.

    Raises:
        OutputError: it cannot be written.
    """
    from hwprune.errors import OutputError

    path = environment.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(summary(results))
    except OSError as error:
        raise OutputError(f"the summary {path} cannot be written: {error.strerror}") from None


def _escaped(text: str, also: str = "") -> str:
    """Escape as the runner's toolkit does: it reads a command up to the end of a line."""
    for letter in "%\r\n" + also:
        text = text.replace(letter, f"%{ord(letter):02X}")
    return text


def _cell(text: str) -> str:
    for special, plain in (("\\", "\\\\"), ("|", "\\|"), ("`", "'"), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(special, plain)
    return text
