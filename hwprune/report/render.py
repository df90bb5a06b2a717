"""A report for people: terminal, Markdown, HTML."""

from __future__ import annotations

from hwprune.report.html import html
from hwprune.report.markdown import markdown
from hwprune.report.terminal import terminal

__all__ = ["html", "markdown", "terminal"]
