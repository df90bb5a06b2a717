"""Layers that share weights: which ones are to, and the network in which they do.

Sharing comes before masks are planned, so all that follows sees a network with fewer tensors: its
bytes are counted, packed and verified like any other's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hwprune.errors import UsageError
from hwprune.ir import Model
from hwprune.sparsity import STRATEGIES

if TYPE_CHECKING:
    from hwprune.extreme.sharing import Sharing

OFF, AUTO, STAGES = "off", "auto", "stages"


def resolve_sharing(asked: Sequence[str], strategy: str, *, trains: bool) -> tuple[str, ...]:
    """Return which layers are to share weights: what was asked for, else what the strategy does.

    Args:
        asked: as ``--share-weights`` spells it: ``off``, ``auto`` or ``stages`` alone, or groups of
            names with commas between.
        strategy: a key of ``hwprune.sparsity.STRATEGIES``; empty where none is chosen yet.
        trains: whether the network is going to be trained.

    Returns:
        likewise; nothing for ``off``.

    Raises:
        UsageError: words and groups together, or layers that are to share and no training.
    """
    words = [each for each in asked if each in (OFF, AUTO, STAGES)]
    if words and len(asked) > 1:
        raise UsageError(
            f"--share-weights {words[0]} and other values: {', '.join(asked)}",
            hint="give off, auto, stages, or groups of parameters such as a.weight,b.weight",
        )
    if OFF in words:
        return ()
    if asked and not trains:
        raise UsageError(
            "layers that come to share weights have to be trained, and there is nothing to do it",
            hint="give --data and --epochs above 0, or leave --share-weights out",
        )
    shares = strategy in STRATEGIES and STRATEGIES[strategy].shares_weights
    return tuple(asked) or ((AUTO,) if trains and shares else ())


def with_shared_weights(model: Model, sharing: Sequence[str]) -> tuple[Model, Sharing]:
    """Return a copy of the network in which layers share weights, and what they share.

    Args:
        model: the network as it is; its module is not changed.
        sharing: as ``resolve_sharing`` returns it, not empty. With ``auto`` it may come to nothing.

    Raises:
        UsageError: a group that cannot share, or residual stages were asked for and there are none.
    """
    from hwprune.extreme.sharing import share

    groups = None
    if sharing[0] not in (AUTO, STAGES):
        groups = [[name.strip() for name in group.split(",")] for group in sharing]
    module = copy.deepcopy(model.module)
    shared = share(module, groups=groups, pretrained=model.trained)
    if not shared and AUTO not in sharing:
        raise UsageError(
            f"nothing of {model.name} can be shared: no stage has three blocks alike",
            hint="name parameters: --share-weights layer1.1.weight,layer1.2.weight",
        )
    return replace(model, module=module), shared
