"""``PrunerCallback`` in transformers' Trainer: a ViT, a small Llama, a resume to the byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import UsageError

transformers = pytest.importorskip("transformers", reason="make integrations installs transformers")


class Rows(torch.utils.data.Dataset[Any]):
    """Rows of tensors, as the Trainer wants them."""

    def __init__(self, **columns: torch.Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: column[row] for name, column in self.columns.items()}


def train(
    model: Any, rows: Any, steps: int, resume: Any = None, folder: str = "run", **options: Any
) -> Any:
    """Train with a ``PrunerCallback`` and return it."""
    from hwprune.integrations.transformers import PrunerCallback

    named = {name: options.pop(name) for name in ("wrap", "resume_place") if name in options}
    if "resume_place" in named:
        named["resume"] = named.pop("resume_place")
    callback = PrunerCallback(target="raspberry-pi-zero-2w", values="int8", **named, **options)
    arguments = transformers.TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=32, learning_rate=5e-3, report_to=[],
        disable_tqdm=True, save_steps=steps // 2, logging_strategy="no", use_cpu=True,
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train(
        resume_from_checkpoint=resume
    )
    return callback


VIT_BUDGET = 20_480


def test_a_vit_uses_its_bytes(digits: Any) -> None:
    images, classes = digits
    rows = Rows(pixel_values=images[:1280], labels=classes[:1280])
    transformers.set_seed(0)
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
        )
    )
    callback = train(model, rows, 240, budget=VIT_BUDGET, example_input=images[:1])
    assert callback.pruner.step == 240
    artifact = callback.pruner.export("out")
    assert artifact.verdict.exit_code == 0
    assert 0.995 * VIT_BUDGET <= artifact.bytes <= VIT_BUDGET
    session = hwprune.session(artifact.path)
    (found,) = session.run(None, {"pixel_values": images.numpy()})
    with torch.no_grad():
        expected = model.eval()(images).logits.numpy()
    right = [(each.argmax(1) == classes.numpy()) for each in (found, expected)]
    assert abs(right[0].mean() - right[1].mean()) <= 1e-3
    assert right[0][1280:].mean() > 0.7


LLAMA_BUDGET = 36_864


class Logits(nn.Module):
    """A language model that returns nothing but its logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Map (n, length) to (n, length, vocabulary)."""
        return self.model(input_ids=input_ids, use_cache=False).logits


def llama() -> Any:
    transformers.set_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    )


def test_a_small_llama_keeps_its_perplexity_and_is_continued_to_the_same_file() -> None:
    """RMSNorm, rotary positions, and fewer heads for keys and values than for queries."""
    draw = torch.Generator().manual_seed(0)
    first = torch.randint(0, 32, (1280, 1), generator=draw)
    ids = (first + torch.randint(1, 4, (1280, 1), generator=draw) * torch.arange(24)) % 32
    rows = Rows(input_ids=ids[:1024], labels=ids[:1024])  # counting in ones, twos or threes
    options = {
        "wrap": Logits, "budget": LLAMA_BUDGET, "example_input": ids[:1],
        "strategy": "bidirectional-single",
    }  # fmt: skip
    model = llama()
    callback = train(model, rows, 120, **options)
    artifact = callback.pruner.export("out")
    assert artifact.verdict.exit_code == 0
    assert 0.995 * LLAMA_BUDGET <= artifact.bytes <= LLAMA_BUDGET
    session = hwprune.session(artifact.path)
    (found,) = session.run(None, {"input_ids": ids[1024:].numpy()})
    with torch.no_grad():
        expected = Logits(model.eval())(ids[1024:])
    nats = [
        float(nn.functional.cross_entropy(each[:, 1:-1].flatten(0, 1), ids[1024:, 2:].flatten()))
        for each in (torch.from_numpy(found), expected)
    ]
    assert abs(nats[0] - nats[1]) <= 1e-3
    assert nats[0] < 2.0  # 3.5 is what chance has

    before = Path(artifact.path).read_bytes()
    assert Path("run/checkpoint-60/hwprune.state").is_file()
    shutil.copytree("run/checkpoint-60", "moved")
    shutil.rmtree("run/checkpoint-120")
    for resume in (True, "moved"):
        place = {"resume_place": "moved", "folder": "elsewhere"} if resume == "moved" else {}
        callback = train(llama(), rows, 120, resume, **options, **place)
        assert Path(callback.pruner.export("again").path).read_bytes() == before
    Path("moved/hwprune.state").unlink()
    with pytest.raises(UsageError, match=r"goes on at step 60, and there is no hwprune\.state"):
        train(llama(), rows, 120, "moved", **options, folder="nowhere")
