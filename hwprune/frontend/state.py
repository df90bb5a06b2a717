"""From what a checkpoint holds to a plain state dict of finite float32 tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hwprune.errors import ModelError
from hwprune.frontend.archive import SAVE_AGAIN
from hwprune.frontend.pickled import Inert, module_state, unsafe_error
from hwprune.units import format_count

# The entries of training checkpoints that hold weights, the usual ones first.
WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights",
    "params",
)  # fmt: skip
_AVERAGED = re.compile(r"(?:.*_)?(?:ema|swa)(?:_.*)?")
_NO_WEIGHTS = re.compile(r".*(?:optim|sched|scaler|rng|callback|loop|hyper_?param|config|args).*")
PREFIXES = ("module.", "_orig_mod.")
# What quantisation-aware training hangs beside the weights.
_OBSERVERS = re.compile(r".*\b(?:activation_post_process|weight_fake_quant|fake_quant_enabled)\b.*")

_SHOWN = 5
# Repeated elements (a stride of 0) take no room in a file, and all of it when they are used.
_MOST_REPEATED = 2**26


def unwrap(payload: Any, path: str, entry: str | None = None) -> tuple[Any, tuple[str, ...]]:
    """Take the state dict (or the module) out of a training checkpoint's dictionary.

    Where there are both, a moving average is taken before the weights that it was made of: it is
    what trainers measure and publish.

    Args:
        payload: what the file holds.
        path: for notes and errors.
        entry: the entry that the user asked for; of a plain state dict, a prefix of its keys.

    Raises:
        ModelError: no such entry, or several that could be meant.
    """
    notes: list[str] = []
    seen: set[int] = set()
    while isinstance(payload, Mapping) and id(payload) not in seen:
        seen.add(id(payload))
        held = [key for key, value in payload.items() if _holds_weights(key, value)]
        if entry is None or entry in payload:
            key = _most_usual(payload, held, path) if entry is None else entry
        elif inside := {k: v for k, v in payload.items() if str(k).startswith(f"{entry}.")}:
            payload = inside
            notes.append(f"of the weights in {path} those below {entry!r} were taken (--entry)")
            entry = None
            break
        elif len(held) == 1:  # it may be below what trainers wrap weights in
            key = held[0]
        else:
            raise ModelError(
                f"{path} has no entry {entry!r}; it holds {_some(map(str, held or payload))}",
                hint="leave --entry out, or name one of these",
            )
        if key is None:
            break
        others = [str(other) for other in held if other != key]
        why = f"the weights were taken from {path}'s entry {key!r}"
        if entry == key:
            why += " (--entry)"
        elif _AVERAGED.fullmatch(str(key)) and others:
            why += f", a moving average of them (--entry {others[0]} takes the others)"
        notes.append(why)
        payload, entry = payload[key], None if entry == key else entry
    if entry is not None:
        raise ModelError(f"{path} has no entry {entry!r}", hint="leave --entry out")
    return payload, tuple(notes)


def _most_usual(payload: Mapping[Any, Any], held: list[Any], path: str) -> Any:
    averaged = [key for key in held if _AVERAGED.fullmatch(str(key))]
    if averaged:
        return averaged[0]
    usual = next((key for key in WRAPPERS if key in held), None)
    if usual is not None or not held or _has_tensors(payload):
        return usual
    if len(held) > 1:
        raise ModelError(
            f"{path} holds several sets of weights: {_some(map(str, held))}",
            hint=f"say which, as --entry {held[0]}",
        )
    return held[0]


def _holds_weights(key: object, value: object, seen: set[int] | None = None) -> bool:
    if not isinstance(key, str) or _NO_WEIGHTS.fullmatch(key.lower()):
        return False
    if isinstance(value, Mapping):
        seen = set() if seen is None else seen
        new = id(value) not in seen  # a pickle may hold one dictionary many times, itself included
        seen.add(id(value))
        inner = new and any(_holds_weights(*pair, seen) for pair in value.items())
        return inner or _has_tensors(value)
    return isinstance(value, nn.Module) or module_state(value) is not None


def _has_tensors(payload: Mapping[Any, Any]) -> bool:
    """Return whether there are weights among the entries, and not only a step or a loss."""
    return any(isinstance(v, Tensor) and v.ndim and isinstance(k, str) for k, v in payload.items())


def clean(
    payload: Any, path: str, foreign: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Make a state dict that hwprune can work with.

    Prefixes that wrappers add are removed, torch.nn.utils.prune's pairs multiplied, floats turned
    into float32. Each change is a note.

    Args:
        payload: what `unwrap` found.
        path: for errors.
        foreign: the names that `pickled.read` did not import.

    Raises:
        UnsafeModelError: an object that only running the file's code would bring back.
        ModelError: no tensors, tensors of an unusual kind, NaN or infinity.
    """
    held = list(payload.values()) if isinstance(payload, Mapping) else [payload]
    if any(isinstance(value, Inert) for value in held):
        raise unsafe_error(path, foreign)
    if not isinstance(payload, Mapping) or not any(isinstance(value, Tensor) for value in held):
        what = (
            f"a dictionary with {', '.join(map(repr, list(payload)[:_SHOWN])) or 'nothing'}"
            if isinstance(payload, Mapping)
            else f"an object of type {type(payload).__name__}"
        )
        raise ModelError(f"{path} holds {what}, expected a state dict of tensors", hint=SAVE_AGAIN)
    state = {str(key): value for key, value in payload.items() if isinstance(value, Tensor)}
    notes: list[str] = []
    _check_kind(payload, path)
    left_out = [str(key) for key in payload if str(key) not in state]
    if left_out:
        notes.append(f"entries that are not tensors were left out: {_some(left_out)}")
    observers = [key for key in state if _OBSERVERS.fullmatch(key)]
    if observers:
        state = {key: value for key, value in state.items() if key not in set(observers)}
        notes.append(
            "what quantisation-aware training watched was left out: "
            + format_count(len(observers), "tensor")
        )
    if "n_averaged" in state and all(k.startswith("module.") for k in state if k != "n_averaged"):
        del state["n_averaged"]  # torch.optim.swa_utils.AveragedModel
    state = _without_prefixes(state, notes)
    state = {
        key: value.to_dense() if value.layout in _SPARSE else value for key, value in state.items()
    }
    state = _merge_masks(state, notes)
    state = _to_float32(state, notes)
    check_finite(state, path)
    return state, tuple(notes)


def check_finite(state: Mapping[str, Any], path: str) -> None:
    """Raise ModelError where a weight is NaN or infinite."""
    bad = []
    for name, tensor in state.items():
        # A TorchScript archive may hold packed objects among its tensors.
        if not isinstance(tensor, Tensor) or is_lazy(tensor):
            continue
        if not tensor.is_floating_point() or not tensor.numel():
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


_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def _check_kind(payload: Mapping[Any, Any], path: str) -> None:
    odd = []
    for name, tensor in payload.items():
        if "_packed_params" in str(name):
            raise unsafe_error(path, (f"torch.ao.quantization: {name}",))
        if not isinstance(tensor, Tensor):
            continue
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            raise unsafe_error(path, (f"{type(tensor).__module__}.{type(tensor).__name__}",))
        kind = str(tensor.dtype).removeprefix("torch.")
        if (
            tensor.is_quantized
            or tensor.is_meta
            or tensor.is_nested
            or tensor.layout not in (torch.strided, *_SPARSE)
            or re.match(r"bits|float4|u?int[1-7]$", kind)
        ):
            odd.append(f"{name} ({kind}, {tensor.layout})")
    if odd:
        raise ModelError(
            f"{path} holds tensors that are quantised or empty: {_some(odd)}",
            hint="save the float model's state dict; hwprune quantises and packs it itself",
        )
    check_memory(payload, path)


def check_memory(payload: Mapping[Any, Any], path: str) -> None:
    """Refuse tensors that take far more memory when they are used than they take in the file.

    Raises:
        ModelError: expanded or sparse tensors of very many elements.
    """
    repeated = sum(
        tensor.numel()
        for tensor in payload.values()
        if isinstance(tensor, Tensor)
        and not is_lazy(tensor)
        and (
            tensor.layout != torch.strided
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        )
    )
    if repeated > _MOST_REPEATED:
        raise ModelError(
            f"{path} holds tensors of {repeated:,} elements that take no room in the file",
            hint="save the model again, each tensor with .clone()",
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
