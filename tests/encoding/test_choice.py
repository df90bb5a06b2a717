"""choice: which codec each tensor takes where sizes alone do not decide."""

from __future__ import annotations

import pytest

from hwprune.encoding.choice import Chooser
from hwprune.ir import CodecName


@pytest.mark.parametrize("smaller", ["bitmap", "gap8"])
@pytest.mark.parametrize("kinds", [1, 2])
def test_equal_totals_go_to_the_smaller_graph(kinds: int, smaller: CodecName) -> None:
    """Either codec takes 150 bytes with its function; one of them less in the graph."""
    codecs: tuple[CodecName, ...] = ("bitmap", "gap8")
    needs = [{codec: frozenset({f"{kind}{codec}"}) for codec in codecs} for kind in range(kinds)]
    functions = {
        f"{kind}{codec}": 50 if codec == smaller else 20
        for kind in range(kinds)
        for codec in codecs
    }
    costs = [{codec: 100 if codec == smaller else 130 for codec in codecs}] * kinds
    assert Chooser(needs, functions).choose(costs) == [smaller] * kinds
