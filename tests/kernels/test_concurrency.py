"""Sessions with kernels in several threads, dropped, forked, cancelled, and with odd pools."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil
import pytest
import torch
from torch import nn

import hwprune
from hwprune.verify import kernels_unavailable_reason

pytestmark = pytest.mark.skipif(
    kernels_unavailable_reason() is not None, reason="there are no kernels here"
)
X = np.random.default_rng(0).random((3, 3, 12, 12), np.float32)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(1024, 10)
    folder = tmp_path_factory.mktemp("concurrent") / "out"
    found = hwprune.compile(
        nn.Sequential(*layers).eval(), target="raspberry-pi-5", epochs=0, budget="8KiB",
        example_input=torch.zeros(1, 3, 12, 12), output=folder, values="int8",
    )  # fmt: skip
    return Path(found.path)


def kernels_session(artifact: Path, threads: int) -> ort.InferenceSession:
    """Return a session in which every packed layer runs on a kernel."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    hwprune.register_kernels(options, artifact)
    return ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, x: np.ndarray = X) -> np.ndarray:
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_eight_threads_share_a_session_and_others_come_and_go(artifact: Path) -> None:
    """Each shape and each thread gets what one thread alone gets, to the bit."""
    shared = kernels_session(artifact, 1)
    batches = [X[:1], X[:2], X, np.repeat(X, 3, axis=0)]
    expected = [run(shared, x) for x in batches]

    def work(number: int) -> bool:
        right = True
        for turn in range(12):
            which = (number + turn) % len(batches)
            own = kernels_session(artifact, 1) if turn % 4 == 0 else shared
            right &= np.array_equal(run(own, batches[which]), expected[which])
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_odd_pools(artifact: Path, threads: int) -> None:
    alone, several = (kernels_session(artifact, each) for each in (1, threads))
    assert np.abs(run(alone) - run(several)).max() <= 1e-5


@pytest.mark.slow
def test_ten_thousand_sessions_leave_no_memory_behind(artifact: Path) -> None:
    process = psutil.Process()

    def several(count: int) -> int:
        for _ in range(count):
            run(kernels_session(artifact, 1), X[:1])
        gc.collect()
        return process.memory_info().rss

    several(1000)  # allocators fill their pools
    before = several(1000)
    assert several(8000) - before < 2**24, "a session leaves two kilobytes or more"


def test_a_process_that_forks(artifact: Path) -> None:
    """A session of one thread, and one made there, run in the child as in the parent."""
    session = kernels_session(artifact, 1)
    expected = run(session)
    child = os.fork()
    if not child:
        try:
            same = np.array_equal(run(session), expected)
            same &= np.array_equal(run(kernels_session(artifact, 1)), expected)
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(run(session), expected)


def test_runs_that_are_cancelled(artifact: Path) -> None:
    """A run ends early or whole, and the session goes on."""
    session = kernels_session(artifact, 1)
    name, large = session.get_inputs()[0].name, np.repeat(X, 400, axis=0)
    expected = run(session)
    before = ort.RunOptions()
    before.terminate = True
    with pytest.raises(Exception, match=r"(?i)terminat"):
        session.run(None, {name: X}, before)
    options = ort.RunOptions()
    timer = threading.Timer(0.005, lambda: setattr(options, "terminate", True))
    timer.start()
    try:
        (y,) = session.run(None, {name: large}, options)
    except Exception as error:
        assert "terminat" in str(error).lower()  # noqa: PT017 - either way is right
    else:
        assert np.abs(y[::400] - expected).max() <= 1e-5
    timer.join()
    assert np.array_equal(run(session), expected)
