"""Data sources: what they yield, how they are split and normalised, what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.errors import DataError
from hwprune.frontend.data import check_labels, load_data
from hwprune.frontend.sources.splits import stratified_choice
from hwprune.ir import Data, Split


def everything(split: Split) -> np.ndarray[Any, Any]:
    return split.batch(np.arange(len(split)))[0]


def rows(split: Split) -> set[bytes]:
    return {row.tobytes() for row in everything(split)}


def write_npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.fixture
def unique_npz(tmp_path: Path) -> str:
    """100 samples that differ from one another, of 4 classes."""
    x = np.arange(100, dtype=np.float32)[:, None] * np.ones(3, dtype=np.float32)
    return write_npz(tmp_path / "data.npz", x=x, y=np.arange(100) % 4)


# -- splitting ----------------------------------------------------------------------------------


def test_digits_have_three_disjoint_parts_that_make_up_all_images() -> None:
    data = load_data("digits")
    assert (data.classes, data.augment) == (10, "shift")
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert len(data.test) == 359
    assert everything(data.test).shape == (359, 1, 8, 8)
    assert everything(data.test).dtype == np.float32
    labels = data.test.labels
    assert labels is not None
    assert np.bincount(labels).min() >= 34  # stratified: a tenth each, as nearly as possible
    assert any("no test part" in note for note in data.notes)


def test_parts_share_no_sample(unique_npz: str) -> None:
    data = load_data(unique_npz + "?normalize=none", seed=3)
    parts = [rows(split) for split in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [72, 8, 20]
    assert len(set.union(*parts)) == 100


def test_seed_moves_validation_but_neither_test_nor_normalisation(unique_npz: str) -> None:
    first, second, again = (load_data(unique_npz, seed=seed) for seed in (0, 1, 0))
    assert rows(first.test) == rows(second.test)
    assert rows(first.validation) != rows(second.validation)
    assert rows(first.validation) == rows(again.validation)
    assert first.normalize == second.normalize


def test_validation_without_test_becomes_the_test_set(tmp_path: Path) -> None:
    x = np.arange(20, dtype=np.float32).reshape(20, 1)
    y = np.arange(20) % 2
    spec = write_npz(tmp_path / "d.npz", x=x, y=y, x_val=x[:4] + 100, y_val=y[:4])
    data = load_data(spec + "?normalize=none")
    assert rows(data.test) == {row.tobytes() for row in x[:4] + 100}
    assert (len(data.train), len(data.validation)) == (18, 2)
    assert any("validation part is the test set" in note for note in data.notes)


def test_given_parts_are_kept_as_they_are(tmp_path: Path) -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(12, 1), np.arange(12) % 3
    spec = write_npz(
        tmp_path / "d.npz", x=x[:6], y=y[:6], x_val=x[6:9], y_val=y[6:9], x_test=x[9:], y_test=y[9:]
    )
    data = load_data(spec + "?normalize=none", seed=5)
    for split, part in ((data.train, x[:6]), (data.validation, x[6:9]), (data.test, x[9:])):
        np.testing.assert_array_equal(everything(split), part)
    assert data.notes == ()


@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=200),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 3),
)
def test_stratified_choice_is_exact_and_even(labels: list[int], fraction: float, seed: int) -> None:
    array = np.array(labels)
    taken = stratified_choice(array, samples=len(array), fraction=fraction, seed=seed)
    wanted = min(max(round(len(array) * fraction), 1), len(array) - 1)
    assert taken.sum() == wanted
    for label in set(labels):
        share = (array == label).sum() * wanted / len(array)
        assert abs(taken[array == label].sum() - share) < 1


# -- normalising --------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (40, 3, 5, 4), dtype=np.uint8)
    x[:, 1] //= 4
    y = np.arange(40) % 2
    return write_npz(tmp_path / "i.npz", x=x, y=y, x_test=x[:10], y_test=y[:10]), x


def test_own_statistics_make_every_channel_standard(images: tuple[str, Any]) -> None:
    spec, _ = images
    data = load_data(spec)
    both = np.concatenate([everything(data.train), everything(data.validation)])
    np.testing.assert_allclose(both.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(both.std(axis=(0, 2, 3)), 1, atol=1e-5)
    assert data.normalize.startswith("own statistics (mean ")


@pytest.mark.parametrize(
    ("option", "mean", "std", "scale"),
    [
        ("none", (0,) * 3, (1,) * 3, 255),
        ("raw255", (0,) * 3, (1,) * 3, 1),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 255),
        ("0.1,0.2,0.3/1,2,4", (0.1, 0.2, 0.3), (1, 2, 4), 255),
        ("0.5/0.25", (0.5,) * 3, (0.25,) * 3, 255),
    ],
)
def test_normalisations_by_name_and_by_number(
    images: tuple[str, Any], option: str, mean: Any, std: Any, scale: float
) -> None:
    spec, x = images
    data = load_data(f"{spec}?normalize={option}")
    got = everything(data.test)
    expected = (x[:10] / scale - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_none_leaves_floats_and_integers_alone(tmp_path: Path) -> None:
    x = np.linspace(-3, 300, 20, dtype=np.float64).reshape(10, 2)
    spec = write_npz(tmp_path / "f.npz", x=x, x_test=x)
    got = everything(load_data(spec + "?normalize=none").test)
    np.testing.assert_array_equal(got, x.astype(np.float32))
    tokens = np.arange(20).reshape(10, 2)
    spec = write_npz(tmp_path / "t.npz", x=tokens, x_test=tokens)
    got = everything(load_data(spec).test)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, tokens)


def test_small_integers_can_be_scaled_by_number(tmp_path: Path) -> None:
    x = np.array([[83, 84], [-128, 127]], dtype=np.int8)
    spec = write_npz(tmp_path / "k.npz", x=x, x_test=x)
    got = everything(load_data(spec + "?normalize=83/1.71").test)
    np.testing.assert_allclose(got, (x.astype(np.float64) - 83) / 1.71, rtol=1e-5, atol=1e-5)


def test_a_constant_channel_does_not_divide_by_zero(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "c.npz", x=np.full((10, 1, 2, 2), 7, dtype=np.uint8))
    assert np.isfinite(everything(load_data(spec).train)).all()


def test_floats_normalised_by_default_are_mentioned(unique_npz: str) -> None:
    assert any("?normalize=none" in note for note in load_data(unique_npz).notes)


def test_the_stored_images_stay_bytes(images: tuple[str, Any]) -> None:
    spec, _ = images
    stored = load_data(spec).test.part.inputs  # type: ignore[attr-defined]
    assert stored.dtype == np.uint8


def test_unlabelled_data(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "u.npz", x=np.arange(30, dtype=np.float32).reshape(30, 1))
    data = load_data(spec)
    assert data.classes is None
    assert data.train.labels is None
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"y": np.zeros(4, int)}, "there is no array x"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3, int)}, "3 labels for 4 samples"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, "float64; expected integers"),
        ({"x": np.zeros((4, 2)), "y": np.array([0, 1, -1, 0])}, "label -1 of sample 2 is negative"),
        ({"x": np.zeros((4, 2)), "y": np.eye(4, dtype=int)}, "one class index per sample"),
        ({"x": np.full((4, 2), np.nan)}, "sample 0 holds NaN"),
        ({"x": np.array([[1.0], [np.inf]])}, "sample 1 holds NaN or infinite"),
        ({"x": np.array([[1.0], [1e300]])}, "as float32"),
        ({"x": np.zeros((0, 2))}, "none of them zero"),
        ({"x": np.zeros(4)}, "expected (samples, ...)"),
        ({"x": np.array([["a"]])}, "expected numbers"),
        ({"x": np.array([[1j]])}, "expected numbers"),
        ({"x": np.array([[None], [{}]], dtype=object)}, "holds Python objects"),
        ({"x": np.zeros((1, 2))}, "too few"),
        ({"x": np.zeros((4, 2)), "y_val": np.zeros(4, int)}, "y_val is there, but not x_val"),
        (
            {"x": np.zeros((4, 2)), "x_val": np.zeros((4, 3))},
            "have the shape (3,), those of x (2,)",
        ),
        (
            {"x": np.zeros((4, 2)), "y": np.zeros(4, int), "x_test": np.zeros((4, 2))},
            "test has no labels, but train has",
        ),
        (
            {
                "x": np.zeros((4, 2)),
                "y": np.zeros(4, int),
                "x_test": np.zeros((2, 2)),
                "y_test": np.array([0, 7]),
            },
            "label 7 of sample 1 in test is out of range",
        ),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(write_npz(tmp_path / "bad.npz", **arrays))
    assert expected in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short", b"\x80\x04]."])
def test_files_that_are_not_npz(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a \.npz file|cannot be read"):
        load_data(f"npz:{path}")


def test_truncated_npz(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    write_npz(path, x=np.zeros((100, 10)))
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + whole[-200:])
    with pytest.raises(DataError, match="cannot be read"):
        load_data(f"npz:{path}")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", "is not a data source"),
        ("digit", "is not a data source"),
        ("cifar11:/x", "is not a data source"),
        ("cifar10", "names no folder"),
        ("npz:", "names no folder"),
        ("digits:/x", "has no folder"),
        ("digits?size=3", "has no option 'size'"),
        ("digits?normalise=none", "has no option 'normalise'"),
        ("digits?normalize=", "is not an option"),
        ("digits?normalize=none&normalize=none", "given twice"),
        ("digits?normalize=zero", "is not a normalisation"),
        ("digits?normalize=0.5/0", "above zero"),
        ("digits?normalize=nan/1", "finite"),
        ("digits?normalize=imagenet", "3 channels, but the inputs have 1"),
        ("digits?normalize=1,2/1,2", "2 channels, but the inputs have 1"),
        ("npz:/no/such/file.npz", "no such file"),
        ("imagefolder:/no/such/folder", "no such folder"),
        ("cifar10:/no/such/folder", "there is no cifar-10-batches-py"),
        ("fashion-mnist:/no/such/folder", "no Fashion-MNIST here"),
        ("/no/such/file.py:make", "no such file"),
    ],
)
def test_specifications_that_are_refused(spec: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(spec)
    assert expected in caught.value.message
    assert caught.value.hint


def test_a_close_name_is_suggested() -> None:
    with pytest.raises(DataError) as caught:
        load_data("cifar-10:/x")
    assert caught.value.hint == "did you mean cifar10?"


def test_more_classes_than_outputs(unique_npz: str, tmp_path: Path) -> None:
    data: Data = load_data(unique_npz)
    check_labels(data, outputs=4)
    with pytest.raises(DataError, match="label 3 is out of range; the network has 3 outputs"):
        check_labels(data, outputs=3)
    two = write_npz(tmp_path / "two.npz", x=np.zeros((20, 4)), y=np.arange(20) % 2)
    with pytest.raises(DataError) as caught:
        check_labels(load_data(two), outputs=1)
    assert "--task multilabel" in str(caught.value.hint)


def test_the_keys_of_an_npz_without_x_are_all_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_train=np.zeros((9, 4)), Y=np.zeros(9), x_test=np.zeros((9, 4)))
    with pytest.raises(DataError, match="no array x; the file holds x_train, Y, x_test"):
        load_data(f"npz:{tmp_path / 'd.npz'}")
