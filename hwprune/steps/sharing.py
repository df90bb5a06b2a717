"""The network whose layers share weights, beside the one that it came from.

Sharing comes before masks are planned, so all that follows sees a network with fewer tensors: its
bytes are counted, packed and verified like any other's. What the network was before stays at hand:
its dense file is what the result is compared with, and it is the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hwprune.errors import UsageError
from hwprune.ir import Masks, Plan, ValueType
from hwprune.steps.planning import Prepared, nothing_to_prune, prepare, pruning_plans
from hwprune.units import format_percent

if TYPE_CHECKING:
    from torch import nn

    from hwprune.extreme.sharing import Sharing

OFF, AUTO, STAGES = "off", "auto", "stages"

# Strategies of which sharing is a part.
_SHARING = ("east",)


def wishes_of(wishes: Sequence[str], strategy: str, *, trains: bool) -> tuple[str, ...]:
    """Return which layers are to share weights: what was asked for, else what the strategy does.

    Args:
        wishes: as ``--share-weights`` spells them: ``off``, ``auto`` or ``stages`` alone, or groups
            of names with commas between.
        strategy: a key of ``hwprune.sparsity.STRATEGIES``; empty where none is chosen yet.
        trains: whether the network is going to be trained.

    Returns:
        likewise; nothing for ``off``.

    Raises:
        UsageError: words and groups together, or a wish and no training.
    """
    words = [wish for wish in wishes if wish in (OFF, AUTO, STAGES)]
    if words and len(wishes) > 1:
        raise UsageError(
            f"--share-weights {words[0]} and other values: {', '.join(wishes)}",
            hint="give off, auto, stages, or groups of parameters such as a.weight,b.weight",
        )
    if OFF in words:
        return ()
    if wishes and not trains:
        raise UsageError(
            "layers that come to share weights have to be trained, and there is nothing to do it",
            hint="give --data and --epochs above 0, or leave --share-weights out",
        )
    return tuple(wishes) or ((AUTO,) if trains and strategy in _SHARING else ())


def with_shared_weights(
    prepared: Prepared, wishes: Sequence[str]
) -> tuple[Prepared, tuple[str, ...]]:
    """Return the network with shared weights, and sentences about it.

    Args:
        prepared: the network as it is; its module is not changed.
        wishes: as ``wishes_of`` returns them.

    Raises:
        UsageError: a group that cannot share, or residual stages were asked for and there are none.
        ExportError: the network cannot be expressed for the target.
    """
    if not wishes:
        return prepared, ()
    module, sharing = _shared(prepared, wishes)
    if not sharing:
        return prepared, ("no stage has three blocks alike: no weights are shared",)
    again = prepare(replace(prepared.model, module=module), prepared.target, prepared.budget_bytes)
    layers = sum(1 + len(shared.users) for shared in sharing.tensors)
    note = (
        f"{layers} layers share {len(sharing.tensors)} tensors, each layer with a learnt scalar: "
        f"{sharing.saved:,} weights fewer; the file holds each shared tensor once"
    )
    whole = replace(
        again,
        dense_bytes=prepared.dense_bytes,
        unshared=prepared.model.module,
        saved_weights=sharing.saved,
    )
    return whole, (note,)


def left_unshared(prepared: Prepared, wishes: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence where the dense network is written although layers were to share.

    Raises:
        UsageError: as ``with_shared_weights``: a wrong name is one whatever fits.
    """
    if wishes and _shared(prepared, wishes)[1]:
        return ("weights are not shared: the dense network fits",)
    return ()


def planned(
    prepared: Prepared, wishes: Sequence[str], kinds: tuple[ValueType, ...], *, asked: bool
) -> tuple[Prepared, dict[ValueType, Plan], tuple[str, ...]]:
    """Return the network with shared weights, a plan per value type, and sentences about it.

    Args:
        prepared: the network as it is; its module is not changed.
        wishes: as ``wishes_of`` returns them.
        kinds: value types.
        asked: whether the user wished it; else nothing is shared where everything would fit then.

    Raises:
        UsageError: as ``with_shared_weights``, or nothing would be pruned, and so nothing trained.
        ExportError: the network cannot be expressed for the target.
        InfeasibleError: the floor is above the budget.
    """
    whole, notes = with_shared_weights(prepared, wishes)
    plans = pruning_plans(whole, kinds)
    if not plans and whole.saved_weights and not asked:
        whole, notes = prepared, ("weights are not shared: all of them would fit, untrained",)
        plans = pruning_plans(whole, kinds)
    if not plans:
        raise nothing_to_prune(whole)
    return whole, plans, notes


def unshared_sparsity(prepared: Prepared, masks: Masks) -> tuple[str, ...]:
    """Return a sentence that counts what lives against the network before it shared."""
    if not prepared.saved_weights:
        return ()
    every = prepared.weights + prepared.saved_weights
    sparse = format_percent(1 - masks.nonzeros / every)
    return (f"{masks.nonzeros:,} of the {every:,} weights before sharing live ({sparse} sparse)",)


def _shared(prepared: Prepared, wishes: Sequence[str]) -> tuple[nn.Module, Sharing]:
    """Return a copy of the module that shares as wished, and what: with auto, maybe nothing."""
    from hwprune.extreme.sharing import share

    groups = None
    if wishes[0] not in (AUTO, STAGES):
        groups = [[name.strip() for name in wish.split(",")] for wish in wishes]
    module = copy.deepcopy(prepared.model.module)
    sharing = share(module, groups=groups, pretrained=prepared.model.trained)
    if not sharing and AUTO not in wishes:
        raise UsageError(
            f"nothing of {prepared.model.name} can be shared: no stage has three blocks alike",
            hint="name parameters: --share-weights layer1.1.weight,layer1.2.weight",
        )
    return module, sharing
