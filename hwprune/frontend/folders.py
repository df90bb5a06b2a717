"""Folders as MODEL: what Hugging Face's ``save_pretrained`` writes, and a run's ``checkpoint``."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from hwprune.errors import ModelError
from hwprune.files import read_ordinary
from hwprune.frontend.torchvision_shim import make_importable
from hwprune.frontend.user_code import running

# The run's own name first; then what transformers, timm, diffusers and open_clip write.
_WEIGHTS = (
    "weights.safetensors", "model.safetensors", "diffusion_pytorch_model.safetensors",
    "open_clip_model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin",
)  # fmt: skip
_LARGEST_JSON = 64 * 1024**2


def weight_files(folder: Path) -> tuple[str, ...]:
    """Return the files that hold the weights of a model's folder: one, or the shards of an index.

    Raises:
        ModelError: none is there, or the index names what lies elsewhere.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return (str(folder / name),)
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = _json(index).get("weight_map")
            names = set(shards.values()) if isinstance(shards, dict) and shards else {""}
            if not all(isinstance(n, str) and n and Path(n).name == n for n in names):
                raise ModelError(f"{index} does not map tensors to files beside it")
            if missing := [name for name in sorted(names) if not (folder / name).is_file()]:
                raise ModelError(
                    f"{index} names {missing[0]}, which is not beside it",
                    hint=f"{len(missing)} of {len(names)} files are missing: copy them, too",
                )
            return tuple(str(folder / shard) for shard in sorted(names))
    raise ModelError(
        f"{folder} is a folder, and holds none of {', '.join(_WEIGHTS[:2])}, {_WEIGHTS[4]}",
        hint="give the model file in it",
    )


def named_arch(folder: Path) -> str | None:
    """Return the ``--arch`` that the folder's config.json stands for, None where there is none.

    timm's configurations name one of its networks, transformers' a class that reads the rest.
    """
    if not (folder / "config.json").is_file():
        return None
    config = _json(folder / "config.json")
    timm, classes = config.get("architecture"), config.get("num_classes")
    if isinstance(timm, str):
        return f"timm:{timm}" + (f"(num_classes={classes})" if isinstance(classes, int) else "")
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return f"transformers:{named[0]}"
    return None


def build_transformers(name: str, folder: Path) -> Any:
    """Build a class of transformers with random weights from a folder's config.json.

    Nothing is downloaded, and no code beside transformers' own is run.

    Raises:
        ModelError: transformers is not installed, or has no such class.
    """
    transformers = _transformers(name, folder)
    config = transformers.AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    return getattr(transformers, name)(config)


def read_transformers(name: str, folder: Path) -> dict[str, Any]:
    """Return the weights as transformers reads them: it renames what older versions wrote.

    Raises:
        ModelError: it cannot read them, or some are missing.
    """
    transformers = _transformers(name, folder)
    with running(f"{folder} cannot be read by transformers {transformers.__version__}", ModelError):
        model, info = getattr(transformers, name).from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{folder} lacks weights of {name}: {', '.join(missing[:5])}",
            hint="name the network whose weights it holds: --arch path/to/file.py:callable",
        )
    state: dict[str, Any] = model.state_dict()
    return state


def _transformers(name: str, folder: Path) -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(
            f"{folder} holds a {name} of transformers, which is not installed",
            hint="pip install transformers, or name a builder: --arch path/to/file.py:callable",
        )
    make_importable()  # transformers imports torchvision where it is there
    transformers: Any = importlib.import_module("transformers")
    if not isinstance(getattr(transformers, name, None), type):
        raise ModelError(
            f"{folder}: transformers {transformers.__version__} has no {name}",
            hint="install the transformers that it was saved with, or give --arch FILE.py:callable",
        )
    return transformers


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_ordinary(path, most=_LARGEST_JSON).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not what a model's folder holds: no mapping")
    return content
