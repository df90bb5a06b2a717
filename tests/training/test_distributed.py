"""Two gloo processes train as one would: the same masks in both, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_worker as worker
import numpy as np
import pytest
import torch

from hwprune.errors import UsageError
from hwprune.training import SINGLE_PROCESS, World
from hwprune.training.batches import Batch, augment
from hwprune.training.devices import available, resolve

pytestmark = pytest.mark.slow


def launch(
    scenario: str, folder: Path, processes: int = 2
) -> tuple[list[int], list[dict[str, Any]]]:
    """Run a scenario in several processes; return their exit codes and what they wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(worker.__file__)
    started = [
        subprocess.Popen(
            [sys.executable, str(here), scenario, str(folder)],
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(processes)
    ]  # fmt: skip
    try:
        codes = [process.wait(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    written = [folder / f"{rank}.json" for rank in range(processes)]
    return codes, [json.loads(path.read_text()) if path.exists() else {} for path in written]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes saw that trained together."""
    codes, saw = launch("train", tmp_path_factory.mktemp("pair"))
    assert codes == [0, 0]
    return saw


@pytest.mark.parametrize("kind", ["plain", "batchnorm", "phased"])
def test_every_process_ends_with_the_same_bits(pair: list[dict[str, Any]], kind: str) -> None:
    first, second = (saw[kind] for saw in pair)
    assert first["masks"] == second["masks"]
    assert first["digest"] == second["digest"]
    assert first["accuracy"] == second["accuracy"]
    assert first["losses"] == second["losses"]


def test_two_processes_do_what_one_does_up_to_the_order_of_sums(
    pair: list[dict[str, Any]],
) -> None:
    torch.set_num_threads(1)
    alone, together = worker.train("plain", SINGLE_PROCESS), pair[0]["plain"]
    assert together["dense_metric"] == alone["dense_metric"]
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-4)
    differ = total = 0
    for name, mask in alone["masks"].items():
        differ += int(np.sum(np.array(mask) != np.array(together["masks"][name])))
        total += np.array(mask).size
    assert differ <= 0.002 * total  # a tie may fall the other way
    for name, weight in alone["weights"].items():
        close = np.isclose(together["weights"][name], weight, rtol=1e-3, atol=1e-5)
        assert close.mean() > 0.99, name


def test_a_run_of_two_is_continued_to_the_bit(pair: list[dict[str, Any]]) -> None:
    for saw in pair:
        assert saw["resumed"]["again"] == saw["resumed"]["whole"]
        assert "continued after epoch 1 of 2, from a checkpoint" in saw["resumed"]["notes"]


def test_processes_that_disagree_are_told(pair: list[dict[str, Any]]) -> None:
    assert [saw["lead"] for saw in pair] == [0, 0]
    assert "process 1 of 2 trains something else: seed" in pair[0]["different"]
    assert "process 0 of 2 trains something else: seed" in pair[1]["different"]


def test_a_failure_of_one_is_the_failure_of_all(tmp_path: Path) -> None:
    codes, saw = launch("fail", tmp_path)
    assert codes == [2, 2]
    assert saw[0]["error"] == ["DataError", "process 1 of 2: a file of mine is gone", "look for it"]
    assert saw[1]["error"] == ["DataError", "a file of mine is gone", "look for it"]


def test_one_that_is_killed_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    codes, saw = launch("die", tmp_path)
    assert codes == [1, 9]
    kind, message, hint = saw[0]["error"]
    assert kind == "HwpruneError"
    assert "another of the 2 processes ended" in message
    assert "--resume" in hint


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["shift", "crop-flip", "none"])
def test_shares_are_augmented_as_the_whole_batch_is(size: int, kind: Any) -> None:
    images = torch.randn(11, 3, 8, 8)
    whole = augment(Batch((images,), None), kind, torch.Generator().manual_seed(0), cutout=3)
    parts = []
    for rank in range(size):
        rows, generator = World(rank, size).rows(11), torch.Generator().manual_seed(0)
        share = Batch((images[rows],), None)
        parts.append(augment(share, kind, generator, cutout=3, rows=rows, of=11).inputs[0])
    assert torch.equal(torch.cat(parts), whole.inputs[0])


def test_a_batch_that_is_too_small_for_all_is_refused() -> None:
    assert World(1, 2).rows(4) == slice(2, 4)
    with pytest.raises(UsageError, match="3 samples cannot be shared by 2 processes"):
        World(0, 2).rows(3)


def test_the_device_is_one_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available()[-1] == "cpu"
    assert resolve("cpu", local_rank=1, local_size=2) == "cpu"
    for wish in ("gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "mps:0", "", "auto:1"):
        with pytest.raises(UsageError, match="there is no device"):
            resolve(wish)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve("auto") == "cpu"
    for wish in ("cuda", "cuda:1", "mps"):
        with pytest.raises(UsageError, match=f"device {wish}: ") as caught:
            resolve(wish)
        assert caught.value.hint == "here is cpu"


def test_several_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve("auto") == resolve("cuda") == "cuda"
    assert resolve("cuda:1") == "cuda:1"
    assert resolve("mps") == "mps"
    assert [resolve("auto", local_rank=r, local_size=2) for r in range(2)] == ["cuda:0", "cuda:1"]
    with pytest.raises(UsageError, match="device cuda:2 is not here: 2 GPUs are"):
        resolve("cuda:2")
    with pytest.raises(UsageError, match="3 processes need a GPU each, and there are 2"):
        resolve("cuda", local_rank=0, local_size=3)
    for wish in ("cuda:1", "mps"):
        with pytest.raises(UsageError, match="cannot share"):
            resolve(wish, local_size=2)
