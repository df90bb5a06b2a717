"""The pages of the docs, and the blocks of code on them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: the page, by its path in the repository, its language and its lines."""

    page: str
    line: int
    language: str
    text: str

    @property
    def first(self) -> str:
        """What tells it from the other blocks of its page: its first line."""
        return self.text.split("\n", 1)[0]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text()
    name = str(page.relative_to(ROOT))
    return [
        Block(name, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(r"^```([a-z]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
