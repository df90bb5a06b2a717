"""What a run on a board has to show: every tensor's checksum, and no more stack than there is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from random_networks import KINDS

from hwprune.errors import VerificationError
from hwprune.firmware import emulate, reference
from hwprune.firmware.host import checksum
from hwprune.firmware.qlinear import to_onnx
from hwprune.targets import load
from hwprune.verify import firmware


def test_a_run_that_differs_or_needs_more_stack_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = KINDS["residual"](np.random.default_rng(3))
    (tmp_path / firmware.QLINEAR_NAME).write_bytes(to_onnx(made).SerializeToString())
    check = firmware._FolderCheck(tmp_path, load("nrf52840"), None, None)
    check.read()
    check.plan()
    stack, wrong = firmware.STACK_BYTES, 0

    def run(folder: Path, plan: Any, board: Any, x: Any, *, core: str) -> Any:
        values = reference.run(check.network, x)
        sums = [{n: checksum(values[n][i]) for n in plan.placements} for i in range(len(x))]
        sums[1]["b"] += wrong
        return SimpleNamespace(sums=sums, stack_bytes=stack, classes=None, instructions=1)

    monkeypatch.setattr(emulate, "board_for", lambda core: SimpleNamespace(name="board"))
    monkeypatch.setattr(emulate, "run", run)
    assert f"{stack:,} B of stack" in check.runs(tmp_path / "copy")
    wrong = 1
    with pytest.raises(VerificationError, match="'b' is not the same on board for input 1"):
        check.runs(tmp_path / "copy")
    wrong, stack = 0, stack + 1
    with pytest.raises(VerificationError, match="of stack, the image leaves"):
        check.runs(tmp_path / "copy")
