"""What a dead connection would add to the file: the bytes that regrowth per byte divides by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwprune.encoding import marginal_bytes
from hwprune.ir import Masks, Plan
from hwprune.sparsity import Marginal, Streamed
from hwprune.steps.planning import Prepared, cost_of


def pricer(prepared: Prepared, plan: Plan) -> Marginal:
    """Return the function that prices connections, in the codecs that present masks take.

    Nothing is worked out before it is called: most strategies never ask.
    """

    def marginal(masks: Masks) -> Mapping[str, NDArray[np.float32]]:
        codecs = (
            cost_of(prepared, plan.value_type).encoding(masks.positions(), plan.value_type).codecs
        )
        return Streamed(
            {name: masks[name].shape for name in masks},
            lambda name: marginal_bytes(
                np.flatnonzero(masks[name]), masks[name].shape, codecs[name], plan.value_type
            ),
        )

    return marginal
