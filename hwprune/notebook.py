"""In a notebook: a bar that moves while a compilation runs, with a line for each epoch."""

from __future__ import annotations

import sys
from html import escape
from typing import Any

from hwprune.ir import Say, Status


def bar() -> Say | None:
    """Return what shows each status in the cell that runs; None outside of a notebook.

    Plain HTML, which is replaced as it changes: no widgets have to be installed.
    """
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if not hasattr(shell, "kernel"):  # plain Python, or IPython in a terminal
        return None
    display: Any = __import__("IPython.display", fromlist=["display"])
    lines: list[str] = []
    handle = display.display(display.HTML(""), display_id=True)

    def say(status: Status) -> None:
        if status.values:
            lines.append(escape(status.message))
        kept = f"<pre>{'<br>'.join(lines)}</pre>" if lines else ""
        share = f'value="{status.done}" max="{status.of}"' if status.of else 'value="0"'
        text = escape(f"{status.stage}: {status.message}")
        handle.update(display.HTML(f"<progress {share}></progress> {text}{kept}"))

    return say
