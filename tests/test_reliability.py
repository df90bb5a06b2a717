"""Every promise of docs/reliability.md names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_promise_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tables = re.findall(r"^(\|.* test \|)\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert len(tables) >= 6
    for row in [row for _, body in tables for row in body.splitlines()]:
        assert "`tests/" in row or "`.ci/" in row, f"names no test: {row}"
    for path, name in re.findall(r"`((?:tests|\.ci)/[\w./]+)(?:::(\w+))?`", page):
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


def test_no_code_reads_the_time_of_day() -> None:
    """A clock that is moved changes nothing: durations are those of clocks that only go on."""
    of_day = re.compile(
        r"\btime\.(time|time_ns|localtime|gmtime|ctime|strftime|clock_gettime)\b|\b(datetime|date)\.(now|utcnow|today)\b"
        r"|\bfrom time import\b|\bst_[mca]time"
    )
    assert of_day.search("now = time.time()")
    found = {
        path.name: text.group()
        for path in (ROOT / "hwprune").rglob("*.py")
        if (text := of_day.search(path.read_text(encoding="utf-8")))
    }
    assert not found
