from __future__ import annotations

from xml.etree import ElementTree

from hwprune.verify.junit import junit
from hwprune.verify.outcome import CheckResult, Step


def test_junit_counts_and_explains() -> None:
    steps = (
        Step("readable", "passed", "12 B"),
        Step("budget", "failed", "over <budget> \x1b[31m", "prune", 3, "LimitError"),
        Step("report beside", "skipped", "none"),
        Step("parity", "skipped", "no network"),
    )
    results = [CheckResult("a&b.onnx", steps, (), "", None)] * 2
    root = ElementTree.fromstring(junit(results))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("8", "2", "4")
    suites = root.findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["a&b.onnx"] * 2
    counts = {key: suites[0].get(key) for key in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": "4", "failures": "1", "skipped": "2", "errors": "0"}
    failure = suites[0].find("testcase/failure")
    assert failure is not None
    assert failure.get("type") == "LimitError"
    assert failure.get("message") == "over <budget> \ufffd[31m"
    assert "hint: prune" in (failure.text or "")
    assert len(suites[0].findall("testcase/skipped")) == 2
