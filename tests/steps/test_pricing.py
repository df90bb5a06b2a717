"""Regrowth by the byte knows what a connection adds to the very file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwprune.budget import fit
from hwprune.ir import Masks
from hwprune.sparsity import rank_weights
from hwprune.steps.planning import Prepared, cost_of, module_weights, plans_of
from hwprune.steps.pricing import pricer


def test_a_dozen_connections_add_what_they_were_priced_at(
    prepared: Callable[[int], Prepared],
) -> None:
    now = prepared(8_000)
    plan = plans_of(now, ("int8",))["int8"]
    cost = cost_of(now, "int8")
    masks = fit(cost, rank_weights(module_weights(now)), 7_000, "int8").masks
    before = cost.encoding(masks.positions(), "int8")
    prices = pricer(now, plan)(masks)
    checked = 0
    for name in masks:
        assert prices[name].shape == masks[name].shape
        assert not prices[name][masks[name]].any()
        dead = np.flatnonzero(~masks[name])
        # Far apart, so that they do not share a gap; together, so that shares of bytes add up.
        chosen = dead[:: max(1, dead.size // 8)][:8] if dead.size > 400 else dead[:0]
        grown = {n: mask.copy() for n, mask in masks.by_name.items()}
        grown[name].reshape(-1)[chosen] = True
        after = cost.encoding(Masks(grown).positions(), "int8")
        if dict(after.codecs) != dict(before.codecs) or not chosen.size:
            continue
        added = after.tensor_bytes[name] - before.tensor_bytes[name]
        # Headers may get a byte longer, half a byte may wait for its other half.
        assert abs(added - float(prices[name].reshape(-1)[chosen].sum())) <= 3
        assert added >= 8
        checked += 1
    assert checked
    assert min(float(p[p > 0].min()) for p in prices.values() if p.any()) >= 1
