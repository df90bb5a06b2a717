"""Data sources: from ``--data SPEC`` to train, validation and test.

    digits                     the 1,797 handwritten digits that scikit-learn ships
    cifar10:DIR  cifar100:DIR  the authors' Python archive, unpacked
    fashion-mnist:DIR          idx files, packed or not
    imagefolder:DIR            DIR/train/CLASS/*.png (val/ and test/ optional), or DIR/CLASS/*.png
    npz:FILE                   arrays x, y, and optionally x_val, y_val, x_test, y_test; x.NAME and
                               y.NAME where there are several
    FILE.py:CALLABLE           callable(split) -> data set of (input or tuple, label or None)

Labels are class indices; for another task any array, or a dictionary or tuple of arrays.

Options follow a question mark and are joined by ``&``:
``normalize=none|raw255|imagenet|cifar10|MEAN/STD`` and, for imagefolder, ``size=PIXELS`` (224).
``none`` scales images to 0..1 and leaves floats as they are; ``raw255`` passes stored values on
unscaled; MEAN/STD counts on the 0..1 scale of images and has one number per channel, or one for
all: ``0.49,0.48,0.45/0.25,0.24,0.26``. The default is the data set's own statistics (of train, per
channel); a callable's data are taken as they come.

Where a source has no test part, what it holds out as validation becomes test; where it holds out
nothing, a fixed fifth of train. Where no validation part is left, it is a tenth of train, by seed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from hwprune.errors import DataError
from hwprune.frontend import sources
from hwprune.frontend.sources.image_folder import DEFAULT_SIZE
from hwprune.frontend.sources.normalize import make_normalizer
from hwprune.frontend.sources.parts import DataSource
from hwprune.frontend.sources.splits import NormalizedSplit, with_test, with_validation
from hwprune.ir import Data
from hwprune.tasks import CLASSIFICATION, Task

_PATH_SOURCES: Mapping[str, Callable[[Path], DataSource]] = {
    "cifar10": sources.read_cifar10,
    "cifar100": sources.read_cifar100,
    "fashion-mnist": sources.read_fashion_mnist,
}
_KINDS = ("digits", *_PATH_SOURCES, "imagefolder", "npz")
_PYTHON = re.compile(r"(?P<path>.+\.py):(?P<attribute>[^:/]+)")
_QUERY = re.compile(r"(?P<base>.*?)\?(?P<query>[a-z]+=[^?]*)")
_HINT = (
    "write digits, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, imagefolder:DIR, npz:FILE or "
    "path/to/file.py:callable"
)


def load_data(spec: str, *, seed: int = 0, task: Task = CLASSIFICATION) -> Data:
    """Read the data that ``spec`` names.

    Args:
        spec: see the head of this file.
        seed: decides which tenth of train is validation, where the source has none.
        task: says whether labels are class indices.

    Raises:
        DataError: the specification is not understood, or the data cannot be used.
    """
    base, options = _parse_options(spec)
    source = _read(base, options, classes=task.takes_classes)
    tested, test_notes = with_test(source.parts, where=source.name)
    # Statistics of train before validation leaves it, so that no number of them depends on the
    # seed.
    normalizer, normalize_notes = make_normalizer(
        options.get("normalize", source.default_normalize),
        train=tested["train"],
        full_scale=source.full_scale,
        where=source.name,
    )
    parts, validation_notes = with_validation(tested, seed=seed, where=source.name)
    splits = {
        name: NormalizedSplit(part, normalizer, f"{source.name} ({name})", part.labels)
        for name, part in parts.items()
    }
    return Data(
        name=source.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        classes=source.classes,
        normalize=normalizer.words,
        augment=source.augment,
        notes=source.notes + test_notes + validation_notes + normalize_notes,
        preprocessing=splits["train"].preprocessing(source.resize),
        class_names=source.class_names,
    )


def check_labels(data: Data, *, outputs: int) -> None:
    """Refuse data with more classes than the network has outputs.

    Raises:
        DataError: names the highest label and the number of outputs.
    """
    splits = (data.train, data.validation, data.test)
    highest = max(
        (int(split.labels.max()) for split in splits if split.labels is not None), default=-1
    )
    if highest >= outputs:
        raise DataError(
            f"{data.name}: label {highest} is out of range; the network has {outputs} outputs, "
            f"for the labels 0 to {outputs - 1}",
            hint="one output that says yes or no is trained by --task multilabel; a class index"
            " needs one output per class"
            if outputs == 1 and highest == 1
            else "check that the data set and the network belong together",
        )


def _read(base: str, options: Mapping[str, str], *, classes: bool) -> DataSource:
    kind, _, path = base.partition(":")
    python = _PYTHON.fullmatch(base)
    if kind not in _KINDS and python is None:
        close = difflib.get_close_matches(kind, _KINDS, n=1)
        raise DataError(
            f"--data: {base!r} is not a data source",
            hint=f"did you mean {close[0]}?" if close else _HINT,
        )
    known = {"normalize", "size"} if kind == "imagefolder" else {"normalize"}
    for key in options:
        if key not in known:
            raise DataError(
                f"--data: {kind} has no option {key!r}", hint=f"it has {', '.join(sorted(known))}"
            )
    if kind == "digits":
        if ":" in base:
            raise DataError(f"--data: {base!r}: digits has no folder", hint="write --data digits")
        return sources.read_digits()
    if kind not in _KINDS:
        assert python is not None  # checked above
        path_of = Path(python["path"]).expanduser()
        return sources.read_python_file(path_of, python["attribute"], classes=classes)
    if not path:
        raise DataError(f"--data: {base!r} names no folder or file", hint=_HINT)
    where = Path(path).expanduser()
    if kind == "imagefolder":
        return sources.read_image_folder(where, size=_parse_size(options.get("size")))
    if kind == "npz":
        return sources.read_npz(where, classes=classes)
    return _PATH_SOURCES[kind](where)


def _parse_size(text: str | None) -> int:
    if text is None:
        return DEFAULT_SIZE
    if not text.isdecimal():
        raise DataError(f"--data: size={text} is not a number of pixels", hint="write ?size=224")
    return int(text)


def _parse_options(spec: str) -> tuple[str, dict[str, str]]:
    match = _QUERY.fullmatch(spec)
    if match is None:
        return spec, {}
    options: dict[str, str] = {}
    for item in match["query"].split("&"):
        key, equals, value = item.partition("=")
        if not equals or not value:
            raise DataError(f"--data: {item!r} is not an option", hint="write ?normalize=imagenet")
        if key in options:
            raise DataError(f"--data: the option {key} is given twice", hint="give it once")
        options[key] = value
    return match["base"], options
