"""A real cluster of two nodes on this machine, one of which is killed half-way."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hwprune.cli.main import main
from hwprune.errors import UsageError
from hwprune.sweep.on_ray import RayCluster

_NETWORK = """
from torch import nn
def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
"""


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="--engine ray needs Ray") as caught:
        RayCluster(None, 1)
    assert "[ray]" in (caught.value.hint or "")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a head that takes no work, and two nodes of one processor each."""
    # Not "ray" alone: any folder of that name would do for Python.
    utilities = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = utilities.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    found.nodes = [found.add_node(num_cpus=1) for _ in range(2)]
    found.wait_for_nodes()
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.mark.slow
def test_a_node_that_is_lost(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tmp_path / "net.py"
    network.write_text(_NETWORK)
    assert RayCluster(cluster.address, threads=1).processors == 2
    out = tmp_path / "out"

    def kill() -> None:
        while len(list(out.glob("*.log"))) < 2:  # until both are at work
            time.sleep(0.1)
        cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    arguments = [
        "--ray-address", cluster.address, "--jobs", "2", "--arch", f"{network}:network",
        "--target", "raspberry-pi-5", "--budget", "8KiB,12KiB", "--data", "digits",
        "--epochs", "1", "-o", str(out), "--retries", "2",
    ]  # fmt: skip
    code = main(["sweep", "--engine", "ray", *arguments])
    killer.join()
    shown, told = capsys.readouterr()
    assert code == 0, told
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert [one["exit_code"] for one in runs] == [0, 0]
    assert sorted(one["attempts"] for one in runs) == [1, 2]
    assert "ended by signal 9; it is tried again" in told
    assert "12KiB" in shown
