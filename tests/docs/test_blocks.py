"""Every block of bash, Python and TOML on a page is run, or is listed here with the reason why not.

The blocks of a page run in their order, in a folder of their own: those that begin with
``# NAME.py`` or ``# NAME.toml`` are that file. Trainings are cut short, and what a page leaves to
its reader (``cifar10:DIR``, a board's address) is filled in (``FILLED_IN``); all else is run as it
stands.
"""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
for room in ("docs", "e2e", "remote"):
    sys.path.insert(0, str(ROOT / "tests" / room))

from e2e_tools import run  # noqa: E402 - found by the lines above
from pages import PAGES, Block, blocks  # noqa: E402
from sshd import SSHD, running  # noqa: E402

from hwprune.kernels import library  # noqa: E402
from hwprune.remote import Destination  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_memory_measured")]

# -- what is not run ------------------------------------------------------------------------------

# Commands by how they begin.
COMMANDS_NOT_RUN = {
    "pip --python": "tests/test_supply_chain.py runs check with nothing but what is listed",
    "gate/bin/hwprune": "likewise",
    "pip install": "tests/e2e/test_packaging.py installs the wheel into an empty environment",
    "make ": "what .ci/run is made of, and the environment that runs this test",
    "sudo apt-get install": "needs root and a network; .ci/run does it",
    "apt-get install": "needs root and a network; .ci/run does it",
    "python benchmarks/": "hours; tests/benchmarks holds that records and pages agree",
    "python tests/faults/crash_points.py": "minutes; .ci/run kills at some of the points",
    ".ci/nightly": "an hour; what it is made of is in .ci/run, shorter",
    "python3 -m venv hwprune-env": "on the board, from a package index",
    "python -m venv zoo": "other people's packages, gigabytes",
    "zoo/bin/": "other people's packages, gigabytes",
    "torchrun ": "tests/e2e/test_torchrun.py trains in two processes",
    "hwprune compile model.pt --arch torchvision:resnet18": "minutes; test_architectures.py has it",
    "hwprune compile --arch cifar-resnet34": "250 epochs of a ResNet-34",
    "hwprune compile model.pt --arch cifar-resnet34": "250 epochs of a ResNet-34",
    "hwprune compile model.pt --share-weights": "tests/extreme/test_sharing.py, on a ResNet",
    "hwprune plan model.pt --share-weights": "tests/extreme/test_sharing.py, on a ResNet",
    "hwprune plan cifar10_resnet20.pth": "other people's weights; tests/steps/test_time_limit.py",
    "hwprune sweep model.pt": "docs/how-to/sweep.md has one that is run",
    "hwprune compile unet.pt": "tests/tasks/test_tasks.py compiles such a network",
    'eval "$(_HWPRUNE_COMPLETE=zsh_source': "zsh's; bash's is run",
    "_HWPRUNE_COMPLETE=fish_source": "fish's; bash's is run",
}
# Other blocks by page and first line: run in the test that is named, or a part of something.
BLOCKS_NOT_RUN = {
    ("docs/loop.md", ""): "tests/integrations/test_examples.py",
    ("docs/tasks.md", "import numpy as np"): "tests/tasks/test_tasks.py",
    ("docs/east.md", 'score = "magnitude"'): "options alone; tests/sparsity/test_east.py has them",
}

# -- how the others are run -----------------------------------------------------------------------

# What a reader fills in, and what would take long, by regular expressions.
FILLED_IN = [
    (r"cifar10:DIR", "digits"),
    (r"\bMODEL --target NAME", "model.pt --target raspberry-pi-5"),
    (r"torch\.zeros\(1, 3, 32, 32\)", "torch.zeros(1, 1, 8, 8)"),
    (r'(data="digits")(?!, epochs)', r"\1, epochs=1"),
    (r'eval ("\$\(.*?\)")', r"test -n \1"),
    (r"(train_digits\.py \S+)", r"\1 --epochs 6"),
    (r"(--budget 3500 --data digits)", r"\1 --epochs 0"),
    (r"6KiB,10KiB,16KiB,32KiB --seed 0,1", "16KiB"),
    (r"--epochs 12", "--epochs 3"),
    (r"'accuracy_drop<=[12]%'", "'accuracy_drop<=30%'"),
    (r"accuracy>=9[015]%", "accuracy>=60%"),
]
# What stands before a page's first block of Python, and commands that follow its last.
BEFORE = {
    "README.md": """
import torch

model, images = network, np.zeros((1, 1, 8, 8), np.float32)
loss, optimizer = torch.nn.functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.01)
batches = [(torch.randn(4, 1, 8, 8), torch.randint(0, 10, (4,)))] * 80
""",
    "docs/python.md": "import torch; model = network",
    "docs/kernels.md": "import onnxruntime; images = np.zeros((1, 1, 8, 8), np.float32)",
    "docs/metadata.md": "pixels = np.zeros((1, 8, 8), np.uint8)",
    "docs/sharing.md": "module, weights = resnet20(), 268336",
}
AFTER = {
    "docs/targets.md": ["targets check doorbell.toml", "targets check gecko.toml"],
}


def commands(block: Block) -> list[str]:
    """Return the commands of a block of bash, without comments."""
    text = block.text.replace("\\\n", " ")
    lines = [re.sub(r"(^|\s+)# .*$", "", line).strip() for line in text.splitlines()]
    return [line for line in lines if line]


def not_run(block: Block) -> bool:
    """Whether a block of Python or TOML is listed as not run."""
    return any(
        page == block.page and block.first.startswith(first) for page, first in BLOCKS_NOT_RUN
    )


def named(block: Block) -> str | None:
    """Return the file that a block is, if it says so."""
    found = re.match(r"# (?:.*/)?([\w-]+\.(?:py|toml))\b", block.first)
    return found[1] if found else None


def is_run(block: Block) -> bool:
    """Whether anything of a block is run here."""
    if block.language == "bash":
        return any(not line.startswith(tuple(COMMANDS_NOT_RUN)) for line in commands(block))
    return block.language in ("python", "toml") and not not_run(block)


RUNNABLE = [page for page in PAGES if any(map(is_run, blocks(page)))]


def test_what_is_not_run_is_there() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    lines = [line for block in every if block.language == "bash" for line in commands(block)]
    for start in COMMANDS_NOT_RUN:
        assert any(line.startswith(start) for line in lines), start
    for (page, first), reason in BLOCKS_NOT_RUN.items():
        assert any(block.page == page and block.first.startswith(first) for block in every), page
        for path in re.findall(r"tests/\S+\.py", reason):
            assert (ROOT / path).exists()
    for line in lines:
        for path in re.findall(r"^python ((?:benchmarks|tests|examples)/\S+\.py)", line):
            assert (ROOT / path).exists(), path


@pytest.fixture(scope="module")
def digits_pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of examples/train_digits.py, trained for some epochs."""
    path = tmp_path_factory.mktemp("digits") / "digits.pt"
    trainer = runpy.run_path(str(ROOT / "examples" / "train_digits.py"))
    torch.save(trainer["train"](epochs=6, seed=0).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def compiled(digits_pt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, for pages that begin with one."""
    out = tmp_path_factory.mktemp("compiled") / "out"
    ran = run(
        "compile", digits_pt, "--target", "raspberry-pi-zero-2w", "--budget", "16KiB",
        "--data", "digits", "--epochs", "3", "--max-drop", "off", "-o", out,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return out


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace the demo's network once, judge connections once, make few inputs."""
    from hwprune.least_squares import saliency, synthesis
    from hwprune.steps import planning

    monkeypatch.setattr(saliency, "_ROUNDS_COST", 0)
    for name, few in (("STEPS", 8), ("_LEAST_STEPS", 8), ("SAMPLES", 64)):
        monkeypatch.setattr(synthesis, name, few)
    real = planning.trace

    def trace(model: Any) -> Any:
        if type(model.module).__name__ != "DigitsCnn":
            return real(model)
        key = str(model.inputs)
        if key not in _TRACED:
            _TRACED[key] = real(model)
        return _TRACED[key]

    monkeypatch.setattr(planning, "trace", trace)


_TRACED: dict[str, Any] = {}


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Someone who does what a page says."""
    monkeypatch.chdir(tmp_path)
    # `python -m hwprune` for the lines that a shell runs.
    (tmp_path / ".bin").mkdir()
    program = tmp_path / ".bin" / "hwprune"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hwprune "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / '.bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ExitStack() as stack:
        yield Reader(tmp_path, monkeypatch, stack)
    sys.modules.pop("net", None)


class Reader:
    """The folder of a page, and how its lines are run there."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self.folder, self.patch, self.stack = folder, patch, stack
        self.names: dict[str, Any] = {"np": np}
        self.fill: list[tuple[str, str]] = list(FILLED_IN)

    def reach_a_board(self) -> None:
        """Let this machine be the board that ssh reaches."""
        if SSHD is None:
            pytest.skip("there is no OpenSSH server and client here")
        (self.folder / ".ssh").mkdir()
        server = self.stack.enter_context(running(self.folder / ".ssh"))
        plain: Callable[..., list[str]] = Destination.command
        self.patch.setattr(
            Destination, "command", lambda this, options=(): plain(this, server.options())
        )
        python, kernels = sys.executable, library.path()
        board = r"ssh://pi@raspberrypi\.local"
        self.fill += [
            (rf"({board})(?!.*--remote-python)", rf"\1 --remote-python {python}"),
            (board, f"ssh://127.0.0.1:{server.port}"),
            (r"hwprune-env/bin/python", python),
            (r"--kernels-library \S+", f"--kernels-library {kernels}" if kernels else ""),
        ]

    def filled(self, text: str) -> str:
        """Fill in what a page leaves to its reader."""
        for pattern, text_there in self.fill:
            text = re.sub(pattern, text_there, text)
        return text

    def python(self, text: str) -> None:
        """Run a block of Python; the names of those before it are there."""
        exec(compile(self.filled(text), "a page", "exec"), self.names)

    def line(self, text: str) -> None:
        """Run a command, in this process where it is one of ours or Python's."""
        line = self.filled(text)
        plain = not re.search(r"[|;&$<>*]", re.sub(r"'[^']*'", "", line))
        words = shlex.split(line) if plain else []
        if words[:1] == ["hwprune"]:
            if words[1] in ("compile", "sweep") and "--epochs" not in words and "--data" in words:
                words += ["--epochs", "3"]
            if words[1] == "compile" and "accuracy" not in line:
                words += ["--max-drop", "off"]
            ran = run(*words[1:])
            assert ran.code == 0, (line, ran.out[-2000:], ran.err)
        elif words[:1] == ["python"] and words[1].endswith(".py"):
            self.patch.setattr(sys, "argv", words[1:])
            with contextlib.suppress(SystemExit):
                runpy.run_path(words[1], run_name="__main__")
        else:
            done = subprocess.run(
                ["bash", "-euc", line], capture_output=True, text=True, check=False, timeout=200
            )
            assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs(page: Path, reader: Reader, digits_pt: Path, compiled: Path) -> None:
    name, found, folder = str(page.relative_to(ROOT)), blocks(page), reader.folder
    for copy in ("digits.pt", "model.pt"):
        shutil.copy(digits_pt, folder / copy)
    (folder / "examples").symlink_to(ROOT / "examples")
    if name == "docs/bench.md":
        shutil.copytree(compiled, folder / "out")
    if name in ("docs/kernels.md", "docs/metadata.md"):
        shutil.copy(compiled / "model.onnx", folder)
    if name == "docs/ci.md":
        for copy in ("models/keywords", "models/shapes", "released/keywords"):
            shutil.copytree(compiled, folder / copy)
    if "firmware" in page.read_text() and "--target nrf52840" in page.read_text():
        reader.patch.setenv("CMAKE_GENERATOR", "Unix Makefiles")
        for tool in ("arm-none-eabi-gcc", "qemu-system-arm", "cmake"):
            if shutil.which(tool) is None:
                pytest.skip(f"there is no {tool} here")
    if "--on ssh://" in page.read_text():
        reader.reach_a_board()
    if any(block.language == "python" for block in found):
        from hwprune.frontend.zoo import ARCHITECTURES

        network = ARCHITECTURES["digits-cnn"].build()
        network.load_state_dict(torch.load(digits_pt))
        reader.names |= {
            "network": network.eval(), "resnet20": ARCHITECTURES["cifar-resnet20"].build
        }  # fmt: skip
        board = types.ModuleType("torch.utils.tensorboard")
        board.SummaryWriter = Writer  # type: ignore[attr-defined]
        reader.patch.setitem(sys.modules, "torch.utils.tensorboard", board)
        reader.python(BEFORE.get(name, ""))
    for block in found:
        if (file := named(block)) is not None:
            (folder / file).write_text(reader.filled(block.text))
    for block in found:
        if not_run(block) or named(block) is not None:
            continue
        assert block.language != "toml", f"{name}:{block.line}: which file is it? `# NAME.toml`"
        if block.language == "python":
            reader.python(block.text)
        if block.language == "bash":
            for line in commands(block):
                if not line.startswith(tuple(COMMANDS_NOT_RUN)):
                    reader.line(line)
    if name == "docs/how-to/own-network.md":  # its data are read as the network was trained
        assert "near chance" not in (folder / "net-8k" / "report.json").read_text()
    for line in AFTER.get(name, ()):
        reader.line(f"hwprune {line}")


class Writer:
    """TensorBoard's, where it is not installed."""

    def add_scalar(self, name: str, value: float, *, global_step: int) -> None:
        assert name.startswith("hwprune/")
        assert np.isfinite(value)
