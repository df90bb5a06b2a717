"""From what a checkpoint holds to a plain state dict of finite float32 tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hwprune.errors import ModelError
from hwprune.frontend.archive import SAVE_AGAIN
from hwprune.units import format_count

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")

_SHOWN = 5


def unwrap(payload: Any, path: str) -> tuple[Any, tuple[str, ...]]:
    """Take the state dict (or the module) out of a training checkpoint's dictionary."""
    notes: list[str] = []
    while isinstance(payload, Mapping) and not _has_tensors(payload):
        key = next((key for key in WRAPPERS if key in payload), None)
        if key is None:
            break
        notes.append(f"the weights were taken from {path}'s entry {key!r}")
        payload = payload[key]
    return payload, tuple(notes)


def clean(payload: Any, path: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Make a state dict that hwprune can work with.

    Prefixes that wrappers add are removed, torch.nn.utils.prune's pairs multiplied, floats turned
    into float32. Each change is a note.

    Raises:
        ModelError: no tensors, tensors of an unusual kind, NaN or infinity.
    """
    if not isinstance(payload, Mapping) or not _has_tensors(payload):
        held = (
            f"a dictionary with {', '.join(map(repr, list(payload)[:_SHOWN])) or 'nothing'}"
            if isinstance(payload, Mapping)
            else f"an object of type {type(payload).__name__}"
        )
        raise ModelError(f"{path} holds {held}, expected a state dict of tensors", hint=SAVE_AGAIN)
    state = {str(key): value for key, value in payload.items() if isinstance(value, Tensor)}
    notes: list[str] = []
    left_out = [str(key) for key, value in payload.items() if not isinstance(value, Tensor)]
    if left_out:
        notes.append(f"entries that are not tensors were left out: {_some(left_out)}")
    state = _without_prefixes(state, notes)
    state = _merge_masks(state, notes)
    _check_layout(state, path)
    state = _to_float32(state, notes)
    check_finite(state, path)
    return state, tuple(notes)


def check_finite(state: Mapping[str, Any], path: str) -> None:
    """Raise ModelError where a weight is NaN or infinite."""
    bad = []
    for name, tensor in state.items():
        # A TorchScript archive may hold packed objects among its tensors.
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not tensor.numel():
            continue
        # NaN and infinity both show in the extremes, which need no second tensor of this size.
        lowest, highest = torch.aminmax(tensor)
        if not bool(torch.isfinite(lowest) & torch.isfinite(highest)):
            count = tensor.numel() - int(torch.isfinite(tensor).sum())
            bad.append(f"{name} ({count:,} of {tensor.numel():,})")
    if bad:
        raise ModelError(
            f"{path} has weights that are NaN or infinite: {_some(bad)}",
            hint="the training diverged before it was saved; give an earlier checkpoint",
        )


def _has_tensors(payload: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in payload.values())


def _without_prefixes(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    while True:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            return state
        notes.append(f"the prefix {prefix!r} was removed from the keys of the state dict")
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def _merge_masks(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """torch.nn.utils.prune keeps weight_orig and weight_mask in place of weight."""
    masked = [
        key.removesuffix("_orig")
        for key in state
        if key.endswith("_orig") and key.removesuffix("_orig") + "_mask" in state
    ]
    if not masked:
        return state
    merged: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removesuffix("_orig").removesuffix("_mask")
        if name not in masked:
            merged[key] = value
        elif key.endswith("_orig"):
            merged[name] = value * state[f"{name}_mask"]
    notes.append(
        f"the masks of torch.nn.utils.prune were applied to {format_count(len(masked), 'tensor')}"
    )
    return merged


def _check_layout(state: Mapping[str, Tensor], path: str) -> None:
    odd = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')}, {tensor.layout})"
        for name, tensor in state.items()
        if tensor.is_quantized
        or tensor.layout != torch.strided
        or tensor.is_complex()
        or tensor.is_meta
    ]
    if odd:
        raise ModelError(
            f"{path} holds tensors that are quantised, sparse, complex or empty: {_some(odd)}",
            hint="save the float model's state dict; hwprune quantises and packs it itself",
        )


def _to_float32(state: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    other = sorted(
        {
            str(tensor.dtype).removeprefix("torch.")
            for tensor in state.values()
            if tensor.is_floating_point() and tensor.dtype != torch.float32
        }
    )
    if not other:
        return dict(state)
    notes.append(f"weights stored as {' and '.join(other)} were converted to float32")
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def _some(items: Iterable[str]) -> str:
    items = list(items)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
