"""sdist -> wheel -> clean environment: one copy of each file, one name in site-packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("build")
pytest.importorskip("scikit_build_core")
pytestmark = pytest.mark.slow


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel built from it, with nothing on PATH: no compiler, no CMake."""
    out = tmp_path_factory.mktemp("dist")
    empty = tmp_path_factory.mktemp("no-programs")
    environment = {**os.environ, "PATH": str(empty)}
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    run(*build, env=environment)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", str(archives[1]))
    return folder


def site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def sources() -> set[str]:
    """What the wheel has to hold, read from the checkout."""
    wanted = set()
    for folder, name in (
        ("hwprune", "hwprune"),
        ("cli", "hwprune/cli"),
        ("targets", "hwprune/targets"),
    ):
        listed = run("git", "-C", ROOT, "ls-files", "-z", folder).stdout.split("\0")
        for line in filter(None, listed):
            path = ROOT / line
            if path.is_file():
                wanted.add(f"{name}/{path.relative_to(ROOT / folder).as_posix()}")
    return wanted


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="the list of files comes from git",
)
def test_the_wheel_holds_every_file_once(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = wheel.namelist()
        tag = next(wheel.read(name).decode() for name in names if name.endswith(".dist-info/WHEEL"))
    assert len(names) == len(set(names))
    assert sources() <= set(names)
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"hwprune"}
    assert "Tag: py3-none-any" in tag


def test_the_wheel_holds_what_is_not_python(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
    # One that lies in the checkout must not get into a wheel for every machine.
    assert not any(name.endswith(".so") for name in names)
    assert "hwprune/targets/jetson-nano.toml" in names
    assert "hwprune/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_holds_each_source_once_and_what_a_build_needs(
    archives: tuple[Path, Path],
) -> None:
    with tarfile.open(archives[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md"} <= names
    assert {"cli/__init__.py", "targets/__init__.py"} <= names
    assert not any(name.startswith(("hwprune/cli", "hwprune/targets")) for name in names)
    assert not any(name.endswith((".pt", ".pth", ".onnx")) for name in names)


def test_only_one_name_lands_in_site_packages(installed: Path) -> None:
    found = {
        path.name
        for path in site_packages(installed).iterdir()
        if not path.name.endswith(".dist-info")
    }
    assert found - {"__pycache__"} == {"hwprune"}


def test_a_pure_installation_says_that_it_has_no_kernels(installed: Path) -> None:
    borrowed = os.pathsep.join(path for path in sys.path if "site-packages" in path)
    environment = {**os.environ, "PYTHONPATH": f"{site_packages(installed)}{os.pathsep}{borrowed}"}
    code = "from hwprune import kernels; print(kernels.status())"
    python = installed / "bin" / "python"
    said = run(python, "-c", code, env=environment, cwd=installed.parent).stdout
    assert said.startswith("no kernels: this installation of hwprune has no libhwprune_kernels.so")


@pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="no CMake or compiler"
)
def test_the_wheel_holds_the_kernels_where_they_can_be_built(
    tmp_path: Path, write_artifact: Callable[..., Path]
) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path)]
    run(*build, str(ROOT))
    (archive,) = tmp_path.glob("*.whl")
    assert archive.name.startswith("hwprune-")
    assert "-py3-none-linux_" in archive.name
    with zipfile.ZipFile(archive) as wheel:
        names = wheel.namelist()
    assert names.count("hwprune/kernels/libhwprune_kernels.so") == 1
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"hwprune"}
    # Installed into an empty environment it checks a file, and measures it with these kernels.
    folder = tmp_path / "clean"
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", str(archive))
    borrowed = os.pathsep.join(path for path in sys.path if "site-packages" in path)
    environment = {**os.environ, "PYTHONPATH": f"{site_packages(folder)}{os.pathsep}{borrowed}"}
    command, file = folder / "bin" / "hwprune", write_artifact()
    assert "passed" in run(command, "check", file, env=environment, cwd=tmp_path).stdout
    shown = run(command, "bench", file, "--runs", "3", "--json", env=environment, cwd=tmp_path)
    assert json.loads(shown.stdout)["results"]["kernels"]["p50_ms"] > 0


def test_the_installed_command_runs(installed: Path) -> None:
    borrowed = os.pathsep.join(path for path in sys.path if "site-packages" in path)
    # Only the dependencies are borrowed: the clean environment's own packages come first.
    environment = {**os.environ, "PYTHONPATH": f"{site_packages(installed)}{os.pathsep}{borrowed}"}
    command = installed / "bin" / "hwprune"
    outside = installed.parent
    assert "inspect" in run(command, "--help", env=environment, cwd=outside).stdout
    assert "jetson-nano" in run(command, "targets", "list", env=environment, cwd=outside).stdout
    code = "import hwprune, hwprune.cli, hwprune.targets as t; print(hwprune.__file__, t.__file__)"
    where = run(installed / "bin" / "python", "-c", code, env=environment, cwd=outside).stdout
    assert all(str(installed) in path for path in where.split())
