"""parity: what rounding explains is no error, everything else is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hwprune.errors import VerificationError
from hwprune.verify import compare, parity

LIMIT = 1e-4
Array = NDArray[np.float32]


def samples(seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((64, 5)).astype(np.float32)


def judged(output: Array, reference: Array, noise: float | None = None) -> parity.Parity:
    rounding: Callable[[], Any] | None = None
    if noise is not None:
        rounding = lambda: [np.full(reference.shape, noise)]  # noqa: E731 - one use
    return compare([output], [reference], limit=LIMIT, names=["y"], rounding=rounding)


def test_the_error_is_relative_to_each_elements_range() -> None:
    reference = samples()
    reference[:, 1] *= 1000  # which hides nothing in the others
    moved = reference.copy()
    moved[2, 3] += 0.01 * float(np.ptp(reference[:, 3]))
    assert judged(moved, reference).relative_error == pytest.approx(0.01, rel=1e-3)
    one = compare([moved[2:3]], [reference[2:3]], limit=LIMIT, names=["y"])  # no range of its own
    whole = 0.01 * float(np.ptp(reference[:, 3])) / float(np.ptp(reference[2]))
    assert one.relative_error == pytest.approx(whole, rel=1e-3)


def test_what_rounding_explains_is_no_error() -> None:
    reference = (0.5 + 1e-6 * samples()).astype(np.float32)
    near = np.nextafter(reference, np.float32(1))
    assert judged(near, reference).relative_error > LIMIT
    assert judged(near, reference, noise=0.0).relative_error <= LIMIT  # one ulp of the value
    far = reference + np.float32(1e-6)
    assert judged(far, reference, noise=0.0).relative_error > LIMIT
    assert judged(far, reference, noise=1e-6).relative_error <= LIMIT
    assert judged(far + np.float32(5e-5), reference, noise=1e-6).relative_error > LIMIT


def test_rounding_is_asked_only_where_it_matters() -> None:
    def refused() -> Any:
        raise AssertionError("not needed")

    found = compare([samples()], [samples()], limit=LIMIT, names=["y"], rounding=refused)
    assert (found.relative_error, found.top1_agreement) == (0.0, 1.0)


def test_top1_agreement_counts_samples_and_not_ties() -> None:
    reference = samples()
    rolled = reference.copy()
    rolled[0] = np.roll(rolled[0], 1)
    assert judged(rolled, reference).top1_agreement == pytest.approx(63 / 64)
    assert "top-1 of 98.44 % the same" in str(judged(rolled, reference))
    order = np.argsort(reference[0])
    reference[0, order[-2]] = np.nextafter(reference[0, order[-1]], np.float32(-np.inf))
    swapped = reference.copy()
    swapped[0, order[-2:]] = swapped[0, order[-2:][::-1]]
    assert swapped[0].argmax() != reference[0].argmax()
    assert judged(swapped, reference).top1_agreement == 1.0


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
def test_scalars_and_constants(value: float) -> None:
    scalar = np.array(value, np.float32)
    assert judged(scalar, scalar).relative_error == 0
    assert judged(scalar + np.float32(0.1), scalar, noise=1e-7).relative_error > LIMIT
    constant = np.full((8, 2), value, np.float32)
    assert judged(constant + np.float32(0.1), constant, noise=1e-7).relative_error > LIMIT


def test_shapes_counts_and_nan_are_refused() -> None:
    reference = samples()
    with pytest.raises(VerificationError, match=r"'y' is \(64, 4\), the reference \(64, 5\)"):
        judged(reference[:, :-1], reference)
    with pytest.raises(VerificationError, match="1 outputs, not 2"):
        compare([reference], [reference] * 2, limit=LIMIT, names=["y"])
    broken = reference.copy()
    broken[0, 0] = np.nan
    for output, expected in ((broken, reference), (reference, broken)):
        with pytest.raises(VerificationError, match="NaN"):
            judged(output, expected)
    assert judged(broken, broken).relative_error == 0
    assert judged(reference[:0], reference[:0]).relative_error == 0
