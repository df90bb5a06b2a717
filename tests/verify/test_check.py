from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.inliner
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from hwprune.ir import VALUE_TYPES, LimitResult
from hwprune.targets import load
from hwprune.verify import check, parse_limit
from hwprune.verify.outcome import CheckResult

WriteArtifact = Callable[..., Path]
PutReport = Callable[..., Path]


def failed(result: CheckResult) -> list[str]:
    return [step.name for step in result.failures]


def message(result: CheckResult, name: str) -> str:
    return next(step.message for step in result.steps if step.name == name)


@pytest.mark.parametrize("form", ["functions", "inlined", "dense"])
@pytest.mark.parametrize("codec", ["gap4", "gap8", "gap16", "cols8", "cols16", "bitmap", "rice"])
@pytest.mark.parametrize("value_type", VALUE_TYPES)
def test_a_sound_file_passes(
    write_artifact: WriteArtifact, form: str, codec: str, value_type: str
) -> None:
    path = str(write_artifact(form=form, codec=codec, value_type=value_type))
    result = check(path, target=load("raspberry-pi-zero-2w"))
    assert failed(result) == []
    assert result.exit_code == 0


def test_unreadable_files_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    for name in ("gone.onnx", "text.onnx", "."):
        result = check(str(tmp_path / name))
        assert (failed(result), result.exit_code) == (["readable"], 2)
        assert result.artifact is None


def test_a_truncated_file_does_not_pass(write_artifact: WriteArtifact) -> None:
    path = write_artifact()
    path.write_bytes(path.read_bytes()[:-40])
    assert check(str(path)).exit_code in (2, 5)


# -- altered ------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["Gemm", "Conv"])
def test_an_altered_function_body_fails(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any], operator: str
) -> None:
    model = make_artifact()
    function = next(f for f in model.functions if f.name.startswith(f"Csr{operator}"))
    function.node[-1].output[0] = "before"
    function.node.append(onnx.helper.make_node("Neg", ["before"], [function.output[0]]))
    onnx.checker.check_model(model, full_check=True)  # the checker sees nothing wrong
    result = check(str(write_artifact(model=model)))
    assert (failed(result), result.exit_code) == (["function bodies"], 5)
    assert function.name in message(result, "function bodies")


@pytest.mark.parametrize("value_type", ["fp32", "int8"])
def test_an_altered_inlined_layer_fails(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any], value_type: str
) -> None:
    model = make_artifact(form="inlined", value_type=value_type)
    where = next(node for node in model.graph.node if node.op_type == "Where")
    where.input[1], where.input[2] = where.input[2], where.input[1]
    onnx.checker.check_model(model, full_check=True)
    result = check(str(write_artifact(model=model)))
    assert result.exit_code == 5
    assert "function bodies" in failed(result)
    assert "conv.weight" in message(result, "function bodies")


def test_a_packed_array_that_does_not_add_up_fails(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any]
) -> None:
    model = make_artifact()
    values = next(tensor for tensor in model.graph.initializer if tensor.name == "0v")
    shorter = numpy_helper.to_array(values)[:-1]
    values.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(shorter), "0v"))
    result = check(str(write_artifact(model=model)))
    assert (failed(result), result.exit_code) == (["readable"], 5)


def test_a_gap_past_the_end_fails(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any]
) -> None:
    model = make_artifact()
    index = next(tensor for tensor in model.graph.initializer if tensor.name == "0i")
    array = numpy_helper.to_array(index).copy()
    array[-1] = 255
    index.CopyFrom(numpy_helper.from_array(array, "0i"))
    result = check(str(write_artifact(model=model)))
    assert result.exit_code == 5
    assert "position" in result.failures[0].message


@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_external_data_fails(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any], where: str
) -> None:
    model = make_artifact(form="dense")
    if where == "initializer":
        tensor = model.graph.initializer[0]
    else:
        value = numpy_helper.from_array(np.zeros(5, np.float32), "c")
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["unused"], value=value))
        tensor = model.graph.node[0].attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    result = check(str(write_artifact(model=model)))
    assert (failed(result), result.exit_code) == (["one file"], 5)
    assert "another file" in result.failures[0].message


# -- re-densified -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["functions", "inlined"])
@pytest.mark.parametrize("level", ["BASIC", "EXTENDED", "ALL"])
def test_a_file_that_onnxruntime_optimised_is_re_densified(
    write_artifact: WriteArtifact, tmp_path: Path, form: str, level: str
) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    source = str(write_artifact(form=form))
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    result = check(options.optimized_model_filepath)
    assert result.exit_code == 5


def test_re_densified_is_said_by_name(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any]
) -> None:
    model = make_artifact(form="dense")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        array[np.abs(array - 1) < 1e-6] = 0  # the fixture shifted what was pruned to 1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    result = check(str(write_artifact(model=model)))
    assert (failed(result), result.exit_code) == (["packed weights"], 5)
    assert "re-densified" in message(result, "packed weights")
    # The same tensors from another producer are somebody else's business.
    model.producer_name = "pytorch"
    assert check(str(write_artifact(model=model))).exit_code == 0


def test_fewer_packed_layers_than_the_report_says(
    write_artifact: WriteArtifact, put_report: PutReport
) -> None:
    put_report(write_artifact())
    result = check(str(write_artifact(form="dense")))  # takes the place of the reported file
    assert result.exit_code == 5
    assert "re-densified: 8 layers were packed, none" in message(result, "report beside")


# -- what other programs do to a file ----------------------------------------------------------


def by_the_inliner(model: Any) -> Any:
    return onnx.inliner.inline_local_functions(model)


def with_prefixes(model: Any) -> Any:
    return onnx.compose.add_prefix(model, prefix="left/")


def merged(model: Any) -> Any:
    """Two graphs in one, as a pipeline of networks is made."""
    ends = onnx.helper.make_tensor_value_info("y1", onnx.TensorProto.FLOAT, ["N", 5])
    last = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["N", 5])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Softmax", ["y1"], ["out"])], "tail", [ends], [last]
    )
    tail = onnx.helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=8)
    return onnx.compose.merge_models(model, tail, io_map=[("y1", "y1")], prefix1="a_", prefix2="b_")


def renamed(model: Any) -> Any:
    """Every name another, no node with a name, and constants as initializers: as simplifiers do."""
    model = by_the_inliner(model)
    graph, names = model.graph, dict[str, str]()
    keep = {entry.name for entry in (*graph.input, *graph.output)}
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        entry = node.attribute[0]
        value = onnx.helper.get_attribute_value(entry)
        kind = np.float32 if entry.name.startswith("value_float") else np.int64
        array = numpy_helper.to_array(value) if entry.name == "value" else np.array(value, kind)
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        graph.node.remove(node)
    for each in (*graph.node, *graph.initializer):
        each.name = "" if isinstance(each, onnx.NodeProto) else each.name
    for node in graph.node:
        for names_of in (node.input, node.output):
            for place, name in enumerate(names_of):
                if name and name not in keep:
                    names_of[place] = names.setdefault(name, f"t{len(names)}")
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    return model


@pytest.mark.parametrize("form", ["functions", "inlined"])
@pytest.mark.parametrize("change", [by_the_inliner, with_prefixes, merged, renamed])
@pytest.mark.parametrize(
    ("codec", "value_type"),
    [
        *((codec, "int8") for codec in ("gap4", "gap8", "gap16", "cols8", "cols16", "bitmap")),
        *(("rice", value_type) for value_type in VALUE_TYPES),
        ("dense", "int8"),
    ],
)
def test_layers_are_found_by_what_they_compute(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any],
    form: str, change: Callable[[Any], Any], codec: str, value_type: str,
) -> None:  # fmt: skip
    if (form, codec, change) == ("inlined", "dense", renamed):
        pytest.skip("nothing tells such layers from dense weights that another program scales")
    model = make_artifact(form=form, codec=codec, value_type=value_type)
    before = check(str(write_artifact(model=model)))
    after = check(str(write_artifact("changed.onnx", model=change(model))))
    assert (failed(after), after.exit_code) == ([], 0)
    assert after.artifact is not None
    assert before.artifact is not None

    def stored(result: CheckResult) -> list[tuple[Any, ...]]:
        assert result.artifact is not None
        layers = result.artifact.layers
        return [(each.shape, each.codec, each.value_type, each.nonzeros) for each in layers]

    assert stored(after) == stored(before)


def test_a_layer_that_was_inlined_and_altered_is_none(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any]
) -> None:
    model = by_the_inliner(make_artifact())
    for node in [node for node in model.graph.node if node.op_type == "Where"]:
        node.input[1], node.input[2] = node.input[2], node.input[1]
    result = check(str(write_artifact(model=model)))
    assert "packed weights" in failed(result)
    assert result.exit_code == 5


def test_a_function_with_a_prefix_that_was_altered_fails(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any]
) -> None:
    model = with_prefixes(make_artifact())
    decoder = next(each for each in model.functions if "Decode" in each.name)
    decoder.node[-1].op_type = "Identity"
    del decoder.node[-1].input[1:]
    result = check(str(write_artifact(model=model)))
    assert "function bodies" in failed(result)


# -- the report beside --------------------------------------------------------------------------


def test_a_file_that_is_not_the_reported_one(
    write_artifact: WriteArtifact, put_report: PutReport, sample_record: dict[str, Any]
) -> None:
    few = {**sample_record["result"], "layers": sample_record["result"]["layers"][:2]}
    put_report(write_artifact(), result=few)
    path = write_artifact(seed=1)
    result = check(str(path))
    assert (failed(result), result.exit_code) == (["report beside"], 5)
    assert f"it has {path.stat().st_size:,} B" in message(result, "report beside")
    assert "sha256" in message(result, "report beside")


def test_a_rejected_file_does_not_pass(
    write_artifact: WriteArtifact, put_report: PutReport, sample_record: dict[str, Any]
) -> None:
    path = write_artifact("rejected.onnx")
    put_report(path, verdict={**sample_record["verdict"], "verified": False})
    assert (failed(check(str(path))), check(str(path)).exit_code) == (["report beside"], 5)


def test_a_report_about_another_file_is_left_alone(
    write_artifact: WriteArtifact, put_report: PutReport
) -> None:
    put_report(write_artifact("other.onnx", seed=3))
    assert check(str(write_artifact())).exit_code == 0


@pytest.mark.parametrize("text", ["[]", "{}", '{"artifact": 3}', '{"artifact": {"path": 1}}'])
def test_another_programs_report_is_no_report(write_artifact: WriteArtifact, text: str) -> None:
    path = write_artifact()
    (path.parent / "report.json").write_text(text)
    assert check(str(path)).exit_code == 0


@pytest.mark.parametrize("content", [b"", b'{"artifact"', b"\xff\xfe", b"[" * 100_000, None])
def test_a_report_that_cannot_be_read_does_not_pass(
    write_artifact: WriteArtifact, content: bytes | None
) -> None:
    path = write_artifact()
    place = path.parent / "report.json"
    if content is None:
        place.symlink_to(place)  # the system refuses to open it, whoever asks
    else:
        place.write_bytes(content)
    result = check(str(path))
    assert (failed(result), result.exit_code) == (["report beside"], 2)
    assert "report.json cannot be read: " in message(result, "report beside")


@pytest.mark.parametrize("number", [10**400, -1, True, "1", None])
def test_sizes_of_a_report_that_no_file_has_are_absent(
    write_artifact: WriteArtifact, put_report: PutReport, sample_record: dict[str, Any], number: Any
) -> None:
    path = write_artifact()
    put_report(path, budget={**sample_record["budget"], "bytes": number})
    result = check(str(path))
    assert (failed(result), result.exit_code) == ([], 0)
    assert "budget" not in [step.name for step in result.steps]
    text = (path.parent / "report.json").read_text()
    record = json.loads(text)
    record["artifact"] |= {"bytes": number, "sha256": "0" * 64}
    (path.parent / "report.json").write_text(json.dumps(record))
    assert (failed(check(str(path))), check(str(path)).exit_code) == (["report beside"], 5)


def test_a_renamed_file_has_its_report_still(
    write_artifact: WriteArtifact, put_report: PutReport
) -> None:
    path = write_artifact()
    put_report(path)
    result = check(str(path.rename(path.with_name("kitchen.onnx"))))
    assert message(result, "report beside") == "size and sha256 as promised"
    assert "the budget of its report" in message(result, "budget")


def test_the_budget_of_the_report(
    write_artifact: WriteArtifact, put_report: PutReport, sample_record: dict[str, Any]
) -> None:
    path = write_artifact()
    put_report(path, budget={**sample_record["budget"], "bytes": 1000})
    result = check(str(path))
    assert (failed(result), result.exit_code) == (["budget"], 3)


# -- targets ------------------------------------------------------------------------------------


def test_over_the_targets_budget(write_artifact: WriteArtifact) -> None:
    path = str(write_artifact(codec="dense", channels=1000, classes=50))
    result = check(path, target=load("nrf51822"))
    assert result.exit_code == 3
    assert "over budget by" in message(result, "budget")


def test_the_verdict_for_a_microcontroller(write_artifact: WriteArtifact) -> None:
    result = check(str(write_artifact()), target=load("nrf52840"))
    assert (result.exit_code, result.scope) == (0, "onnx-size-only, not linked")


def test_what_the_targets_runtime_cannot_read(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any]
) -> None:
    path = str(write_artifact())
    result = check(path, target=load("jetson-nano"))
    assert (failed(result), result.exit_code) == (["target's runtime"], 5)
    assert "opset 18" in message(result, "target's runtime")
    assert "not inlined" in message(result, "target's runtime")
    target = load("raspberry-pi-5").model_copy(update={"codecs": ("cols8",)})
    assert "codec gap8" in message(check(path, target=target), "target's runtime")


def test_a_target_without_fp32_reads_no_dense_weights(
    write_artifact: WriteArtifact, make_artifact: Callable[..., Any]
) -> None:
    target = load("rp2040")
    assert check(str(write_artifact()), target=target).exit_code == 0  # its biases are fp32
    model = make_artifact(form="dense")
    result = check(str(write_artifact(model=model)), target=target)
    assert (failed(result), result.exit_code) == (["target's runtime"], 5)
    assert "fp32 (the dense weights w0, w1)" in message(result, "target's runtime")
    # A weight that is transposed on its way to a MatMul is one too.
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    turn = onnx.helper.make_node("Transpose", [gemm.input[1]], ["turned"], perm=[1, 0])
    product = onnx.helper.make_node("MatMul", [gemm.input[0], "turned"], list(gemm.output))
    nodes = [node for node in model.graph.node if node is not gemm]
    at = list(model.graph.node).index(gemm)
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes[at:]]
    del model.graph.node[at:]
    model.graph.node.extend([turn, product, *rest])
    result = check(str(write_artifact(model=model)), target=target)
    assert "w1" in message(result, "target's runtime")


# -- limits -------------------------------------------------------------------------------------


def test_limits_on_the_file_itself(write_artifact: WriteArtifact) -> None:
    path = write_artifact()
    size = path.stat().st_size
    texts = [f"size<={size}", f"size<{size}", "nonzeros>=1", "sparsity>=0.5"]
    result = check(str(path), limits=[parse_limit(text) for text in texts])
    assert failed(result) == [f"require size<{size}"]
    assert result.exit_code == 3
    assert result.limits[0] == LimitResult("size", "<=", size, size, True)
    assert [limit.met for limit in result.limits] == [True, False, True, True]


def test_latency_is_measured_live(write_artifact: WriteArtifact, put_report: PutReport) -> None:
    path = write_artifact()
    put_report(path)  # says 2.2 ms; the file takes microseconds
    limits = [parse_limit("latency.p50<=1000s"), parse_limit("latency.p50<=0")]
    result = check(str(path), limits=limits, runs=3)
    assert [limit.met for limit in result.limits] == [True, False]
    assert result.limits[0].value != 2.2


def test_what_only_the_report_knows(write_artifact: WriteArtifact, put_report: PutReport) -> None:
    path = write_artifact()
    texts = ("accuracy>=0.9", "accuracy>=0.95", "latency.p50<=1.1x", "parity<=1e-4", "seconds<=99")
    limits = [parse_limit(text) for text in texts]
    without = check(str(path), limits=limits)
    assert (len(without.failures), without.exit_code) == (5, 2)
    assert all("cannot be measured" in step.message for step in without.failures)
    put_report(path)
    result = check(str(path), limits=limits)
    assert (failed(result), result.exit_code) == (["require accuracy>=0.95"], 3)


def test_a_report_without_the_number_cannot_answer(
    write_artifact: WriteArtifact, put_report: PutReport, sample_record: dict[str, Any]
) -> None:
    path = write_artifact()
    put_report(path, accuracy={**sample_record["accuracy"], "final": None})
    result = check(str(path), limits=[parse_limit("accuracy>=0.5")])
    assert result.exit_code == 2
    assert "does not have it" in result.failures[0].message


def test_the_worst_failure_decides(write_artifact: WriteArtifact) -> None:
    limits = [parse_limit("size<=1"), parse_limit("accuracy>=0.5")]
    assert check(str(write_artifact()), limits=limits).exit_code == 2


def test_a_file_whose_output_is_no_tensor_is_not_run(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("SequenceConstruct", ["x"], ["several"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3])],
        [onnx.helper.make_tensor_sequence_value_info("several", onnx.TensorProto.FLOAT, None)],
    )
    opset = onnx.helper.make_opsetid("", 17)
    made = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.save(made, tmp_path / "several.onnx")
    result = check(str(tmp_path / "several.onnx"))
    assert result.exit_code == 0
    assert "not run: output 'several' is a seq" in message(result, "runs in onnxruntime")
