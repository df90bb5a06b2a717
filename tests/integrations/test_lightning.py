"""``PrunerCallback`` in Lightning: closures, accumulation, half precision, a resume to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import UsageError

pl = pytest.importorskip("lightning.pytorch", reason="make integrations installs Lightning")

BUDGET = 6144


def module_and_callback(digits: Any, **options: Any) -> tuple[Any, Any]:
    from hwprune.integrations.lightning import PrunerCallback

    class Digits(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
                nn.MaxPool2d(2), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
            )  # fmt: skip

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
            steps = self.trainer.estimated_stepping_batches
            rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    pl.seed_everything(0, verbose=False)
    arguments: dict[str, Any] = {
        "network": "net", "target": "raspberry-pi-zero-2w", "budget": BUDGET, "values": "int8",
        "example_input": digits[0][:1],
    }  # fmt: skip
    return Digits(), PrunerCallback(**{**arguments, **options})


def trainer(callback: Any, *callbacks: Any, **options: Any) -> Any:
    return pl.Trainer(
        callbacks=[callback, *callbacks], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        **{"max_epochs": 3, **options},
    )  # fmt: skip


def loader(digits: Any) -> Any:
    data = torch.utils.data.TensorDataset(digits[0][:1280], digits[1][:1280])
    return torch.utils.data.DataLoader(data, 64, shuffle=False)


def accuracies(artifact: Any, net: nn.Module, digits: Any) -> tuple[float, float]:
    """Return the file's and the module's accuracy."""
    images, classes = digits[0][1280:], digits[1][1280:].numpy()
    session = hwprune.session(artifact.path)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = net.eval()(images).numpy()
    return float(np.mean(found.argmax(1) == classes)), float(np.mean(expected.argmax(1) == classes))


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "max_epochs": 6}],
    ids=["plain", "bf16-accumulated"],
)
def test_the_file_is_what_lightning_trained(
    digits: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    module, callback = module_and_callback(digits)
    trainer(callback, **options).fit(module, loader(digits))
    assert callback.pruner.step == 60
    artifact = callback.pruner.export("out")
    assert artifact.verdict.exit_code == 0
    assert 0.995 * BUDGET <= artifact.bytes <= BUDGET
    file, torchs = accuracies(artifact, module.net, digits)
    assert abs(file - torchs) <= 1e-3
    assert file > 0.8


def test_a_checkpoint_of_lightning_is_continued_to_the_same_file(digits: Any) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint("half.ckpt")
            trainer.should_stop = True

    files = []
    for interrupted in (False, True):
        module, callback = module_and_callback(digits, strategy="bidirectional-single")
        if interrupted:
            trainer(callback, Stop()).fit(module, loader(digits))
            assert callback.pruner.step == 20
            with pytest.raises(UsageError, match="not final at step 20 of 60"):
                callback.pruner.export("out")
            module, callback = module_and_callback(digits, strategy="bidirectional-single")
            trainer(callback).fit(module, loader(digits), ckpt_path="half.ckpt")
        else:
            trainer(callback).fit(module, loader(digits))
        assert callback.pruner.step == 60
        files.append(Path(callback.pruner.export(str(interrupted)).path).read_bytes())
    assert files[0] == files[1]


def test_a_trainer_without_an_end_needs_steps(digits: Any) -> None:
    module, callback = module_and_callback(digits)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    endless = trainer(callback, max_epochs=-1, max_steps=-1)
    with pytest.raises(UsageError, match="how often the optimiser will step"):
        endless.fit(module, torch.utils.data.DataLoader(Endless()))


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(1, 8, 8), 0
