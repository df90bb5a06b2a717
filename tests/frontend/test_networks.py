"""Networks that run, and that no tool can take as they are: made plain, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hwprune
from hwprune.errors import ExportError, ModelError
from hwprune.export import trace as trace_room
from hwprune.export.trace import trace
from hwprune.frontend.inputs import describe, parse_input
from hwprune.frontend.prepare import prepare
from hwprune.ir import Model, TensorSpec


def spec(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, (None, *shape), dtype)


def net(forward: Callable[..., Any]) -> nn.Module:
    """A linear layer under a forward method."""
    kind: Any = type("Net", (nn.Module,), {"forward": forward})
    module: nn.Module = kind().eval()
    module.fc = nn.Linear(4, 4)
    return module


def test_views_get_memory_of_their_own_and_ties_stay() -> None:
    module = net(lambda self, x: self.fc(x * self.window))
    module.register_buffer("window", torch.ones(9)[:4])
    module.fc.weight = nn.Parameter(torch.randn(8, 4)[::2])
    module.again = module.fc
    before = module.fc.weight.detach().clone()
    prepare(module, (spec("x", 4),))
    for tensor in (module.window, module.fc.weight):
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()
        assert tensor.is_contiguous()
    assert module.again.weight is module.fc.weight
    assert torch.equal(module.fc.weight, before)


# -- random in eval mode --------------------------------------------------------------------------


def drops(self: Any, x: Tensor) -> Any:
    return F.dropout(self.fc(x), 0.5)


def samples(self: Any, x: Tensor) -> Any:
    return self.fc(x), self.fc(x) + torch.randn_like(x)


def draws_in_python(self: Any, x: Tensor) -> Any:
    self.fc(x)
    return torch.ones(2, 4) * DRAWS.pop()


DRAWS = [1.0, 2.0]


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (drops, r"by bernoulli_? \(test_networks\.py, line \d+: return F\.dropout"),
        (samples, r"by randn_like \(test_networks\.py, line \d+: return self\.fc\(x\), "),
        (draws_in_python, "two runs on the same input differ$"),
    ],
)
def test_a_network_that_draws_is_refused_with_the_place(forward: Any, said: str) -> None:
    with pytest.raises(ModelError, match="random in eval mode.*" + said):
        prepare(net(forward), (spec("x", 4),))


def counts(self: Any, x: Tensor) -> Any:
    self.count = getattr(self, "count", 0) + 1
    return self.fc(x) * self.count


def draws_for_nothing(self: Any, x: Tensor) -> Any:
    return self.fc(x) + 0 * torch.rand(1)


@pytest.mark.parametrize("forward", [counts, draws_for_nothing])
def test_a_network_that_remembers_or_draws_for_nothing_is_not_random(forward: Any) -> None:
    module = net(forward)
    prepare(module, (spec("x", 4),))
    assert not hasattr(module, "count")


def test_a_network_that_leaves_by_sys_exit_is_refused() -> None:
    def leaves(self: Any, x: Tensor) -> Any:
        raise SystemExit(0)

    with pytest.raises(ModelError, match=r"does not take x.*sys\.exit\(0\)"):
        prepare(net(leaves), (spec("x", 4),))


def test_weights_whose_squares_are_infinite_are_named() -> None:
    module = net(lambda self, x: self.fc(x) * (self.mask > 0))
    module.register_buffer("mask", torch.full((4,), -3e38))
    prepare(module, (spec("x", 4),))
    nn.init.constant_(module.fc.weight, -1e38)
    with pytest.raises(ModelError, match=r"fc\.weight holds a weight of 1\.0e\+38"):
        prepare(module, (spec("x", 4),))


def test_outputs_that_are_not_finite_are_no_random_ones() -> None:
    prepare(net(lambda self, x: torch.log(self.fc(x) - 100)), (spec("x", 4),))


# -- what goes in and what comes out --------------------------------------------------------------


@dataclass
class Outputs:
    logits: Tensor
    loss: Tensor | None
    hidden: tuple[Tensor, ...]


OUTPUTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "dictionary": lambda self, x: {"logits": self.fc(x), "hidden": x},
    "dataclass": lambda self, x: Outputs(self.fc(x), None, (x,)),
    "nested": lambda self, x: [self.fc(x), {"a": [x, None, "text"]}],
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_any_form_are_tensors_one_after_the_other(kind: str) -> None:
    module, x = net(OUTPUTS[kind]), torch.randn(2, 4)
    notes = prepare(module, (spec("x", 4),))
    logits, hidden = module(x)
    assert torch.equal(logits, module.fc(x))
    assert torch.equal(hidden, x)
    assert any("returns its tensors in order" in note for note in notes)


def test_what_needs_no_adapting_stays_as_it_is() -> None:
    module = net(lambda self, x: (self.fc(x), x))
    assert prepare(module, (spec("x", 4),)) == ()
    assert "forward" not in vars(module)


def test_a_network_without_tensors_is_refused() -> None:
    with pytest.raises(ModelError, match="returns dict, expected a tensor"):
        prepare(net(lambda self, x: {"size": 3}), (spec("x", 4),))


def words(self: Any, ids: Tensor, mask: Tensor | None = None, kinds: Tensor | None = None) -> Any:
    assert mask is None or bool(mask.any(1).all()), "a row without a token"
    return self.fc(torch.ones(4) * (ids + kinds).sum(1, keepdim=True))


@pytest.mark.parametrize("given", [("ids", "kinds"), ("kinds", "ids"), ("ids", "mask", "kinds")])
def test_inputs_go_by_their_names(given: tuple[str, ...]) -> None:
    module = net(words)
    specs = tuple(spec(name, 3, dtype="bool" if name == "mask" else "int64") for name in given)
    prepare(module, specs)
    values = {"ids": torch.ones(2, 3).long(), "kinds": torch.zeros(2, 3).long()}
    values["mask"] = torch.ones(2, 3, dtype=torch.bool)
    expected = module.fc(torch.full((2, 4), 3.0))
    assert torch.equal(module(*(values[name] for name in given)), expected)


def grows(self: Any, x: Tensor) -> Any:
    return F.interpolate(self.fc(x)[:, None], scale_factor=2.0)[:, 0]


def pools(self: Any, x: Tensor) -> Any:
    return F.linear(self.fc(x).flatten(1), torch.ones(1, 64 * 4))


def test_sizes_are_dynamic_where_the_network_allows_it() -> None:
    (free,) = (parse_input("x:NxHx4"),)
    assert free == TensorSpec("x", (None, 64, 4), "float32", ((1, "H"),))
    assert parse_input("x:N,HEIGHT=96,4").shape == (None, 96, 4)
    assert describe((free,)) == "x:NxH=64x4:float32"
    module = net(grows)
    prepare(module, (free,))
    structure = trace(model(module, free)).graph.structure
    assert [str(size) for size in structure.inputs[0].shape] == ["N", "H", "4"]
    with pytest.raises(ModelError, match=r"takes x:NxH=64x4:float32, but not x:NxH=96x4:float32"):
        prepare(net(pools), (free,))
    with pytest.raises(ExportError, match=r"takes no other H than that of its example.* line"):
        trace(model(net(lambda self, x: self.fc(x).view(-1, 64, 4)), free))


# -- tracing --------------------------------------------------------------------------------------


def model(module: nn.Module, *inputs: TensorSpec) -> Model:
    return Model("net", "net.pt", "state-dict", module, None, inputs)


def remembers(self: Any, x: Tensor) -> Any:
    if getattr(self, "shape", None) != x.shape:
        self.table, self.shape = torch.ones(x.shape[-1]), x.shape
    return self.fc(x + self.table).reshape(self.shape)


def test_tracing_leaves_nothing_in_a_network_that_remembers() -> None:
    module = net(remembers)
    module(torch.zeros(7, 4))
    for _ in range(2):
        trace(model(module, spec("x", 4)))
        assert module.shape == (7, 4)
        assert type(module.table) is Tensor
    assert module(torch.zeros(5, 4)).shape == (5, 4)


def fixes(self: Any, x: Tensor) -> Any:
    return self.fc(x).view(2, 4)


def loops(self: Any, x: Tensor) -> Any:
    return torch.stack([self.fc(row) for row in x])


def test_views_that_do_not_fit_fused_attention_are_exported_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As MaxViT meets it: torch's error names the view, and plain attention has no such strides.
    exported, fused = trace_room._exported, []

    def meets(given: Model) -> Any:
        fused.append(torch.backends.cuda.flash_sdp_enabled())
        if fused[-1]:
            raise RuntimeError("step 2/3") from ValueError("Cannot view a tensor with shape (4,)")
        return exported(given)

    monkeypatch.setattr(trace_room, "_exported", meets)
    trace(model(net(lambda self, x: self.fc(x)), spec("x", 4)))
    assert fused == [True, False]


def test_a_tensor_of_the_network_may_be_an_output() -> None:
    module = net(lambda self, x: (self.fc(x), self.scale, self.steps))
    module.scale = nn.Parameter(torch.ones(4))
    module.register_buffer("steps", torch.tensor(3))
    structure = trace(model(module, spec("x", 4))).graph.structure
    assert [value.name for value in structure.inputs] == ["x"]
    read = [node.inputs[0] for node in structure if node.op_type == "Identity"]
    assert [value and value.name for value in read] == ["scale", "steps"]
    assert len({value.name for value in structure.outputs} - {"scale", "steps"}) == 3


@pytest.mark.parametrize("forward", [fixes, loops])
def test_a_batch_that_comes_out_fixed_is_refused_with_the_line(forward: Any) -> None:
    with pytest.raises(ExportError, match="no other batch than that of its example") as caught:
        trace(model(net(forward), spec("x", 4)))
    assert f"{forward.__code__.co_firstlineno + 1}: return" in caught.value.message
    assert "test_networks.py" in caught.value.message
    assert "--fixed-batch" in str(caught.value.hint)


def test_a_projection_that_no_onnx_operator_has_is_named() -> None:
    module = net(lambda self, x: self.fc(self.rnn(x)[0]))
    module.rnn = nn.LSTM(6, 8, proj_size=4)
    model = Model("net", "net.pt", "state-dict", module, None, (spec("x", 5, 6),))
    with pytest.raises(ExportError, match=r"rnn is an LSTM with proj_size=4: ONNX's"):
        trace(model)


def test_a_lazy_network_that_takes_a_dictionary_gets_its_shapes() -> None:
    module = net(lambda self, batch: self.fc(self.lazy(batch["a"] + batch["b"])))
    module.lazy = nn.LazyLinear(4)
    prepare(module, (spec("a", 6), spec("b", 6)))
    assert module.lazy.weight.shape == (4, 6)


class Masked(nn.Module):
    """Attention under a mask that is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.fc(x)[:, None]
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask[:, None])


def test_what_a_mask_lets_see_nothing_is_zero_in_the_file_too(tmp_path: Path) -> None:
    artifact = hwprune.compile(
        Masked().eval(), target="raspberry-pi-5", epochs=0, budget="4KiB", output=tmp_path,
        example_input=(torch.zeros(1, 3, 16), torch.ones(1, 3, 3, dtype=torch.bool)),
    )  # fmt: skip
    mask = np.ones((1, 3, 3), bool)
    mask[0, 1] = False
    feeds = {"x": np.ones((1, 3, 16), np.float32), "mask": mask}
    (found,) = hwprune.session(artifact.path).run(None, feeds)
    assert not found[0, 0, 1].any()
    assert found[0, 0, [0, 2]].any()
