"""passes, prunable, names: what is folded, what is pruned and why not, what things are called."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from export_cases import Case, case_of, random_masks, randomise, relative_error, run
from onnx import TensorProto, helper
from torch import nn

from hwprune.errors import ExportError
from hwprune.export.graph import Graph, input_names
from hwprune.export.passes import (
    base36,
    drop_no_ops,
    fold_batchnorm,
    share_constants,
    strip_defaults,
)
from hwprune.export.trace import first_names
from hwprune.ir import TensorSpec, ValueType


def test_batchnorm_is_folded_where_that_is_right(zoo: Case) -> None:
    template, skipped = zoo.both()
    norms = [node for node in template.graph.nodes if node.op_type == "BatchNormalization"]
    assert [input_names(node)[1] for node in norms] == ["bn_after_relu.weight"]
    assert {fold.weight for fold in template.graph.folds} == {
        "conv.weight",
        "up.weight",
        "side.weight",
    }
    reasons = {tensor.name: tensor.reason for tensor in skipped}
    assert reasons["bn.weight"] == "folded into the layer before it"
    assert "fewer than two axes" in reasons["bn_after_relu.weight"]


def test_what_is_prunable_and_what_is_not(zoo: Case) -> None:
    template, skipped = zoo.both()
    found = {t.name: (t.shape, t.channel_axis, t.operators) for t in template.prunable}
    assert found == {
        "conv.weight": ((12, 3, 3, 3), 0, ("Conv",)),
        "depthwise.weight": ((12, 1, 3, 3), 0, ("Conv",)),
        "grouped.weight": ((8, 3, 3, 3), 0, ("Conv",)),
        "up.weight": ((8, 6, 2, 2), 1, ("ConvTranspose",)),
        "tokens.weight": ((20, 6), 0, ("MatMul",)),
        "mix.weight": ((20, 20), 0, ("MatMul", "MatMul")),
        "functional": ((20, 9), 1, ("MatMul",)),
        "side.weight": ((9, 5), 0, ("Gemm",)),
        "head.weight": ((4, 9), 0, ("Gemm",)),
    }
    assert "tied.weight" not in {tensor.name for tensor in skipped}
    for tensor in skipped:
        assert tensor.reason
        assert tensor.bytes >= 0
    assert first_names(zoo.model.module)["tied.weight"] == "mix.weight"


class Norms(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, 1).abs()


def test_an_empty_selection_is_an_error() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4), Norms()).eval()
    case = case_of(module, (TensorSpec("x", (None, 4), "float32"),))
    with pytest.raises(ExportError, match="no parameter of this network can be pruned") as caught:
        case.template()
    assert "0.weight" in caught.value.message
    assert "Conv" in (caught.value.hint or "")


class Gathered(nn.Module):
    """A weight that is looked up, one that is computed with, one that is a layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.twisted = nn.Parameter(torch.randn(6, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embedding(x).mean(1)
        return self.head(y + (self.twisted * 2.0).sum(0))


def test_what_stays_dense_is_listed_with_bytes_and_reason() -> None:
    case = case_of(Gathered().eval(), (TensorSpec("x", (None, 5), "int64"),))
    template, skipped = case.both()
    assert {tensor.name for tensor in template.prunable} == {"embedding.weight", "head.weight"}
    listed = {tensor.name: tensor for tensor in skipped}
    assert listed["twisted"].bytes == 6 * 6 * 4
    assert "Mul" in listed["twisted"].reason
    feeds = {"x": np.array([[1, 2, 3, 4, 5], [0, 6, 6, 1, 2]])}
    written = template.write_sparse(random_masks(template, 0.5), "int8")
    expected = case.run_torch(feeds, case.decoded(template, written))
    assert relative_error(run(written.data, feeds), expected) <= 1e-5


def test_folding_survives_a_dead_batchnorm_channel() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    randomise(net, 0)
    net[1].weight.data[1] = 0
    case = case_of(net, (TensorSpec("x", (None, 2, 4, 4), "float32"),))
    template = case.template()
    written = template.write_sparse(random_masks(template, 0.6), "int8")
    feeds = case.feeds(3)
    expected = case.run_torch(feeds, case.decoded(template, written))
    assert np.all(np.isfinite(expected))
    assert relative_error(run(written.data, feeds), expected) <= 1e-5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("value_type", ["fp16", "int8"])
def test_folding_a_batchnorm_without_parameters_is_undone_in_its_mean(
    bias: bool, value_type: ValueType
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16, bias=bias), nn.BatchNorm1d(16, affine=False), nn.Tanh())
    net.append(nn.Linear(16, 3))
    assert isinstance(net[1].running_mean, torch.Tensor)
    net[1].running_mean.normal_()
    case = case_of(net.eval(), (TensorSpec("x", (None, 8), "float32"),))
    template = case.template()
    assert template.graph.folds
    written = template.write_sparse(random_masks(template, 0.6), value_type)
    decoded = case.decoded(template, written)
    assert "1.running_mean" in decoded
    feeds = case.feeds(3)
    assert relative_error(run(written.data, feeds), case.run_torch(feeds, decoded)) <= 1e-6


def test_a_weight_or_bias_that_two_layers_read_is_not_folded_into() -> None:
    norm = "n = BatchNormalization (h, g, b, m, v)"
    for first, second in (("(x, w, c)", "(n, w)"), ("(x, w, c)", "(n, u, c)")):
        text = f"h = Conv {first}  {norm}  y = Conv {second}"
        parsed = onnx.parser.parse_graph(f"g (float[N,3,4,4] x) => (float[N,3,4,4] y) {{ {text} }}")
        ones = {name: np.ones(3, np.float32) for name in "cgbmv"}
        weights = {name: np.ones((3, 3, 1, 1), np.float32) for name in "wu"}
        graph = Graph.of(parsed.node, parsed.input, parsed.output, ones | weights, 18)
        fold_batchnorm(graph)
        assert not graph.folds
        assert len(graph.nodes) == 3


def test_equal_biases_of_two_layers_stay_apart() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).eval()
    nn.init.constant_(net[0].bias, 0.1)
    nn.init.constant_(net[2].bias, 0.1)
    case = case_of(net, (TensorSpec("x", (None, 5), "float32"),))
    template = case.template()
    written = template.write_sparse(random_masks(template, 0.8), "int8")
    assert set(written.biases) == {"0.bias", "2.bias"}
    feeds = case.feeds(3)
    expected = case.run_torch(feeds, case.decoded(template, written))
    assert relative_error(run(written.data, feeds), expected) <= 1e-6


@pytest.mark.parametrize("name", ["0v", "C0", "_0", "0_0_d"])
def test_an_input_may_be_called_like_anything_of_ours(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 2, 2))
    net.append(nn.BatchNorm1d(2)).append(nn.ReLU()).append(nn.BatchNorm1d(2))
    case = case_of(randomise(net, 0), (TensorSpec(name, (None, 2, 7), "float32"),))
    for inline in (False, True):
        template = case.template(inline=inline)
        written = template.write_sparse(random_masks(template, 0.5), "int8")
        onnx.checker.check_model(written.data, full_check=True)
        feeds = case.feeds(3)
        expected = case.run_torch(feeds, case.decoded(template, written))
        assert relative_error(run(written.data, feeds), expected) <= 1e-5


def test_many_layers_and_many_dense_tensors_have_names_of_their_own() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(15):
        layers += [nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Tanh()]
    case = case_of(randomise(nn.Sequential(*layers), 0), (TensorSpec("x", (None, 4), "float32"),))
    template = case.template()
    written = template.write_sparse(random_masks(template, 0.9), "int8")
    names = [entry.name for entry in onnx.load_from_string(written.data).graph.initializer]
    assert len(names) == len(set(names)) > 15 * 4
    feeds = case.feeds(3)
    expected = case.run_torch(feeds, case.decoded(template, written))
    assert relative_error(run(written.data, feeds), expected) <= 1e-5


def test_base36() -> None:
    assert [base36(number) for number in (0, 9, 10, 35, 36, 1295, 1296)] == [
        "0", "9", "a", "z", "10", "zz", "100",
    ]  # fmt: skip


def _two_nodes(first: onnx.NodeProto, second: onnx.NodeProto) -> Graph:
    rng = np.random.default_rng(0)
    vectors = {name: rng.uniform(0.5, 2, 3).astype(np.float32) for name in "gbmv"}
    return Graph.of(
        (first, second),
        (helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5]),),
        (helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3]),),
        {"w": rng.random((3, 5)).astype(np.float32), "c": vectors["b"].copy(), **vectors},
        18,
    )


@pytest.mark.parametrize(
    ("gemm", "norm"),
    [({"alpha": 2.0}, {}), ({"beta": 0.5}, {}), ({"transA": 1}, {}), ({}, {"training_mode": 1})],
)
def test_what_may_not_be_folded_stays(gemm: dict[str, float], norm: dict[str, int]) -> None:
    first = helper.make_node("Gemm", ["x", "w", "c"], ["y"], transB=1, **gemm)
    second = helper.make_node("BatchNormalization", ["y", "g", "b", "m", "v"], ["z"], **norm)
    graph = _two_nodes(first, second)
    fold_batchnorm(graph)
    assert [node.op_type for node in graph.nodes] == ["Gemm", "BatchNormalization"]
    strip_defaults(graph)
    assert set(graph.nodes[1].attributes) >= set(norm)
    plain = _two_nodes(_plain(first), _plain(second))
    fold_batchnorm(plain)
    assert len(plain.nodes) == 1


def _plain(node: onnx.NodeProto) -> onnx.NodeProto:
    plain = copy.deepcopy(node)
    kept = [entry for entry in node.attribute if entry.name == "transB"]
    del plain.attribute[:]
    plain.attribute.extend(kept)
    return plain


def test_identity_and_dropout_go_and_equal_constants_are_stored_once() -> None:
    names = [("Identity", "x", "a"), ("Dropout", "a", "b"), ("Add", "b", "c"), ("Mul", "c", "z")]
    nodes = [
        helper.make_node(operator, [source, *(["k", "l"][i - 2 : i - 1] if i > 1 else [])], [made])
        for i, (operator, source, made) in enumerate(names)
    ]
    one = np.float32([1.0])
    graph = Graph.of(
        nodes,
        (helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"]),),
        (helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N"]),),
        {"k": one, "l": one.copy(), "unread": one},
        18,
    )
    whole = graph.copy()
    drop_no_ops(graph)
    assert [input_names(node) for node in graph.nodes] == [["x", "k"], ["c", "l"]]
    assert len(whole.nodes) == 4  # what was copied is left as it was
    share_constants(graph, ("l",))
    graph.drop_unread()
    assert set(graph.tensors) == {"k", "l"}
    share_constants(graph, ())
    graph.drop_unread()
    assert set(graph.tensors) == {"k"}
