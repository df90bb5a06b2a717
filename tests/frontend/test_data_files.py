"""Data sources that are folders and files: CIFAR, Fashion-MNIST, image folders, Python files."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hwprune.errors import DataError
from hwprune.frontend.data import load_data
from hwprune.frontend.sources import cifar


def everything(split: Any) -> np.ndarray[Any, Any]:
    return split.batch(np.arange(len(split)))[0]


# -- CIFAR --------------------------------------------------------------------------------------


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch, *, per_file: int = 20) -> None:
    """Write a small CIFAR-10 in the official form, and declare its files the official ones."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    for files in (cifar.CIFAR10_TRAIN_MD5, cifar.CIFAR10_TEST_MD5):
        for name in files:
            content = {
                "data": generator.integers(0, 256, (per_file, 3072), dtype=np.uint8),
                "labels": [index % 10 for index in range(per_file)],
            }
            # Written by Python 2 and NumPy 1 originally: the same names, whatever writes it here.
            packed = pickle.dumps(content, protocol=2)
            packed = packed.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            (folder / name).write_bytes(packed)
            monkeypatch.setitem(files, name, hashlib.md5(packed).hexdigest())


@pytest.mark.parametrize("named", ["", "cifar-10-batches-py"])
def test_cifar10_by_its_folder_or_the_one_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py", monkeypatch)
    data = load_data(f"cifar10:{tmp_path / named}")
    assert (data.name, data.classes, data.augment) == ("cifar10", 10, "crop-flip")
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 20)
    assert everything(data.test).shape == (20, 3, 32, 32)
    assert data.normalize.startswith("cifar10 (mean 0.4914")


def test_cifar_files_that_are_not_official_are_not_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match="not the official file") as caught:
        load_data(f"cifar10:{tmp_path}")
    assert "c99cafc152244af753f735de768cd75f" in caught.value.message
    assert not (tmp_path / "ran").exists()


def test_the_cifar_reader_knows_arrays_only(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(os.system))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(pickle.UnpicklingError, match="has no place"):
        cifar.unpickle_verified(path, md5=md5)


def test_a_missing_cifar_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "c", monkeypatch)
    (tmp_path / "c" / "test_batch").unlink()
    with pytest.raises(DataError, match="test_batch: cannot be read"):
        load_data(f"cifar10:{tmp_path / 'c'}")


def test_cifar100_has_the_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for files in (cifar.CIFAR100_TRAIN_MD5, cifar.CIFAR100_TEST_MD5):
        for name in files:
            content = {
                "data": np.zeros((100, 3072), dtype=np.uint8),
                "fine_labels": list(range(100)),
                "coarse_labels": [0] * 100,
            }
            packed = pickle.dumps(content, protocol=2)
            packed = packed.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            (tmp_path / name).write_bytes(packed)
            monkeypatch.setitem(files, name, hashlib.md5(packed).hexdigest())
    data = load_data(f"cifar100:{tmp_path}")
    assert data.classes == 100
    np.testing.assert_array_equal(data.test.labels, np.arange(100))


# -- Fashion-MNIST ------------------------------------------------------------------------------


def idx(values: np.ndarray[Any, Any]) -> bytes:
    head = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return head + values.tobytes()


def write_fashion(folder: Path, *, packed: bool, samples: int = 50) -> np.ndarray[Any, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(2).integers(0, 256, (samples, 28, 28), dtype=np.uint8)
    labels = (np.arange(samples) % 10).astype(np.uint8)
    for name in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(values)
            path = folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return images


@pytest.mark.parametrize("sub", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_packed_or_not_in_any_folder(tmp_path: Path, sub: str, packed: bool) -> None:
    images = write_fashion(tmp_path / sub, packed=packed)
    data = load_data(f"fashion-mnist:{tmp_path}?normalize=raw255")
    np.testing.assert_array_equal(everything(data.test)[:, 0], images)
    assert (data.classes, data.augment, len(data.validation)) == (10, "shift", 5)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("train-images-idx3-ubyte", idx(np.zeros((5, 28, 28), np.uint8))[:-1], "asks for"),
        ("train-images-idx3-ubyte", b"", "not an idx file"),
        ("train-images-idx3-ubyte", idx(np.zeros(5, np.uint8)), "with 3 axes"),
        ("train-images-idx3-ubyte", struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "asks for"),
        ("train-labels-idx1-ubyte", idx(np.zeros(49, np.uint8)), "49 labels for 50 samples"),
        ("t10k-labels-idx1-ubyte", idx(np.full(50, 10, np.uint8)), "label 10 is out of range"),
    ],
)
def test_broken_idx_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    write_fashion(tmp_path, packed=False)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data(f"fashion-mnist:{tmp_path}")
    assert expected in caught.value.message


def test_broken_and_missing_gzip(tmp_path: Path) -> None:
    write_fashion(tmp_path, packed=True)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        load_data(f"fashion-mnist:{tmp_path}")
    path.unlink()
    with pytest.raises(DataError, match="no such file, and no t10k-labels"):
        load_data(f"fashion-mnist:{tmp_path}")


# -- image folders ------------------------------------------------------------------------------

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def write_images(root: Path, *, each: int = 4, size: tuple[int, int] = (20, 12)) -> None:
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(each):
            Image.new("RGB", size, colour).save(root / name / f"{number}.png")


def test_image_folder_with_parts(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_images(tmp_path / part)
    data = load_data(f"imagefolder:{tmp_path}?size=8&normalize=raw255")
    assert (data.name, data.classes, data.augment) == ("imagefolder", 3, "crop-flip")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 12, 12]
    batch = everything(data.test)
    assert batch.shape == (12, 3, 8, 8)
    labels = data.test.labels
    assert labels is not None
    for image, label in zip(batch, labels, strict=True):
        np.testing.assert_array_equal(image[:, 3, 3], list(COLOURS.values())[label])


def test_flat_image_folder_is_divided(tmp_path: Path) -> None:
    write_images(tmp_path, each=10)
    data = load_data(f"imagefolder:{tmp_path}?size=8")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [22, 2, 6]
    assert np.bincount(data.test.labels if data.test.labels is not None else []).tolist() == [2] * 3


def test_large_images_are_resized_beyond_and_cut_out_of_the_middle(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image = np.zeros((256, 512, 3), dtype=np.uint8)
    image[16:-16, 144:-144] = 200
    for number in range(3):
        Image.fromarray(image).save(tmp_path / "a" / f"{number}.png")
    data = load_data(f"imagefolder:{tmp_path}?normalize=raw255")
    batch = everything(data.train)
    assert batch.shape[1:] == (3, 224, 224)
    np.testing.assert_array_equal(batch, 200)
    assert data.augment == "none"


def test_a_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    for number in range(10):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    data = load_data(f"imagefolder:{tmp_path}?size=8")
    assert data.classes is None
    assert data.train.labels is None


def test_image_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        load_data(f"imagefolder:{tmp_path}")
    write_images(tmp_path / "train")
    (tmp_path / "test" / "purple").mkdir(parents=True)
    with pytest.raises(DataError, match="'purple' is not one of train's"):
        load_data(f"imagefolder:{tmp_path}")
    (tmp_path / "test" / "purple").rename(tmp_path / "test" / "red")
    with pytest.raises(DataError, match="no images"):
        load_data(f"imagefolder:{tmp_path}")
    for size in ("0", "x", "100000"):
        with pytest.raises(DataError, match="size"):
            load_data(f"imagefolder:{tmp_path}?size={size}")


def grey_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 90, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("Train", "Val", "Test"),
        ("TRAINING", "valid", "testing"),
        ("training_set", "dev set", "test_set"),
        ("train2017", "val2017", "test2017"),
    ],
)
def test_the_parts_folders_go_by_many_names(
    tmp_path: Path, train: str, validation: str, test: str
) -> None:
    names = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(3)]
    for part in (train, validation, test):
        grey_images(tmp_path / part, *names)
    (tmp_path / "extras").mkdir()
    data = load_data(f"imagefolder:{tmp_path}?size=8")
    assert data.classes == 2
    assert [len(split) for split in (data.train, data.validation, data.test)] == [6, 6, 6]
    assert any("extras" in note for note in data.notes)


def test_statistics_of_images_come_from_all_over_the_training_set(tmp_path: Path) -> None:
    for number in range(700):  # more than are looked at; sorted by brightness
        path = tmp_path / f"{number:03}.png"
        Image.fromarray(np.full((2, 2), number * 255 // 700, np.uint8)).save(path)
    data = load_data(f"imagefolder:{tmp_path}?size=2")
    assert any("come from 512 of 560 images" in note for note in data.notes)
    mean = float(data.normalize.split("mean ")[1].split(",")[0])
    assert mean == pytest.approx(0.5, abs=0.02)


def test_parts_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    grey_images(tmp_path / "a", "Test/cat/0.png", "val/cat/0.png")
    with pytest.raises(DataError, match="there are Test, val, but no folder train"):
        load_data(f"imagefolder:{tmp_path / 'a'}")
    grey_images(tmp_path / "b", "train/cat/0.png", "training/cat/0.png")
    with pytest.raises(DataError, match="train and training could both be train"):
        load_data(f"imagefolder:{tmp_path / 'b'}")
    # A class may be called so, where other classes are beside it.
    grey_images(tmp_path / "c", *(f"{k}/{n}.png" for k in ("test", "cat") for n in range(5)))
    assert load_data(f"imagefolder:{tmp_path / 'c'}?size=8").classes == 2


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_images_of_16_bits_keep_their_contrast(tmp_path: Path, mode: str) -> None:
    (tmp_path / "all").mkdir()
    ramp = np.linspace(2000, 38000, 64).astype(np.uint16).reshape(8, 8)
    for number in range(9):
        image = Image.fromarray(ramp if mode == "I;16" else ramp.astype(np.int32))
        image.save(tmp_path / "all" / f"{number}.{'png' if mode == 'I;16' else 'tif'}")
    data = load_data(f"imagefolder:{tmp_path}?size=8&normalize=none")
    np.testing.assert_allclose(everything(data.test)[0, 0], ramp / 65535, atol=0.5 / 255)


def test_images_whose_white_nobody_knows_are_named(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for number in range(9):
        Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "all" / f"{number}.tif")
    with pytest.raises(DataError, match=r"tif: cannot be decoded: pixels of mode F"):
        load_data(f"imagefolder:{tmp_path}?size=8")


def test_hidden_files_and_folders_are_no_samples_and_links_are(tmp_path: Path) -> None:
    root = tmp_path / "root"
    grey_images(root, "cat/0.png", "cat/more/1.png", "dog/0.png", "dog/1.png")
    grey_images(root, "cat/.hidden/9.png", "dog/._0.png", ".cache/0.png", "__MACOSX/._0.png")
    grey_images(tmp_path / "elsewhere", "2.png", "deep/3.png")
    (root / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "bird").symlink_to(tmp_path / "elsewhere")
    data = load_data(f"imagefolder:{root}?size=8")
    assert data.classes == 3
    assert sum(len(split) for split in (data.train, data.validation, data.test)) == 8
    (root / "cat" / "around").symlink_to(root)
    with pytest.raises(DataError, match="around/cat: is a link to a folder around it"):
        load_data(f"imagefolder:{root}")
    (root / "cat" / "around").unlink()
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(DataError, match=r"gone\.png: is a link to nothing"):
        load_data(f"imagefolder:{root}")
    (root / "cat" / "gone.png").unlink()
    os.mkfifo(root / "cat" / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png: is not an ordinary file"):
        load_data(f"imagefolder:{root}")


def test_files_that_only_stand_for_what_git_lfs_holds(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name in ("all/0.png", "all/1.png", "all/2.png", "d.npz", "test_batch", "data_batch_1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(pointer)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(pointer)
    for spec in ("imagefolder:{}?size=8", "npz:{}/d.npz", "cifar10:{}", "fashion-mnist:{}"):
        with pytest.raises(DataError, match="Git LFS pointer, run git lfs pull"):
            load_data(spec.format(tmp_path))


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    path = tmp_path / "red" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    data = load_data(f"imagefolder:{tmp_path}?size=8&normalize=none")
    splits = (data.train, data.validation, data.test)
    with pytest.raises(DataError, match=r"red/0\.png: cannot be decoded"):
        [everything(split) for split in splits]


# -- Python files -------------------------------------------------------------------------------

TWO_INPUTS = """
import numpy as np

class Pairs:
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        if i >= self.n:
            raise IndexError(i)
        image = np.full((1, 4, 4), 51, dtype=np.uint8)
        return (image, np.array([i, i], dtype=np.int64)), np.int64(i % 3)

def make(split):
    return {"train": Pairs(30), "validation": Pairs(6)}.get(split)

def unlabelled(split):
    return [(np.ones(3), None)] * 10 if split == "train" else None
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TWO_INPUTS)
    return path


def test_a_callable_with_two_inputs(user_file: Path) -> None:
    data = load_data(f"{user_file}:make")
    assert (data.name, data.classes) == ("mine.py:make", 3)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [27, 3, 6]
    image, numbers = data.test.batch(np.array([4, 1]))
    assert (image.shape, image.dtype) == ((2, 1, 4, 4), np.float32)
    np.testing.assert_allclose(image, 0.2)
    np.testing.assert_array_equal(numbers, [[4, 4], [1, 1]])
    np.testing.assert_array_equal(data.test.labels, [0, 1, 2, 0, 1, 2])


def test_a_callable_without_labels(user_file: Path) -> None:
    data = load_data(f"{user_file}:unlabelled")
    assert data.classes is None
    assert everything(data.train).dtype == np.float32


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise RuntimeError('boom')", "failed: boom"),
        ("raise SystemExit(0)", "it called sys.exit(0)"),
        ("return None", "returned None"),
        ("return 3", "no len() or no [index]"),
        ("return []", "has no samples"),
        ("return [1, 2]", "expected a pair"),
        ("return [([1.0], 0), ([1.0], None)]", "1 of 2 samples have no label"),
        ("return [([1.0], 0.5)] * 4", "expected integers"),
        ("return [([1.0], -1)] * 4", "is negative"),
        ("return [('text', 0)] * 4", "expected numbers"),
    ],
)
def test_callables_that_fail(tmp_path: Path, body: str, expected: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(f"def make(split):\n    {body}\n")
    with pytest.raises(DataError) as caught:
        load_data(f"{path}:make")
    assert expected in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "raise SystemExit('usage: FILE')"])
def test_a_data_file_does_not_decide_how_hwprune_ends(tmp_path: Path, code: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(code)
    with pytest.raises(DataError, match=r"bad\.py: running it failed: .*sys\.exit"):
        load_data(f"{path}:make")
    lazily = (
        "import sys\nclass Items:\n    labels = [0] * 9\n    def __len__(self): return 9\n"
        "    def __getitem__(self, index): return ([1.0], 0) if index < 1 else sys.exit(0)\n"
        "def make(split): return Items() if split == 'train' else None\n"
    )
    path.write_text(lazily)
    with pytest.raises(DataError, match=r"sample \d+ failed: .*sys\.exit"):
        everything(load_data(f"{path}:make").train)


@pytest.mark.parametrize(
    "change", ["requires_grad_()", "bfloat16()", "half()", "double()", "to_sparse()", "conj()"]
)
def test_tensors_of_any_kind_are_samples_or_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "tensors.py"
    path.write_text(
        "import torch\nvalues = torch.arange(40.).reshape(20, 2)\n"
        f"def make(split): return [(row.clone().{change}, torch.tensor(0)) for row in values]\n"
    )
    if change == "to_sparse()":
        with pytest.raises(
            DataError, match=r"tensors\.py:make\('train'\): sample 0 cannot be turned"
        ):
            load_data(f"{path}:make")
        return
    values = everything(load_data(f"{path}:make").test)
    np.testing.assert_array_equal(values, np.arange(40.0).reshape(20, 2))


def test_a_data_file_may_import_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "hwprune_data_neighbour.py").write_text("ITEMS = [([1.0], 0)] * 9")
    path = tmp_path / "mine.py"
    path.write_text("from hwprune_data_neighbour import ITEMS\ndef make(split): return ITEMS\n")
    assert len(load_data(f"{path}:make").test) == 9


def test_samples_of_two_shapes_and_not_a_number(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "import numpy as np\n"
        "def shapes(split):\n    return [(np.ones(1 + i % 2), 0) for i in range(20)]\n"
        "def nan(split):\n    return [(np.full(2, np.nan), 0)] * 20\n"
    )
    with pytest.raises(DataError, match="differ in shape"):
        everything(load_data(f"{path}:shapes").train)
    with pytest.raises(DataError, match="NaN"):
        everything(load_data(f"{path}:nan").train)


def test_a_file_without_the_callable(user_file: Path) -> None:
    with pytest.raises(DataError, match=r"no callable 'made'; it has .*make"):
        load_data(f"{user_file}:made")
    user_file.write_text("1 / 0")
    with pytest.raises(DataError, match="ZeroDivisionError"):
        load_data(f"{user_file}:make")


# -- the real files, where somebody has them ----------------------------------------------------

REAL = Path(os.environ.get("HWPRUNE_DATA", "/nonexistent"))


@pytest.mark.skipif(
    not (REAL / "cifar-10-batches-py").is_dir(), reason="HWPRUNE_DATA has no cifar-10-batches-py"
)
def test_real_cifar10() -> None:
    data = load_data(f"cifar10:{REAL}")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [
        45000,
        5000,
        10000,
    ]
    assert data.test.labels is not None
    assert data.test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    sample = data.train.batch(np.arange(2000))[0]
    np.testing.assert_allclose(sample.mean(axis=(0, 2, 3)), 0, atol=0.05)


@pytest.mark.skipif(not (REAL / "FashionMNIST").is_dir(), reason="HWPRUNE_DATA has no FashionMNIST")
def test_real_fashion_mnist() -> None:
    data = load_data(f"fashion-mnist:{REAL}")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [
        54000,
        6000,
        10000,
    ]
    assert data.normalize == "own statistics (mean 0.286; std 0.353)"


def test_archives_that_would_fill_the_memory_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"short")
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = (2**31).to_bytes(4, "little")  # what it says to unpack to
    path.write_bytes(content)
    with pytest.raises(DataError, match="unpacks to 2,147,483,648 B"):
        load_data(f"npz:{path}")
