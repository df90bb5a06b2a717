"""Networks that share weights, from the wish to a verified file."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from steps_tools import pack, verify, weights_in
from torch import nn

import hwprune
from hwprune.compiler import _unshared_sparsity
from hwprune.errors import UsageError
from hwprune.export.artifact import csr_arrays, read_artifact
from hwprune.export.pipeline import renewed
from hwprune.export.template import Template
from hwprune.ir import Masks, Model, TensorSpec, ValueType
from hwprune.sparsity import rank_weights
from hwprune.steps.planning import Prepared, left_unshared, plan_shared, prepare
from hwprune.steps.sharing import resolve_sharing, with_shared_weights
from hwprune.steps.weight_quantizer import weight_quantizer
from hwprune.targets import load
from hwprune.verify import check

pytestmark = pytest.mark.slow


class Block(nn.Module):
    """A residual block, with a projection where it changes shape."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.down = None if before == after else nn.Conv2d(before, after, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        z = x if self.down is None else self.down(x)
        return torch.relu(self.bn2(self.conv2(y)) + z)


class Deconvolved(nn.Module):
    """Shared transposed convolutions and linear layers: with BN, and without on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.one = nn.ConvTranspose2d(6, 6, 3, padding=1, bias=False)
        self.two = nn.ConvTranspose2d(6, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6, bias=False)
        self.flat = nn.ModuleList([nn.BatchNorm1d(6), nn.BatchNorm1d(6)])
        self.q, self.k = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norms[0](self.one(self.stem(x))))
        y = torch.nn.functional.relu6(self.norms[1](self.two(y))).flatten(2).transpose(1, 2)
        y = torch.tanh(self.q(y) + self.k(y)).mean(1)
        y = torch.nn.functional.relu6(self.flat[0](self.first(y)))
        return self.head(self.flat[1](self.second(y)))


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Sequential(Block(8, 12, 2), Block(12, 12), Block(12, 12), Block(12, 12)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip


STAGE = ("auto",)
PI = load("raspberry-pi-5")
NAMED = ("one.weight,two.weight", "first.weight,second.weight", "q.weight,k.weight")


@cache
def _prepared(kind: str, target: str) -> Prepared:
    torch.manual_seed(0)
    module = (residual() if kind == "residual" else Deconvolved()).eval()
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.weight.data.uniform_(-1.5, 1.5)
            part.bias.data.normal_(std=0.3)
            part.running_mean.normal_(std=0.3)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    spec = TensorSpec("x", (None, 1, 8, 8), "float32")
    model = Model("net", "net.pt", "state-dict", module, None, (spec,))
    shared, sharing = with_shared_weights(model, STAGE if kind == "residual" else NAMED)
    return dataclasses.replace(
        prepare(shared, load(target)),
        dense_bytes=prepare(model, load(target)).dense_bytes,
        unshared=module,
        saved_weights=sharing.saved,
    )


def now(prepared: Prepared) -> Template:
    return renewed(prepared.template, prepared.model.module)


def unshared(kind: str = "residual", *, trained: bool = True) -> Prepared:
    """Return a network before it shares."""
    shared = _prepared(kind, "raspberry-pi-5")
    model = dataclasses.replace(shared.model, module=shared.unshared, trained=trained)
    return prepare(model, PI)


def sparse(kind: str, target: str, density: float) -> tuple[Prepared, Masks]:
    """Return a network of its own that shares weights, pruned, and its masks."""
    whole = _prepared(kind, target)
    module = copy.deepcopy(whole.model.module)
    prepared = dataclasses.replace(whole, model=dataclasses.replace(whole.model, module=module))
    count = round(density * prepared.template.weights)
    masks = rank_weights(weights_in(prepared), "lamp", count).masks(count)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in masks:
            parameters[name].mul_(torch.from_numpy(masks[name]))
    return prepared, masks


def packed_and_checked(
    prepared: Prepared,
    masks: Masks,
    kind: ValueType,
    path: Path,
    target: str = "raspberry-pi-5",
) -> onnx.ModelProto:
    """Write a file, check that it is exact and right at both speeds, and return it."""
    cost = now(prepared).cost(kind)
    size = cost.encoding(masks.positions(), kind).file_bytes
    nothing = {name: np.zeros(masks[name].shape, np.float32) for name in masks}
    packed = pack(prepared, masks, kind, nothing, size)
    assert len(packed.written.data) <= size
    if not packed.useless and not packed.dropped and not packed.removed:
        assert len(packed.written.data) == size
    path.write_bytes(packed.written.data)
    assert verify(path, packed, prepared, size, target).problems == ()
    return onnx.load(str(path))


@pytest.mark.parametrize("value_type", ["fp32", "int8", "codebook256"])
def test_a_shared_tensor_is_stored_once_and_computes_the_same(
    value_type: ValueType, tmp_path: Path
) -> None:
    prepared, masks = sparse("residual", "raspberry-pi-5", 0.3)
    path = tmp_path / "model.onnx"
    model = packed_and_checked(prepared, masks, value_type, path)
    found = read_artifact(str(path))
    layers = {layer.name: layer for layer in found.layers}
    assert layers["3.1.conv1.weight"].uses == layers["3.1.conv2.weight"].uses == 3
    assert layers["3.0.conv2.weight"].uses == 1
    assert len(layers) == len(masks) == 7
    nodes = [node for node in model.graph.node if "3.1.conv1.weight" in node.name]
    assert len(nodes) == 3
    assert len({node.input[1] for node in nodes}) == len({node.input[2] for node in nodes}) == 1
    values = [t for t in model.graph.initializer if t.name == nodes[0].input[1]]
    assert len(values) == 1
    # The parts add up, with nothing of the shared layers among the dense tensors for int8.
    if value_type in ("int8", "int4"):
        assert len({node.input[3] for node in nodes}) == 3
        assert not {node.op_type for node in model.graph.node} & {"Mul", "Add"}
        assert found.dense_tensors == () or all(size < 60 for *_, size in found.dense_tensors)
    matrix = csr_arrays(str(path))["3.1.conv1.weight"]
    assert matrix.nnz == int(masks["3.1.conv1.weight"].sum())


@pytest.mark.parametrize(("target", "value_type"), [("jetson-nano", "fp16"), ("nrf52840", "int8")])
def test_inlined_files_and_firmware_share_too(
    target: str, value_type: ValueType, tmp_path: Path
) -> None:
    prepared, masks = sparse("residual", target, 0.3)
    packed_and_checked(prepared, masks, value_type, tmp_path / "model.onnx", target)
    layers = read_artifact(str(tmp_path / "model.onnx")).layers
    assert sorted(layer.uses for layer in layers) == [1] * 5 + [3, 3]
    assert {layer.name for layer in layers} == set(masks)


@pytest.mark.parametrize("value_type", ["fp32", "int8"])
def test_transposed_and_linear_layers_share_by_name(value_type: ValueType, tmp_path: Path) -> None:
    prepared, masks = sparse("named", "raspberry-pi-5", 0.5)
    assert set(masks) == {"stem.weight", "one.weight", "first.weight", "q.weight", "head.weight"}
    packed_and_checked(prepared, masks, value_type, tmp_path / "model.onnx")


def test_one_weight_costs_less_than_two() -> None:
    """What a further use of a tensor costs is a node, a scale and a bias."""
    prepared, _ = sparse("residual", "raspberry-pi-5", 1.0)
    plain = unshared()
    sizes = []
    for each in (plain, prepared):
        count = {t.name: np.arange(t.weights // 5, dtype=np.int64) for t in each.template.prunable}
        sizes.append(now(each).cost("int8").encoding(count, "int8").file_bytes)
    # Four tensors fewer, of a byte a value and half a byte a gap; beside these, names and headers.
    arrays = 4 * (12 * 12 * 9 // 5 + 12 * 12 * 9 // 10)
    assert arrays < sizes[0] - sizes[1] < arrays + 4 * 60


def test_channels_that_a_gain_switches_off(tmp_path: Path) -> None:
    """A scale of zero, as new residual blocks have it, in one use and in all of them."""
    prepared, masks = sparse("residual", "raspberry-pi-5", 0.5)
    stage = prepared.model.module[3]
    stage[1].bn1.weight.data.zero_()
    for block in stage[1:]:
        block.bn2.weight.data[:4] = 0
    for value_type in ("fp32", "int8"):
        own = dataclasses.replace(
            prepared,
            model=dataclasses.replace(prepared.model, module=copy.deepcopy(prepared.model.module)),
        )
        packed_and_checked(own, masks, value_type, tmp_path / "model.onnx")  # type: ignore[arg-type]


def test_dead_channels_of_shared_tensors_go_only_where_all_uses_allow(tmp_path: Path) -> None:
    prepared, masks = sparse("residual", "raspberry-pi-5", 0.5)
    masks["3.1.conv1.weight"][:5] = False
    masks["3.1.conv2.weight"][:, :5] = False
    parameters = dict(prepared.model.module.named_parameters())
    with torch.no_grad():
        for name in masks:
            parameters[name].mul_(torch.from_numpy(masks[name]))
        for block in prepared.model.module[3][1:]:
            block.bn1.bias[:5] = -1.0  # the channel holds max(0, less than nothing)
            block.bn1.running_mean[:5] = 0.0
    packed_and_checked(prepared, masks, "int8", tmp_path / "model.onnx")
    shapes = {
        layer.name: layer.shape for layer in read_artifact(str(tmp_path / "model.onnx")).layers
    }
    assert shapes["3.1.conv1.weight"] == (7, 12, 3, 3)
    assert shapes["3.1.conv2.weight"] == (12, 7, 3, 3)


def test_what_training_sees_is_what_the_file_stores() -> None:
    prepared, masks = sparse("residual", "raspberry-pi-5", 0.3)
    store = weight_quantizer(prepared.template, prepared.model.module, "int8")
    assert store is not None
    parameters = dict(prepared.model.module.named_parameters())
    weights = {name: parameters[name].detach() for name in masks}
    seen = store(weights)["3.1.conv1.weight"]
    with torch.no_grad():
        parameters["3.1.conv1.weight"].copy_(seen)
    written = now(prepared).write_sparse(masks, "int8")
    packed = written.packed["3.1.conv1.weight"]
    levels = seen / torch.from_numpy(packed.arrays["scale"].astype(np.float32))
    alive = masks["3.1.conv1.weight"]
    assert np.array_equal(levels.numpy()[alive].round(), packed.arrays["values"])


def test_the_teacher_is_the_network_before() -> None:
    prepared = _prepared("residual", "raspberry-pi-5")
    teacher = prepared.teacher
    assert teacher is prepared.unshared
    assert teacher[3][2].conv1.weight.shape == (12, 12, 3, 3)
    assert "3.2.conv1.weight" in dict(teacher.named_parameters())
    assert prepared.saved_weights == 4 * 12 * 12 * 9
    assert prepared.dense_bytes > prepared.template.dense_bytes() + 4 * prepared.saved_weights * 0.9
    masks = Masks({name: np.ones(w.shape, np.bool_) for name, w in weights_in(prepared).items()})
    few = prepared.template.weights
    every = few + prepared.saved_weights
    assert f"{few:,} of the {every:,} weights" in _unshared_sparsity(prepared, masks)[0]
    untrained = dataclasses.replace(
        prepared, model=dataclasses.replace(prepared.model, trained=False)
    )
    assert untrained.teacher is None


def test_what_is_to_share() -> None:
    assert resolve_sharing((), "cubic", trains=True) == ()
    assert resolve_sharing((), "east", trains=True) == ("auto",)
    assert resolve_sharing((), "east", trains=False) == ()
    assert resolve_sharing(("off",), "east", trains=True) == ()
    assert resolve_sharing(("a,b", "c,d"), "cubic", trains=True) == ("a,b", "c,d")
    with pytest.raises(UsageError, match="auto and other values"):
        resolve_sharing(("auto", "a,b"), "cubic", trains=True)
    with pytest.raises(UsageError, match="have to be trained"):
        resolve_sharing(("auto",), "cubic", trains=False)


def test_stages_that_are_not_there() -> None:
    plain = unshared("named")
    same, _, notes = plan_shared(plain, PI, 4500, ("int8",), ("auto",), asked=True)
    assert same is plain
    assert "no weights are shared" in notes[0]
    with pytest.raises(UsageError, match="no stage has three blocks alike"):
        with_shared_weights(plain.model, ("stages",))
    with pytest.raises(UsageError, match=r"'gone.weight' is not a parameter"):
        with_shared_weights(plain.model, ("one.weight,gone.weight",))


def test_a_whole_compilation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = residual()
    artifact = hwprune.compile(
        module, target="raspberry-pi-5", data="digits", budget=6000, values="int8", epochs=2,
        strategy="cubic", share_weights="auto", output=tmp_path, device="cpu", max_drop="off",
    )  # fmt: skip
    assert artifact.verdict.exit_code == 0
    assert artifact.bytes <= 6000
    assert artifact.report["parity"]["relative_error"] < 1e-4
    notes = " ".join(artifact.report["notes"])
    assert "6 layers share 2 tensors, each layer with a learnt scalar: 5,184 weights fewer" in notes
    assert "weights before sharing are kept" in notes
    found = read_artifact(artifact.path)
    assert {layer.name: layer.uses for layer in found.layers}["3.1.conv2.weight"] == 3
    state = load_file(tmp_path / "checkpoint" / "weights.safetensors")
    assert "3.2.conv1.parametrizations.weight.0.scale" in state
    assert "3.2.conv1.weight" not in state
    assert isinstance(module[3][2].conv1.weight, nn.Parameter)  # the user's own is as it was
    assert check(artifact.path).exit_code == 0


# -- where everything fits ------------------------------------------------------------------------


def test_plans_in_which_everything_fits_are_left_out_before_one_is_chosen() -> None:
    whole = _prepared("residual", "raspberry-pi-5").template
    small, large = (whole.cost(kind) for kind in ("int8", "fp32"))
    every = {t.name: np.arange(t.weights, dtype=np.int64) for t in whole.prunable}
    least = small.encoding(every, "int8").file_bytes
    most = large.encoding(every, "fp32").file_bytes
    between = (least + most) // 2
    plain = unshared()
    shared, plans, _ = plan_shared(plain, PI, between, ("fp32", "int8"), STAGE, asked=True)
    assert shared.dense_bytes == plain.dense_bytes > shared.template.dense_bytes()
    assert shared.teacher is plain.model.module
    assert set(plans) == {"fp32"}  # shared, all of it fits as int8
    prepared, plans, notes = plan_shared(plain, PI, between, ("int8",), STAGE, asked=False)
    assert prepared.saved_weights == 0
    assert set(plans) == {"int8"}
    assert notes == ("weights are not shared: all of them would fit, untrained",)
    with pytest.raises(UsageError, match="nothing would be pruned"):
        plan_shared(plain, PI, between, ("int8",), STAGE, asked=True)
    with pytest.raises(UsageError, match="nothing would be pruned"):
        plan_shared(unshared(trained=False), PI, 10 * most, ("fp32", "int8"), (), asked=False)


def test_names_are_looked_at_where_the_dense_network_fits() -> None:
    plain = unshared().model
    assert left_unshared(plain, STAGE) == ("weights are not shared: the dense network fits",)
    assert left_unshared(plain, ()) == ()
    with pytest.raises(UsageError, match=r"'gone.weight' is not a parameter"):
        left_unshared(plain, ("3.1.conv1.weight,gone.weight",))
