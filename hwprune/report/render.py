"""A report for people: terminal, Markdown, HTML."""

from __future__ import annotations

from hwprune.report.html import comparison_html, html
from hwprune.report.markdown import comparison_markdown, markdown
from hwprune.report.terminal import comparison_terminal, terminal

__all__ = [
    "comparison_html",
    "comparison_markdown",
    "comparison_terminal",
    "html",
    "markdown",
    "terminal",
]
