"""What is installed is pinned, with hashes, and its licences are listed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pins(name: str) -> dict[tuple[str, str], str]:
    """Return what follows each `name==version` of a file."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^([\w.-]+)==([^\s;]+)(.*)$", text, re.MULTILINE)
    return {(package, version): rest for package, version, rest in found}


def test_the_hashes_are_those_of_the_constraints() -> None:
    plain, hashed = pins("constraints.txt"), pins("constraints-hashes.txt")
    assert set(plain) <= set(hashed)
    names = {package for package, _ in plain}
    assert {pin for pin in hashed if pin[0] in names} == set(plain)
    for pin, rest in hashed.items():
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}\b", rest), pin


def test_every_requirement_is_pinned() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.findall(r'^\s+"([a-z][\w-]*)[<>=]=', text, re.MULTILINE)
    left = set(declared) - {package for package, _ in pins("constraints-hashes.txt")}
    assert declared
    assert not left


# Runs the command where only the standard library, hwprune and what is listed can be imported.
ONLY = """
import importlib.metadata, sys
allowed = {*sys.stdlib_module_names, "hwprune", "google", *sys.argv.pop(1).split(",")}
installed = importlib.metadata.packages_distributions()
class Finder:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in installed and top not in allowed:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Finder())
from hwprune.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_gate_needs_no_more_than_it_installs(write_artifact: Callable[..., Path]) -> None:
    gate = pins("requirements-gate.txt")
    assert set(gate) - set(pins("constraints.txt")) == {("onnxruntime", "1.20.1")}
    listed = ",".join(sorted({name.replace("-", "_") for name, _ in gate}))
    asked = ["check", str(write_artifact()), "--require", "size<=64KiB"]
    for names, code in ((listed, 0), (listed.replace("psutil", "none"), 1)):
        found = subprocess.run([sys.executable, "-c", ONLY, names, *asked], capture_output=True)
        assert found.returncode == code, found.stderr.decode()


def test_the_licence_of_every_pin_is_listed() -> None:
    place = importlib.util.spec_from_file_location("licences", ROOT / ".ci" / "licences.py")
    assert place is not None
    assert place.loader is not None
    licences = importlib.util.module_from_spec(place)
    place.loader.exec_module(licences)
    listed = licences.known()
    assert sorted(listed) == licences.pinned()
    checked = 0
    for name, version in pins("constraints.txt"):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if found.version == version:
            assert listed[name] == licences.licence(found.metadata), name
            checked += 1
    assert checked > 10
