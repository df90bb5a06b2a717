"""Weights that no packed layer reads: decoded by a node of their own, for whatever reads them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
from export_cases import Case, case_of, random_masks, relative_error, run
from torch import nn
from torch.nn import functional as F

from hwprune.export.artifact import read_artifact
from hwprune.export.operators import altered_functions
from hwprune.ir import Masks, TensorSpec, ValueType
from hwprune.kernels import session
from hwprune.verify.integrity import altered_bodies


class Recurrent(nn.Module):
    """Two layers in two directions and a head."""

    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(6, 8, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Tied(nn.Module):
    """A table that is looked up and multiplied by, and places that are only added."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 12)
        self.places = nn.Embedding(4, 12)
        self.out = nn.Linear(12, 50, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        where = self.places(torch.arange(4))
        return self.out(torch.relu(self.table(x) + where))


class Stacks(nn.Module):
    """A stack of matrices for each way of multiplying by one."""

    def __init__(self) -> None:
        super().__init__()
        self.einsum = nn.Parameter(torch.randn(4, 6, 8) / 3)
        self.product = nn.Parameter(torch.randn(4, 8, 6) / 3)
        self.bilinear = nn.Bilinear(6, 6, 6)
        self.gate = nn.Linear(6, 4)
        self.experts = nn.Parameter(torch.randn(4, 6, 5) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.matmul(torch.einsum("bi,eij->ebj", x, self.einsum), self.product).mean(0)
        y = self.bilinear(y, x)
        chosen = self.experts[self.gate(y).argmax(-1)]
        return torch.bmm(y[:, None], chosen)[:, 0]


STEPS = (TensorSpec("x", (None, 5, 6), "float32"),)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[TensorSpec, ...], set[str]]] = {
    "lstm": (lambda: Recurrent(nn.LSTM), STEPS, {f"rnn.weight_{part}_l{layer}{way}"
             for part in ("ih", "hh") for layer in (0, 1) for way in ("", "_reverse")}),
    "gru": (lambda: Recurrent(nn.GRU), STEPS, {f"rnn.weight_{part}_l{layer}{way}"
            for part in ("ih", "hh") for layer in (0, 1) for way in ("", "_reverse")}),
    "tied": (Tied, (TensorSpec("x", (None, 4), "int64"),), {"table.weight"}),
    "stacks": (Stacks, (TensorSpec("x", (None, 6), "float32"),),
               {"einsum", "product", "bilinear.weight", "experts"}),
}  # fmt: skip


@cache
def network(name: str) -> Case:
    torch.manual_seed(0)
    module, inputs, _ = NETWORKS[name]
    return case_of(module().eval(), inputs, name)


@pytest.mark.parametrize("value_type", ["fp32", "int8", "codebook16"])
@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_what_torch_computes_and_is_read_back(
    name: str, inline: bool, value_type: ValueType, tmp_path: Path
) -> None:
    case = network(name)
    template = case.template(15, inline=inline, codecs=("gap8",))
    assert NETWORKS[name][2] <= set(template.names)
    written = template.write_sparse(random_masks(template, 0.3), value_type)
    integers = case.model.inputs[0].dtype == "int64"
    feeds = case.feeds(3)
    feeds = {"x": np.abs(feeds["x"]) * 12 % 50} if integers else feeds
    expected = case.run_torch(feeds, case.decoded(template, written))
    assert relative_error(run(written.data, feeds), expected) < 1e-5
    found = session(written.data, threads=1).run(None, feeds)[0]
    assert relative_error(found, expected) < 1e-5

    file = tmp_path / "model.onnx"
    file.write_bytes(written.data)
    layers = {layer.name: layer for layer in read_artifact(str(file)).layers}
    assert set(layers) == set(template.names)
    decoded = {key for key, layer in layers.items() if "Weight" in layer.operator}
    assert decoded == NETWORKS[name][2]
    model = onnx.load_from_string(written.data)
    assert not altered_bodies(model)
    if not inline:
        onnx.save(onnx.inliner.inline_local_functions(model), file)
        assert len(read_artifact(str(file)).layers) == len(layers)


def test_an_altered_body_of_a_decoded_weight_is_noticed() -> None:
    template = network("lstm").template(15, inline=True, codecs=("gap8",))
    model = onnx.load_from_string(template.write_sparse(random_masks(template, 0.3), "int8").data)
    last = next(node for node in model.graph.node if "|CsrWeightGap8I8|" in node.name)
    last.op_type = "Neg"
    assert altered_bodies(model) == ["rnn.weight_ih_l0"]
    plain = network("lstm").template(15, codecs=("gap8",))
    model = onnx.load_from_string(plain.write_sparse(random_masks(plain, 0.3), "int8").data)
    function = next(entry for entry in model.functions if entry.name == "CsrWeightGap8I8")
    function.node[-1].op_type = "Neg"
    assert altered_functions(model) == ["CsrWeightGap8I8"]


def test_a_tied_table_is_stored_once() -> None:
    template = network("tied").template(15, codecs=("gap8",))
    written = template.write_sparse(random_masks(template, 0.3), "int8")
    assert len(written.packed) == 1
    model = onnx.load_from_string(written.data)
    readers = [node.op_type for node in model.graph.node if node.domain]
    assert readers == ["CsrWeightGap8I8", "CsrLinearGap8I8"]
    stored = {name for node in model.graph.node if node.domain for name in node.input[-3:]}
    assert len(stored & {tensor.name for tensor in model.graph.initializer}) == 3


def test_a_lookup_at_fixed_places_stays_dense() -> None:
    _, skipped = network("tied").both(15)
    reasons = {tensor.name: tensor.reason for tensor in skipped}
    assert reasons["places.weight"] == "read by Gather, not as the weight of a layer"


def test_a_table_has_a_scale_per_column_and_gates_one_per_row() -> None:
    axes = network("lstm").template(15).channel_axes
    assert axes["rnn.weight_ih_l0"] == 0
    assert network("stacks").template(15).channel_axes["experts"] == 2


def test_nothing_kept_of_a_weight_is_a_weight_of_zeros() -> None:
    case = network("lstm")
    template = case.template(15, codecs=("gap8",))
    masks = {n: np.zeros_like(m) for n, m in random_masks(template, 0.3).by_name.items()}
    written = template.write_sparse(Masks(masks), "int8")
    feeds = case.feeds(2)
    expected = case.run_torch(feeds, case.decoded(template, written))
    assert relative_error(run(written.data, feeds), expected) < 1e-5


class Placed(nn.Module):
    """Places that are added, a table of the network's own, a filter that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 40, 32))
        self.few = nn.Parameter(torch.randn(1, 1, 32))
        self.register_buffer("window", torch.randn(40, 32))
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(x * self.window + self.places) + self.few).mean(1)


@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
def test_what_stays_dense_is_int8_beside_integer_values(inline: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = case_of(Placed().eval(), (TensorSpec("x", (None, 40, 32), "float32"),))
    template = case.template(15, inline=inline)
    assert template.names == ("head.weight",)
    masks, feeds, types = random_masks(template, 0.5), case.feeds(3), {}
    for value_type in ("fp32", "fp16", "int8", "int4"):
        written = template.write_sparse(masks, value_type)  # and its size is the one predicted
        values = case.decoded(template, written)
        assert relative_error(run(written.data, feeds), case.run_torch(feeds, values)) < 1e-5
        (tmp_path / "m.onnx").write_bytes(written.data)
        shapes = {
            shape: size for _, shape, size in read_artifact(str(tmp_path / "m.onnx")).dense_tensors
        }
        types[value_type] = shapes[1, 40, 32]
        assert shapes[40, 32] > 4 * 40 * 32  # the filter
        assert shapes[1, 1, 32] > 4 * 32
        assert ("places" in values) == (types[value_type] < 2 * 40 * 32)
    assert types["fp32"] == types["fp16"] > 4 * 40 * 32
    assert types["int8"] == types["int4"] < 1.05 * 40 * 32
    assert np.abs(values["places"] - case.model.module.places.detach().numpy()).max() < 0.02


class Lookups(nn.Module):
    """A table that is looked up twice, and one that is multiplied by too."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.letters = nn.Embedding(40, 12), nn.Embedding(50, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.words(x % 40) * self.words((x + 7) % 40).relu() + self.letters(x)
        return y, F.linear(self.letters(x.flip(1)), self.letters.weight)


@cache
def lookups() -> Case:
    torch.manual_seed(0)
    return case_of(Lookups().eval(), (TensorSpec("x", (None, 4), "int64"),), "lookups")


@pytest.mark.parametrize("value_type", ["fp32", "fp16", "int8", "codebook256"])
@pytest.mark.parametrize(("opset", "inline"), [(18, False), (13, True)])
def test_a_table_that_is_stored_dense_decodes_the_rows_that_are_looked_up(
    opset: int, inline: bool, value_type: ValueType, tmp_path: Path
) -> None:
    """Scales are one a column (words) or one a row (letters)."""
    case = lookups()
    template = case.template(opset, inline=inline, codecs=("dense", "gap8"))
    assert {"words.weight", "letters.weight"} == set(template.names)
    masks = random_masks(template, 0.98)
    written = template.write_sparse(masks, value_type)  # and its size is the one predicted
    assert {packed.codec for packed in written.packed.values()} == {"dense"}
    x = np.random.default_rng(0).integers(0, 50, (3, 4))
    values = case.decoded(template, written)
    with torch.no_grad():
        module = copy.deepcopy(case.model.module)
        for name, value in values.items():
            module.get_parameter(name).copy_(torch.from_numpy(value))
        expected = [found.numpy() for found in module(torch.from_numpy(x))]
    ours = session(written.data, threads=1).run(None, {"x": x})
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    stock = onnxruntime.InferenceSession(written.data, options).run(None, {"x": x})
    for wanted, one, other in zip(expected, ours, stock, strict=True):
        assert relative_error(one, wanted) < 1e-5
        assert relative_error(other, wanted) < 1e-5
    # Nothing decodes a whole table at load: in memory it is as it is in the file.
    held = onnx.load(options.optimized_model_filepath).graph.initializer
    floats = {tuple(t.dims) for t in held if t.data_type == onnx.TensorProto.FLOAT}
    assert value_type == "fp32" or (40, 12) not in floats

    (tmp_path / "m.onnx").write_bytes(written.data)
    layers = {layer.name: layer for layer in read_artifact(str(tmp_path / "m.onnx")).layers}
    assert set(layers) == set(template.names)
    assert layers["words.weight"].operator.startswith("DenseGather")
    assert (layers["words.weight"].uses, layers["letters.weight"].uses) == (2, 3)
    model = onnx.load_from_string(written.data)
    assert not altered_bodies(model)
    if not inline and value_type != "fp32":  # whose nodes are anybody's
        onnx.save(onnx.inliner.inline_local_functions(model), tmp_path / "m.onnx")
        assert len(read_artifact(str(tmp_path / "m.onnx")).layers) == len(layers)
