"""Links lead somewhere, on GitHub too; every page is on the site; every block says its language."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for pages

from pages import PAGES, ROOT, blocks, prose

from hwprune.sparsity.strategies import STRATEGIES, options_of


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub and the site both make them of plain headings."""
    found = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", text)) for text in found]
    return {re.sub(r" ", "-", text.strip().lower()) for text in words}


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_code_is_in_blocks_that_say_their_language(page: Path) -> None:
    text = prose(page)
    indented = re.findall(r"(?:^|\n)\n(    \S.*)", text)
    assert indented == [], "a block of code begins with ```bash, ```python, ```toml, ```text, ..."
    assert "```" not in text
    languages = {"bash", "python", "toml", "yaml", "groovy", "text"}
    assert {block.language for block in blocks(page)} <= languages


def test_every_page_is_on_the_site() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    there = {
        str(page.relative_to(ROOT / "docs")) for page in PAGES if ROOT / "docs" in page.parents
    }
    assert listed == there, "mkdocs.yml lists each page of docs/ once, under nav"


def test_every_field_of_a_report_and_option_of_a_strategy_is_explained() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "reference"))
    try:
        import generate
    finally:
        sys.path.pop(0)
    page = generate.report()
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \| (.*) \|$", page + generate.strategies(), re.MULTILINE
    )
    assert len(rows) > 150
    assert [name for name, _, text in rows if not text.strip()] == []
    assert "## `latency.dense`" in page
    options = sum(len(options_of(name)) for name in STRATEGIES if name != "auto")
    assert len(re.findall(r"^\| `\w+` \|", generate.strategies(), re.MULTILINE)) == options


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
