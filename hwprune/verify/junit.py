"""Check results as JUnit XML, the form that CI systems read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from hwprune.verify.outcome import CheckResult, Step

# XML 1.0 has no way to write these, escaped or not.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(results: Sequence[CheckResult]) -> str:
    """Return the XML: a test suite per artifact, a test case per check."""
    root = ElementTree.Element("testsuites", name="hwprune check")
    totals = {"tests": 0, "failures": 0, "skipped": 0}
    for result in results:
        outcomes = [step.outcome for step in result.steps]
        counts = {
            "tests": len(outcomes),
            "failures": outcomes.count("failed"),
            "skipped": outcomes.count("skipped"),
        }
        totals = {key: totals[key] + counts[key] for key in totals}
        suite = ElementTree.SubElement(root, "testsuite", name=_clean(result.path))
        suite.attrib.update({key: str(count) for key, count in counts.items()}, errors="0")
        for step in result.steps:
            _case(suite, result.path, step)
    root.attrib.update({key: str(count) for key, count in totals.items()}, errors="0")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _case(suite: ElementTree.Element, path: str, step: Step) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_clean(path), name=_clean(step.name))
    message = _clean(step.message)
    if step.outcome == "failed":
        kind = step.error_type or "failure"
        failure = ElementTree.SubElement(case, "failure", message=message, type=kind)
        failure.text = message + (f"\nhint: {_clean(step.hint)}" if step.hint else "")
    elif step.outcome == "skipped":
        ElementTree.SubElement(case, "skipped", message=message)
    else:
        ElementTree.SubElement(case, "system-out").text = message


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
