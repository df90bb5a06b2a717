"""The network whose layers share weights, beside the one that it came from.

Sharing comes before masks are planned, so all that follows sees a network with fewer tensors: its
bytes are counted, packed and verified like any other's. What the network was before stays at hand:
its dense file is what the result is compared with, and it is the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from hwprune.errors import UsageError
from hwprune.ir import Masks
from hwprune.steps.planning import Prepared, prepare
from hwprune.units import format_percent

OFF, AUTO, STAGES = "off", "auto", "stages"

# Strategies of which sharing is a part.
_SHARING = ("east",)


def wishes_of(wishes: Sequence[str], strategy: str, *, trains: bool) -> tuple[str, ...]:
    """Return which layers are to share weights: what was asked for, else what the strategy does.

    Args:
        wishes: as ``--share-weights`` spells them: ``off``, ``auto`` or ``stages`` alone, or groups
            of names with commas between.
        strategy: a key of ``hwprune.sparsity.STRATEGIES``.
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
    from hwprune.training.sharing import share

    if not wishes:
        return prepared, ()
    groups = None
    if wishes[0] not in (AUTO, STAGES):
        groups = [[name.strip() for name in wish.split(",")] for wish in wishes]
    module = copy.deepcopy(prepared.model.module)
    sharing = share(module, groups=groups, pretrained=prepared.model.trained)
    if not sharing and AUTO in wishes:
        return prepared, ("no stage has three blocks alike: no weights are shared",)
    if not sharing:
        raise UsageError(
            f"nothing of {prepared.model.name} can be shared: no stage has three blocks alike",
            hint="name parameters: --share-weights layer1.1.weight,layer1.2.weight",
        )
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


def unshared_sparsity(prepared: Prepared, masks: Masks) -> tuple[str, ...]:
    """Return a sentence that counts what lives against the network before it shared."""
    if not prepared.saved_weights:
        return ()
    every = prepared.weights + prepared.saved_weights
    sparse = format_percent(1 - masks.nonzeros / every)
    return (f"{masks.nonzeros:,} of the {every:,} weights before sharing live ({sparse} sparse)",)
