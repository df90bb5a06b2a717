"""One file that holds a tree of tensors and plain values: what a checkpoint of a run is made of.

The file is valid safetensors: dicts, lists, numbers and strings are JSON in its metadata, the
memory of each tensor is one flat entry, and the last entry is the SHA-256 of every byte before it.
Nothing in it is ever executed. It is written and read as a stream, one tensor in memory at a time
beside those that are kept, and takes its name only when it is whole and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from hwprune.errors import CheckpointError, HwpruneError
from hwprune.files import replacing

_FORMAT = "hwprune run 1"
_DIGEST = "sha256"
# A header is a few hundred bytes per tensor: more than this is not one.
_MAX_HEADER = 1 << 28
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_state(path: Path, tree: Any) -> None:
    """Write a tree, whole or not at all: a file that was there stays until the new one is safe.

    Args:
        path: the file; its folder exists.
        tree: dicts (keys are strings or integers), lists, tuples, numbers, strings, None, tensors
            and NumPy arrays. A tensor keeps its memory order.

    Raises:
        OSError: no space, no permission; the new file is taken away again.
        HwpruneError: a value of another kind (a bug).
    """
    tensors: dict[str, torch.Tensor] = {}
    encoded = json.dumps(_encode(tree, "", tensors))
    header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, "tree": encoded}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = _entry(_NAMES[tensor.dtype], tensor.numel(), start, end)
    header[_DIGEST] = _entry("U8", 32, end, end + 32)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as stream:
        digest = hashlib.sha256()
        for piece in (len(text).to_bytes(8, "little"), text):
            digest.update(piece)
            stream.write(piece)
        for tensor in tensors.values():
            memory = _memory(tensor)
            digest.update(memory)
            stream.write(memory)
        stream.write(digest.digest())


def read_state(path: Path) -> Any:
    """Read a tree back: tensors are on the CPU, in the memory order that they were written in.

    Raises:
        CheckpointError: it cannot be read, was cut off, changed, or is something else.
    """
    try:
        with path.open("rb") as stream:
            return _read(stream)
    except OSError as error:
        raise _damaged(path, str(error.strerror or error)) from None
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise _damaged(path, str(error) or type(error).__name__) from None


def _read(stream: BinaryIO) -> Any:
    digest = hashlib.sha256()
    length = _exactly(stream, 8)
    size = int.from_bytes(length, "little")
    if size > _MAX_HEADER:
        raise ValueError("it is not a checkpoint of hwprune")
    text = _exactly(stream, size)
    digest.update(length)
    digest.update(text)
    header = json.loads(text)
    metadata = header.pop("__metadata__")
    if metadata["format"] != _FORMAT:
        raise ValueError(f"its format is {metadata['format']!r}, expected {_FORMAT!r}")
    rest = os.fstat(stream.fileno()).st_size - stream.tell()
    tensors: dict[str, torch.Tensor] = {}
    end = 0
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        (count,) = entry["shape"]
        dtype = _DTYPES[entry["dtype"]]
        if start != end or stop - start != count * dtype.itemsize or stop > rest:
            raise ValueError("it was cut off" if stop > rest else "its header is wrong")
        end = stop
        if name == _DIGEST:
            break
        tensors[name] = torch.empty(count, dtype=dtype)
        memory = _memory(tensors[name])
        if stream.readinto(memory) != len(memory):  # type: ignore[attr-defined]
            raise ValueError("it was cut off")
        digest.update(memory)
    if _exactly(stream, 32) != digest.digest():
        raise ValueError("its checksum is wrong")
    return _decode(json.loads(metadata["tree"]), tensors)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise ValueError("it was cut off")
    return data


def _entry(dtype: str, count: int, start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [count], "data_offsets": [start, end]}


def _encode(value: Any, at: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a value as JSON; tensors go into ``tensors`` under the path that leads to them."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"array": _encode(torch.from_numpy(np.ascontiguousarray(value)), at, tensors)}
    if isinstance(value, torch.Tensor) and value.dtype in _NAMES and not value.is_sparse:
        tensor = value.detach()
        if torch.empty_like(tensor, device="meta").stride() != tensor.stride():
            tensor = tensor.contiguous()  # it has gaps or overlaps
        tensors[at] = tensor
        return {"tensor": at, "shape": list(tensor.shape), "stride": list(tensor.stride())}
    if isinstance(value, Mapping) and all(isinstance(key, (str, int)) for key in value):
        items = [[key, _encode(part, f"{at}/{key}", tensors)] for key, part in value.items()]
        return {"items": items}
    if isinstance(value, (list, tuple)):
        parts = [_encode(part, f"{at}/{number}", tensors) for number, part in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    raise HwpruneError(f"a checkpoint cannot hold the {type(value).__name__} at {at!r}")


def _decode(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(part, tensors) for part in node]
    if not isinstance(node, dict):
        return node
    if "items" in node:
        return {key: _decode(part, tensors) for key, part in node["items"]}
    if "tuple" in node:
        return tuple(_decode(part, tensors) for part in node["tuple"])
    if "array" in node:
        return _decode(node["array"], tensors).numpy()
    return torch.as_strided(tensors[node["tensor"]], node["shape"], node["stride"])


def _memory(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor without gaps, as they lie in memory (a copy from a device)."""
    flat = torch.as_strided(tensor, (tensor.numel(),), (1,)).cpu()
    return flat.view(torch.uint8).numpy().data


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} cannot be read: {why}",
        hint="run without --resume to start anew; the new run replaces it",
    )
