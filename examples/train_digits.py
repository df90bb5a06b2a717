"""Train the demo's network: handwritten digits of 8x8 pixels, a few seconds on two cores.

    python examples/train_digits.py demo-out/digits.pt

The images are the 1,797 that scikit-learn ships. The test images are the ones that `--data digits`
sets aside (the same at every seed): a compiled model is tested on what its network never saw.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.frontend import load_data
from hwprune.frontend.zoo import ARCHITECTURES
from hwprune.ir import Split


def tensors(split: Split) -> tuple[Tensor, Tensor]:
    """Return all images (n, 1, 8, 8) and labels (n,) of a split."""
    (images,) = split.batch(np.arange(len(split)))
    assert split.labels is not None  # digits have labels
    return torch.from_numpy(images), torch.from_numpy(split.labels)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move a whole batch by up to one pixel each way; what moves in repeats the border."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
    return padded[..., down : down + 8, right : right + 8]


@torch.no_grad()
def accuracy(network: nn.Module, split: Split) -> float:
    """Return the fraction of a split that the network classifies rightly."""
    images, labels = tensors(split)
    network.eval()
    return float((network(images).argmax(1) == labels).float().mean())


def train(*, epochs: int, seed: int, batch: int = 64) -> nn.Module:
    """Train a digits-cnn with SGD and a one-cycle schedule; prints a line every few epochs."""
    data = load_data("digits")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = ARCHITECTURES["digits-cnn"].build()
    images, labels = tensors(data.train)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, epochs=epochs, steps_per_epoch=steps
    )
    for epoch in range(1, epochs + 1):
        network.train()
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(batch):
            logits = network(shifted(images[chosen], generator))
            loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        if epoch % 5 == 0 or epoch == epochs:
            print(
                f"epoch {epoch:2d}/{epochs}  loss {total / len(images):.3f}  "
                f"validation {100 * accuracy(network, data.validation):.1f} %",
                flush=True,
            )
    print(f"test accuracy {100 * accuracy(network, data.test):.2f} % of {len(data.test)} images")
    return network


def main() -> None:
    """Train, and write the state dict so that it is whole or absent: beside, then renamed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("output", type=Path, nargs="?", default=Path("demo-out/digits.pt"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    network = train(epochs=options.epochs, seed=options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    beside = options.output.with_suffix(".partial")
    torch.save(network.state_dict(), beside)
    os.replace(beside, options.output)
    size = options.output.stat().st_size
    print(f"wrote {options.output} ({size:,} B) in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
