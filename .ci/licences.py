"""Write docs/licences.md: the licence of each package that constraints-hashes.txt names.

    python .ci/licences.py [SITE-PACKAGES...]

Licences are read from the metadata of installed packages: of this Python, and of the folders that
are named (those of `.ci/versions`, for what other Pythons need). What is installed nowhere keeps
the line that it has.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
HEAD = """# Licences of what hwprune needs

hwprune is under Apache-2.0 and contains none of these packages; they are installed beside it. The
list is that of `constraints-hashes.txt`: everything that an install with the options `compile`,
`timm` and `dev` brings along, on any supported Python and platform. Each licence is what the
package says of itself: its licence expression, or else its classifiers or field. Made by
`make licences`; a test holds it to the pins and to the installed metadata. `make sbom` writes the
same list, with versions and hashes, as a CycloneDX document.

The packages named nvidia-*, and cuda-*, are what torch's wheels for Linux bring along for graphics
processors; hwprune asks for none of them, and torch's wheels for CPUs alone need none.

| package | licence |
|---|---|
"""


def pinned() -> list[str]:
    """Return the names that constraints-hashes.txt pins."""
    text = (ROOT / "constraints-hashes.txt").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"^([a-z0-9._-]+)==", text, re.MULTILINE)))


def licence(found: metadata.PackageMetadata) -> str:
    """Return what a package says of its licence, on one line."""
    expression = found["License-Expression"]
    if expression:
        return str(expression)
    classifiers = [
        each.rpartition(" :: ")[2]
        for each in found.get_all("Classifier") or ()
        if each.startswith("License :: ") and not each.endswith("OSI Approved")
    ]
    said = ", ".join(classifiers) or str(found["License"] or "not said").strip().splitlines()[0]
    return said.replace("|", "/")


def installed(folders: Iterable[str]) -> dict[str, str]:
    """Return the licences of what is installed in some folders, by normalised name."""
    found = {}
    for one in metadata.distributions(path=list(folders)):
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        found.setdefault(name, licence(one.metadata))
    return found


def known() -> dict[str, str]:
    """Return the page's table."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return dict(
        re.findall(r"^\| ([a-z0-9._-]+) \| (.+) \|$", text.partition("|---|")[2], re.MULTILINE)
    )


def main() -> int:
    """Write the page; say what no folder knows."""
    licences = {**known(), **installed([*sys.path, *sys.argv[1:]])}
    missing = [name for name in pinned() if name not in licences]
    if missing:
        print(f"not installed anywhere: {', '.join(missing)}; name folders that hold them")
        return 1
    rows = [f"| {name} | {licences[name]} |\n" for name in pinned()]
    PAGE.write_text(HEAD + "".join(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
