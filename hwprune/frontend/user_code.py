"""Python files that the user names: imported, and run so that no error escapes.

What such code does is the user's own business, but not how hwprune ends: an exception or a call of
``sys.exit`` in it becomes an error that names the file.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hwprune.errors import HwpruneError
from hwprune.files import POINTER, is_pointer

# What a stranger's code may raise; Ctrl-C and the like stay what they are.
FAILURES = (Exception, SystemExit)


def first_line(error: BaseException) -> str:
    """Return the error's first line that says something, with its type where the text is bare."""
    if isinstance(error, SystemExit):
        return f"SystemExit: it called sys.exit({error.code!r})"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if len(line) > 300:
        line = line[:297] + "..."
    return line if isinstance(error, RuntimeError) and line else f"{type(error).__name__}: {line}"


@contextmanager
def running(what: str, error: type[HwpruneError], hint: str | None = None) -> Iterator[None]:
    """Turn whatever the user's code raises into ``error``: ``what``, then the reason.

    hwprune's own errors pass.
    """
    try:
        yield
    except HwpruneError:
        raise
    except FAILURES as reason:
        raise error(f"{what}: {first_line(reason)}", hint=hint) from reason


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours, as it could when it is run as a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def import_file(
    path: Path, *, option: str, error: type[HwpruneError]
) -> dict[str, Callable[..., Any]]:
    """Run a Python file; return its callables by name, those of an underscore left out."""
    return {k: v for k, v in run_file(path, option=option, error=error).items() if callable(v)}


def run_file(path: Path, *, option: str, error: type[HwpruneError]) -> dict[str, Any]:
    """Run a Python file; return what it defines by name, those of an underscore left out.

    Args:
        path: the file.
        option: ``--arch``, ``--data`` or ``--task``, for the error and the module's name.
        error: what to raise.

    Raises:
        error: no such file, or running it failed.
    """
    if not path.is_file():
        raise error(
            f"{path}: there is no such file", hint=f"write {option} path/to/file.py:callable"
        )
    with suppress(OSError), path.open("rb") as file:  # importing it says what is wrong
        if is_pointer(file.read(64)):
            raise error(f"{path}: {POINTER}")
    from hwprune.frontend.torchvision_shim import make_importable  # imports torch

    # Under a name of its own, kept in sys.modules: dataclasses and pickling look there.
    name = f"hwprune_{option.strip('-')}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"{path}: cannot be imported", hint="its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    make_importable()  # it, or what it imports, may want torchvision
    try:
        with (
            running(
                f"{path}: running it failed", error, f"python {path} shows the whole traceback"
            ),
            importable(path.resolve().parent),
        ):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return {key: value for key, value in vars(module).items() if key[0] != "_"}
