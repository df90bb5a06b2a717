"""unparsed_functions: torch's exporter gets the same answers, and onnxscript is left as it was."""

from __future__ import annotations

import pytest
from onnxscript import values
from onnxscript.function_libs.torch_lib import ops, registration

from hwprune.export.registry import unparsed_functions


def _traced() -> list[values.TracedOnnxFunction]:
    assert ops
    functions = [f for entry in registration.default_registry.values() for f in entry.overloads]
    return [f for f in functions if isinstance(f, values.TracedOnnxFunction)]


def test_functions_answer_as_they_did() -> None:
    before = vars(values.TracedOnnxFunction)["function_ir"]
    some = _traced()[::60]
    assert some
    expected = [(f.function_ir.domain, f.function_ir.name, str(f.function_ir)) for f in some]
    with unparsed_functions():
        assert vars(values.TracedOnnxFunction)["function_ir"] is not before
        found = [(f.function_ir.domain, f.function_ir.name) for f in some]
    assert found == [(domain, name) for domain, name, _ in expected]
    assert vars(values.TracedOnnxFunction)["function_ir"] is before


def test_nothing_is_parsed_for_a_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: object) -> None:
        raise RuntimeError("parsed")

    one = _traced()[0]
    monkeypatch.setattr(values.TracedOnnxFunction, "function_ir", property(refuse))
    with unparsed_functions():
        assert one.function_ir.domain == "pkg.onnxscript.torch_lib"
        with pytest.raises(RuntimeError, match="parsed"):
            assert one.function_ir.name
