"""Values in the loop: what is trained is what the file holds."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from steps_tools import At, job_of, pack, weights_in
from torch import nn

from hwprune.encoding.values import LEVELS, rounded
from hwprune.export.pipeline import renewed, weights_of
from hwprune.frontend import load_data
from hwprune.ir import Data, Split, ValueType
from hwprune.steps.planning import Prepared, candidates_of
from hwprune.steps.pruning import prune_and_regrow, strategy_for
from hwprune.steps.weight_quantizer import weight_quantizer

# No channel dies in pruning to it: then bytes would be spent again on what was not trained.
_ROOMY = 11_000
KINDS: tuple[ValueType, ...] = ("int8", "int4", "codebook16", "codebook256")


@cache
def _digits() -> Data:
    return load_data("digits")


def _shuffle_norms(module: nn.Module) -> None:
    """Give BN the kind of numbers that training leaves: of any sign, and some tiny."""
    torch.manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.normal_()
            layer.weight.data[0] = 1e-5
            layer.running_var.uniform_(0.1, 3)


def _pruned(prepared: Prepared, share: float = 0.2) -> dict[str, torch.Tensor]:
    """Prune the module at random and return its weights."""
    draw = np.random.default_rng(0)
    named = dict(prepared.model.module.named_parameters())
    for name in prepared.template.names:
        dead = torch.from_numpy(draw.random(tuple(named[name].shape)) > share)
        named[name].data.masked_fill_(dead, 0.0)
    return {name: named[name].data for name in prepared.template.names}


def test_floats_are_trained_as_they_are(prepared: At) -> None:
    now = prepared()
    for kind in ("fp32", "fp16"):
        assert weight_quantizer(now.template, now.model.module, kind) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_values_are_those_of_the_encoding_with_norms_folded(
    prepared: At, kind: ValueType, channels_last: bool
) -> None:
    now = prepared()
    _shuffle_norms(now.model.module)
    weights = _pruned(now)
    if channels_last:
        weights = {
            n: w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w
            for n, w in weights.items()
        }
    store = weight_quantizer(now.template, now.model.module, kind)
    assert store is not None
    stored = store(weights)
    axes = now.template.channel_axes
    for name, weight in weights.items():
        assert torch.equal(stored[name] != 0, weight != 0)
        if kind in LEVELS:  # the nearest entry of a codebook may be of the other sign
            assert torch.equal(stored[name].sign(), weight.sign())
        assert stored[name].stride() == weight.stride()
        now.model.module.get_parameter(name).data.copy_(weight)
    before = {
        name: fold.copy()
        for name, fold in weights_of(renewed(now.template, now.model.module)).items()
    }
    for name, value in stored.items():
        now.model.module.get_parameter(name).data.copy_(value)
    for name, folded in weights_of(renewed(now.template, now.model.module)).items():
        expected = rounded(before[name], kind, axes[name])
        lost = (expected == 0) & (before[name] != 0)  # these take the smallest level here
        assert np.mean(lost[before[name] != 0]) < (0.2 if kind == "int4" else 0.02)
        close = np.isclose(folded, expected, rtol=1e-5, atol=0)
        # A weight in the middle between two levels may be rounded either way.
        assert np.mean(close[~lost]) > 0.99
        # Storing what is stored changes nothing.
        assert np.allclose(rounded(folded, kind, axes[name]), folded, rtol=1e-5, atol=0)


def test_scales_that_float16_holds_coarsely_store_the_same_again(prepared: At) -> None:
    now = prepared()
    quantizer = weight_quantizer(now.template, now.model.module, "int8")
    assert quantizer is not None
    draw = np.random.default_rng(0)
    weight = draw.uniform(-1, 1, (40, 512)).astype(np.float32)
    largest = 127 * 2.0 ** draw.uniform(-19, -15, (40, 1))  # scales below float16's normal numbers
    weight *= (largest / np.abs(weight).max(1, keepdims=True)).astype(np.float32)
    stored = quantizer({"6.weight": torch.from_numpy(weight)})["6.weight"]
    assert torch.equal(quantizer({"6.weight": stored})["6.weight"], stored)


def test_codebooks_follow_slowly_and_survive_a_resume(prepared: At) -> None:
    now = prepared()
    weights = _pruned(now)
    store = weight_quantizer(now.template, now.model.module, "codebook16")
    assert store is not None
    first = store(weights)
    moved = {name: weight * 3 for name, weight in weights.items()}
    second = store(moved)
    entries = {float(v) for v in first["0.weight"].unique()}
    assert {float(v) for v in second["0.weight"].unique()} <= entries
    resumed = weight_quantizer(now.template, now.model.module, "codebook16")
    assert resumed is not None
    resumed.load_state_dict(store.state_dict())
    assert torch.equal(resumed(moved)["0.weight"], store(moved)["0.weight"])
    final = store(moved, final=True)
    assert float(final["0.weight"].abs().max()) > 2 * float(first["0.weight"].abs().max())


def _learn(net: nn.Module) -> None:
    """Train a network a little on the digits, densely."""
    data = _digits().train
    images = torch.from_numpy(data.batch(np.arange(len(data)))[0])
    labels = torch.from_numpy(np.asarray(data.labels))
    generator = torch.Generator().manual_seed(0)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for _ in range(6):
        for part in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[part]), labels[part]).backward()
            optimizer.step()
    net.eval()


def _compile(
    prepared: Prepared, kind: ValueType, budget: int, **recipe: Any
) -> tuple[float, float, float]:
    """Train and pack; return validation in torch and in the file, and the file's test loss."""
    _learn(prepared.model.module)
    candidate = candidates_of(prepared, (kind,), budget)[kind]
    pretrained = weights_in(prepared)
    data = _digits()
    fields = {"batch_size": 64, "precision": "fp32", **recipe}
    job = job_of(prepared, data, strategy="one-shot", epochs=4, recipe=fields)
    trained = prune_and_regrow(
        job, prepared, candidate, strategy_for(job, candidate), lambda status: None
    )
    packed = pack(prepared, trained.masks, kind, pretrained, budget)
    session = onnxruntime.InferenceSession(packed.written.data)

    def answers(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        (images,) = split.batch(np.arange(len(split)))
        (logits,) = session.run(None, {session.get_inputs()[0].name: images})
        return torch.from_numpy(logits), torch.from_numpy(np.asarray(split.labels))

    logits, labels = answers(data.validation)
    in_file = float((logits.argmax(1) == labels).double().mean())
    assert trained.validation_metric is not None
    loss = float(nn.functional.cross_entropy(*answers(data.test)))
    return trained.validation_metric, in_file, loss


@pytest.mark.parametrize("kind", ["int4", "codebook16"])
def test_the_file_holds_what_was_trained(prepared: At, kind: ValueType) -> None:
    in_torch, in_file, loss = _compile(prepared(), kind, _ROOMY)
    assert in_torch == in_file
    assert loss < 0.5


def test_int4_that_was_trained_beats_int4_that_was_not(prepared: At) -> None:
    *_, trained = _compile(prepared(), "int4", 6_000)
    *_, plain = _compile(prepared(), "int4", 6_000, quantise_from=1.0)
    assert trained < plain
