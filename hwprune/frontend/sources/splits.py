"""From the parts that a source has to train, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.frontend.sources.normalize import Normalizer, is_index, scale_of
from hwprune.frontend.sources.parts import PartName, StoredPart, check_finite
from hwprune.preprocessing import LAYOUTS, Preprocessing
from hwprune.trees import tree_map

VALIDATION_FRACTION = 0.1
TEST_FRACTION = 0.2
# The test set that is carved from train does not follow the run's seed: accuracies of different
# seeds are compared with one another, and a network is not tested on what it was trained on because
# the script that trained it used another seed.
TEST_SEED = 20_240_229


@dataclass(frozen=True, slots=True)
class Subset:
    """Some samples of a part, in a fixed order, without a copy of them."""

    part: StoredPart
    index: NDArray[np.int64]

    @property
    def lazy(self) -> bool:
        """Say whether reading a sample means decoding it."""
        return bool(getattr(self.part, "lazy", False))

    @property
    def labels(self) -> Any:
        """Return their labels."""
        labels = self.part.labels
        return None if labels is None else tree_map(lambda part: part[self.index], labels)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return the samples at ``indices``, values as stored."""
        return self.part.read(self.index[indices])


@dataclass(frozen=True, slots=True)
class NormalizedSplit:
    """A part that is normalised batch by batch (an `ir.Split`)."""

    part: StoredPart
    normalizer: Normalizer
    where: str
    labels: Any

    def __len__(self) -> int:
        return len(self.part)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return one array per network input for these samples: (b, ...), normalised float32.

        Raises:
            DataError: a sample cannot be decoded, or holds NaN or infinite values.
        """
        inputs = tuple(self.normalizer.apply(stored) for stored in self.part.read(indices))
        for values in inputs:
            check_finite(values, where=self.where)
        return inputs

    def stored(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at ``indices`` as stored, (b, ...), where ``affine`` is not None."""
        images: NDArray[np.uint8] = self.part.read(indices)[0]
        return images

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return (factor, shift), so that ``batch`` is ``stored * factor - shift`` by channel.

        None where it is anything else: samples of several inputs, not bytes, or not normalised.
        """
        first = self.part.read(np.zeros(1, dtype=np.int64))
        if len(first) > 1 or first[0].dtype != np.uint8 or not self.normalizer.mean:
            return None
        return self.normalizer.affine(scale_of(first[0], self.normalizer.full_scale))

    def preprocessing(self, resize: str) -> Preprocessing | None:
        """Return what ``batch`` does to stored values; None for several inputs, and for indices."""
        first, how = self.part.read(np.zeros(1, dtype=np.int64)), self.normalizer
        layout = LAYOUTS.get(first[0].ndim)
        if len(first) > 1 or is_index(first[0]) or layout is None:
            return None
        scale = 1.0 if how.raw else scale_of(first[0], how.full_scale)
        return Preprocessing(layout, scale, how.mean, how.std, resize)


def with_test(
    parts: Mapping[PartName, StoredPart], *, where: str
) -> tuple[dict[PartName, StoredPart], tuple[str, ...]]:
    """Give a source a test part where it has none, whatever the run's seed.

    What is held out already (validation) becomes test: it is the only part that the network has
    surely not seen. Where nothing is held out, a fixed fifth of train does.

    Returns:
        The parts with train and test, and notes for the report.

    Raises:
        DataError: a part is empty, or train is too small to be divided.
    """
    for name, part in parts.items():
        if len(part) == 0:
            raise DataError(f"{where}: {name} holds no samples", hint="give at least one sample")
    done = dict(parts)
    if "test" in done:
        return done, ()
    if "validation" in done:
        done["test"] = done.pop("validation")
        return done, ("the source has no test part: its validation part is the test set",)
    done["train"], done["test"] = _carve(
        parts["train"], fraction=TEST_FRACTION, seed=TEST_SEED, where=where
    )
    note = (
        f"the source has no test part: {len(done['test'])} of {len(parts['train'])} samples were "
        "set aside for it, the same ones at every seed; the test accuracy is honest only if the "
        "network was not trained on them"
    )
    return done, (note,)


def with_validation(
    parts: Mapping[PartName, StoredPart], *, seed: int, where: str
) -> tuple[dict[PartName, StoredPart], tuple[str, ...]]:
    """Give a source a validation part where it has none: a tenth of train, by ``seed``.

    Returns:
        All three parts, and notes for the report.

    Raises:
        DataError: train is too small to be divided.
    """
    if "validation" in parts:
        return dict(parts), ()
    train, validation = _carve(parts["train"], fraction=VALIDATION_FRACTION, seed=seed, where=where)
    note = (
        f"validation: {len(validation)} of {len(parts['train'])} training samples, by seed {seed}"
    )
    return {**parts, "train": train, "validation": validation}, (note,)


def _carve(part: StoredPart, *, fraction: float, seed: int, where: str) -> tuple[Subset, Subset]:
    if len(part) < 2:
        raise DataError(
            f"{where}: {len(part)} training sample is too few to set some aside",
            hint="give more samples, or give validation and test parts",
        )
    labels = part.labels
    whole = isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind == "i"
    taken = stratified_choice(
        labels if whole else None, samples=len(part), fraction=fraction, seed=seed
    )
    return Subset(part, np.flatnonzero(~taken)), Subset(part, np.flatnonzero(taken))


def stratified_choice(
    labels: NDArray[np.int64] | None, *, samples: int, fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Choose a fraction of the samples, of each class as nearly as whole numbers allow.

    Returns:
        (samples,) True for the chosen ones: ``round(samples * fraction)``, at least 1 and not all.
    """
    generator = np.random.default_rng(seed)
    groups = np.zeros(samples, dtype=np.int64) if labels is None else labels
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    wanted = min(max(round(samples * fraction), 1), samples - 1)
    shares = sizes * (wanted / samples)
    counts = np.floor(shares).astype(np.int64)
    # Largest remainders first (ties by class number) until the total is exact.
    order = np.argsort(counts - shares, kind="stable")
    counts[order[: wanted - int(counts.sum())]] += 1
    taken = np.zeros(samples, dtype=np.bool_)
    for number, count in enumerate(counts):
        taken[generator.permutation(np.flatnonzero(group == number))[:count]] = True
    return taken
