"""A report for people: terminal, Markdown, HTML; and check results for CI systems (JUnit)."""

from __future__ import annotations

from hwprune.report.html import html
from hwprune.report.junit import junit
from hwprune.report.markdown import markdown
from hwprune.report.terminal import terminal

__all__ = ["html", "junit", "markdown", "terminal"]
