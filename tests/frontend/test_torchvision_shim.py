from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hwprune.errors import ModelError
from hwprune.frontend import torchvision_shim


def test_torchvision_imports_and_builds_networks() -> None:
    torchvision = torchvision_shim.import_torchvision()
    assert torchvision.models.squeezenet1_1(weights=None) is not None
    assert torchvision_shim.import_torchvision() is torchvision


def test_nothing_is_defined_where_the_operators_exist() -> None:
    # Definitions last as long as the process: so in one of its own.
    script = (
        "import torch\n"
        "real = torch.library.Library('torchvision', 'DEF')\n"
        "for name in ('nms', 'qnms'):\n"
        "    real.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "from hwprune.frontend import torchvision_shim\n"
        "torchvision_shim._load_operators = lambda folder: None\n"
        "torchvision_shim._define_missing()\n"
        "assert torchvision_shim._libraries == []\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_torchvision_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_shim.import_torchvision.cache_clear()
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    monkeypatch.delitem(sys.modules, "torchvision.models")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="not installed"):
        torchvision_shim.import_torchvision()
    torchvision_shim.import_torchvision.cache_clear()


def test_a_users_file_may_import_torchvision(tmp_path: Path) -> None:
    # In a process of its own, in which nothing has imported it yet.
    (tmp_path / "net.py").write_text("import torchvision\nnms = torchvision.ops.nms\n")
    script = (
        "import sys; from pathlib import Path\n"
        "from hwprune.errors import ModelError\n"
        "from hwprune.frontend.user_code import import_file\n"
        "print(*import_file(Path(sys.argv[1]), option='--arch', error=ModelError))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "net.py"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "nms\n"), done.stderr
