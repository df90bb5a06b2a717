"""Images in folders, one folder per class; decoded when they are asked for."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.frontend.sources.parts import (
    DataSource,
    PartName,
    StoredPart,
    count_classes,
    lfs_pointer,
)

DEFAULT_SIZE = 224
# At and below this size a network looks at whole images, above it at the middle of larger ones.
SMALL_SIZE = 64
_MAX_SIZE = 4096
_RESIZE_RATIO = 256 / 224
_KEEP_BYTES = 512 * 1024**2
_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
# What people call the folders of the parts: Train, testing, train2017, training_set, ...
_AFTER = r"(?:[ _-]?(?:set|data|images|split))?(?:[ _-]?\d+)?"
_FOLDERS: dict[PartName, re.Pattern[str]] = {
    "train": re.compile("train(?:ing)?" + _AFTER, re.I),
    "validation": re.compile("(?:val(?:id(?:ation|ate)?)?|dev|eval)" + _AFTER, re.I),
    "test": re.compile("test(?:ing)?" + _AFTER, re.I),
}
_HINT = (
    "expected DIR/train/CLASS/image.png with optional DIR/val and DIR/test of the same form, "
    "or DIR/CLASS/image.png"
)


def read_image_folder(folder: Path, *, size: int = DEFAULT_SIZE) -> DataSource:
    """Read folders of images as (3, size, size), red-green-blue, decoded on demand.

    Above 64 pixels the shorter side is resized to ``size * 256 / 224`` and the middle is cut out,
    as torchvision's ImageNet models are evaluated; at and below it is resized to ``size`` itself.
    Classes are the sorted folder names of train. A folder of images without class folders has no
    labels.

    Raises:
        DataError: no such folder, no images, or a class that train does not have.
    """
    if not 1 <= size <= _MAX_SIZE:
        raise DataError(f"size={size} is not between 1 and {_MAX_SIZE}", hint="write ?size=224")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder", hint=_HINT)
    if importlib.util.find_spec("PIL") is None:
        raise DataError(
            "imagefolder: Pillow, which decodes the images, is not installed",
            hint="pip install '.[compile]' in the checkout of hwprune",
        )
    roots, notes = _part_folders(folder)
    classes = _class_names(roots["train"])
    parts: dict[PartName, StoredPart] = {
        part: _read_part(root, classes, size=size) for part, root in roots.items()
    }
    return DataSource(
        "imagefolder",
        parts,
        count_classes(parts, where=str(folder)),
        augment="crop-flip" if size <= SMALL_SIZE else "none",
        notes=notes,
        class_names=classes,
        resize=f"resize the shorter side to {_shorter_side(size)} pixels (bilinear), cut {size} x "
        f"{size} out of the middle, red-green-blue",
    )


def _part_folders(folder: Path) -> tuple[dict[PartName, Path], tuple[str, ...]]:
    """Return the folder of each part (case does not matter), and notes.

    Raises:
        DataError: two folders for one part, or parts without train.
    """
    names = _class_names(folder)
    found = {
        part: [name for name in names if pattern.fullmatch(name)]
        for part, pattern in _FOLDERS.items()
    }
    used = [name for group in found.values() for name in group]
    if not found["train"]:
        if used and len(used) == len(names):
            raise DataError(
                f"{folder}: there are {', '.join(names)}, but no folder train", hint=_HINT
            )
        return {"train": folder}, ()  # a flat folder; a class may well be called "test" or "val"
    for part, group in found.items():
        if len(group) > 1:
            raise DataError(
                f"{folder}: {' and '.join(group)} could both be {part}", hint="leave one of them"
            )
    ignored = [name for name in names if name not in used]
    notes = (f"{folder}: folders that are no part were left out: {_few(ignored)}",)
    return {part: folder / group[0] for part, group in found.items() if group}, (
        notes if ignored else ()
    )


@dataclass(frozen=True, slots=True)
class ImagePart:
    """Images that lie in files.

    Attributes:
        paths: the files, in the order of the samples.
        labels: (n,) class indices, or None.
        size: height and width in pixels.
        kept: (n, 3, size, size) decoded images where all of them fit into 512 MiB, else None.
        known: (n,) True where ``kept`` holds the image already.
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64] | None
    size: int
    kept: NDArray[np.uint8] | None = field(default=None, repr=False)
    known: NDArray[np.bool_] | None = field(default=None, repr=False)
    lazy: bool = True

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return a 1-tuple of (b, 3, size, size) uint8.

        Raises:
            DataError: a file cannot be decoded.
        """
        if self.kept is None or self.known is None:
            return (np.stack([decode(self.paths[i], size=self.size) for i in indices]),)
        for index in indices:
            if not self.known[index]:
                self.kept[index] = decode(self.paths[index], size=self.size)
                self.known[index] = True
        return (self.kept[indices],)


def _shorter_side(size: int) -> int:
    return size if size <= SMALL_SIZE else round(size * _RESIZE_RATIO)


def decode(path: Path, *, size: int) -> NDArray[np.uint8]:
    """Decode an image to (3, size, size): resized, then cut out of the middle.

    Raises:
        DataError: the file cannot be decoded.
    """
    from PIL import Image

    shorter = _shorter_side(size)
    try:
        with Image.open(path) as opened:
            image = _eight_bits(opened).convert("RGB")
            width, height = image.size
            scale = shorter / min(width, height)
            resized = (max(round(width * scale), size), max(round(height * scale), size))
            if resized != image.size:
                image = image.resize(resized, Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: cannot be decoded: {lfs_pointer(path) or error}",
            hint="remove or replace this image",
        ) from error
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    box = (left, top, left + size, top + size)
    pixels: NDArray[np.uint8] = np.asarray(image.crop(box)).transpose(2, 0, 1)
    return pixels


def _eight_bits(image: Any) -> Any:
    """Return an image whose pixels are bytes; Pillow's own conversion clips deeper ones to white.

    Raises:
        ValueError: pixels of which nobody can say what white is.
    """
    from PIL import Image

    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"pixels of mode {image.mode}, expected 8 or 16 bits")
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _read_part(root: Path, classes: tuple[str, ...], *, size: int) -> ImagePart:
    if not classes:
        paths, labels = _images(root), None
        if not paths:
            raise DataError(f"{root}: there are no images here", hint=_HINT)
    else:
        paths, numbers = [], []
        for name in _class_names(root) or [""]:
            if name not in classes:
                raise DataError(
                    f"{root}: class folder {name!r} is not one of train's ({_few(classes)})",
                    hint="give every part the same class folders",
                )
            found = _images(root / name)
            if not found:
                raise DataError(f"{root / name}: there are no images here", hint=_HINT)
            paths += found
            numbers += [classes.index(name)] * len(found)
        labels = np.array(numbers, dtype=np.int64)
    shape = (len(paths), 3, size, size)
    if np.prod(shape, dtype=np.int64) > _KEEP_BYTES:
        return ImagePart(tuple(paths), labels, size)
    known = np.zeros(len(paths), dtype=np.bool_)
    return ImagePart(tuple(paths), labels, size, np.zeros(shape, dtype=np.uint8), known)


def _class_names(root: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and _shown(path)))


def _shown(path: Path) -> bool:
    return path.name[0] != "." and path.name != "__MACOSX"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _images(root: Path, above: frozenset[Path] = frozenset()) -> list[Path]:
    """Return the images below a folder, links followed, hidden files and folders left out.

    Raises:
        DataError: an image that is a link to nothing, or a folder that is linked into itself.
    """
    if not root.is_dir():
        return []
    above |= {root.resolve()}
    found = []
    for path in sorted(root.iterdir()):
        if not _shown(path):
            continue
        if path.is_dir():
            if path.resolve() in above:
                raise DataError(f"{path}: is a link to a folder around it", hint="remove the link")
            found += _images(path, above)
        elif path.suffix.lower() in _ENDINGS:
            if path.is_symlink() and not path.exists():
                raise DataError(
                    f"{path}: is a link to nothing", hint="fetch what it stands for, or remove it"
                )
            if not path.is_file():  # opening a pipe would wait for whoever writes to it
                raise DataError(f"{path}: is not an ordinary file", hint="remove it")
            found.append(path)
    return sorted(found)
