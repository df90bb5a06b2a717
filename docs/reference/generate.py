"""Writes the pages of docs/reference from the code while the site is built: a hook of mkdocs.

A page says where: ``<!-- generated: cli -->``, ``python``, ``report`` and so on (``PARTS``). Links
that leave docs/, such as ``../examples/demo.py``, lead to the file in the repository where
mkdocs.yml has a ``repo_url``; without, they are shown as paths.
"""

from __future__ import annotations

import ast
import functools
import html
import inspect
import itertools
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any

import click

ROOT = "docs"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return a page with what is generated, and with links that hold on the site."""
    markdown = re.sub(r"<!-- generated: (\w+) -->", lambda found: PARTS[found[1]](), markdown)
    here = posixpath.dirname(posixpath.join(ROOT, page.file.src_uri))

    def outside(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, found[2]))
        if path.startswith(f"{ROOT}/"):
            return found[0]
        if config.repo_url:
            return f"[{found[1]}]({config.repo_url.rstrip('/')}/blob/HEAD/{path})"
        return found[1] if found[1].strip("`") == path else f"{found[1]} (`{path}`)"

    return re.sub(r"\[([^\]]+)\]\((?!\w+:)([^)#\s]+)\)", outside, markdown)


def cli() -> str:
    """Return every command with its usage, text, arguments and options, as click has them."""
    from hwprune.cli.main import group

    return "\n".join(_command(group, None, "hwprune", 2))


def _command(
    command: click.Command, parent: click.Context | None, name: str, level: int
) -> Iterator[str]:
    context = click.Context(command, parent=parent, info_name=name)
    yield f"\n{'#' * level} {context.command_path}\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "")
    rows = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None
    ]
    if rows:
        yield "\n| option | what it does |\n|---|---|"
    for names, text in rows:
        yield f"| <code>{_html(names)}</code> | {_html(' '.join(text.split()))} |"
    yield ""
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from _command(found, context, each, level + 1 if parent is not None else level)


def _html(text: str) -> str:
    """Return text as it stands in a cell of a table, but for code in backquotes."""
    return html.escape(text, quote=False).replace("|", "&#124;").replace("*", "&#42;")


def python() -> str:
    """Return what mkdocstrings is to document: all public names, where they are defined."""
    import hwprune
    import hwprune.ir
    import hwprune.report
    import hwprune.targets

    objects = [getattr(hwprune, name) for name in hwprune.__all__]
    objects += [hwprune.report.read, hwprune.ir.Status]
    objects += [getattr(hwprune.targets, name) for name in hwprune.targets.__all__]
    homes = [f"{each.__module__}.{each.__qualname__}" for each in objects if callable(each)]
    return "\n\n".join(f"::: {home}" for home in homes)


def report() -> str:
    """Return the fields of report.json by section, from the classes that read and write it."""
    from hwprune.report import record

    tree = ast.parse(inspect.getsource(record))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return "\n".join(_section(record.Record, "", classes, set()))


def _section(
    model: Any, path: str, classes: dict[str, ast.ClassDef], seen: set[type]
) -> Iterator[str]:
    said = field_texts(classes, model)
    yield f"\n## {f'`{path}`' if path else 'The whole'}\n"
    yield re.sub(r"``(.+?)``", r"`\1`", inspect.getdoc(model) or "")
    yield "\n| field | type | what it is |\n|---|---|---|"
    inner: list[tuple[str, Any]] = []
    for name, field in model.model_fields.items():
        kind, sections = _kind(field.annotation)
        for section in sections:
            if section not in seen:
                seen.add(section)
                inner.append((f"{path}.{name}".lstrip(".") + "[]" * ("list" in kind), section))
        text = re.sub(r"``(.+?)``", r"`\1`", " ".join(said[name].split()))
        yield f"| `{name}` | {kind} | {text} |"
    for where, section in inner:
        yield from _section(section, where, classes, seen)


def field_texts(classes: dict[str, ast.ClassDef], model: Any) -> dict[str, str]:
    """Return what is said below each field of a section, of those above it first."""
    said: dict[str, str] = {}
    for base in reversed(model.__mro__):
        body = classes[base.__name__].body if base.__name__ in classes else []
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                said[field.target.id] = str(below.value.value)
    return said


def _kind(annotation: Any) -> tuple[str, list[Any]]:
    """Return a type in JSON's words, and the sections in it."""
    import types
    import typing

    from pydantic import BaseModel

    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(inside[0])
    if origin in (typing.Union, types.UnionType):
        parts = [_kind(each) for each in inside]
        words = dict.fromkeys(word for word, _ in parts)
        return " or ".join(words), [one for _, sections in parts for one in sections]
    if origin is typing.Literal:
        return " or ".join(f"`{each!r}`".replace("'", '"') for each in inside), []
    if origin is tuple:
        word, sections = _kind(inside[0])
        fixed = f"{len(inside)} " if inside[-1] is not ... and len(inside) > 1 else ""
        return f"list of {fixed}{word}", sections
    if origin is not None and issubclass(origin, dict | typing.get_origin(typing.Mapping)):  # type: ignore[arg-type]
        word, sections = _kind(inside[1])
        return ("object" if " or " in word else f"object of {word}"), sections
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object", [annotation]
    words = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return words.get(annotation, "null"), []


def strategies() -> str:
    """Return the options of each strategy, from the functions that build it."""
    from hwprune.sparsity.strategies import STRATEGIES, options_of

    lines = []
    for name, declaration in STRATEGIES.items():
        options = {} if declaration.adapts else options_of(name)  # `auto` is given what it needs
        doc = inspect.getdoc(declaration.build) or ""
        said = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", doc, re.MULTILINE))
        lines.append(f"\n## `{name}`\n")
        lines += (
            ["| option | default | what it is |", "|---|---|---|"] if options else ["No options."]
        )
        for option, value in options.items():
            shown = re.sub(r"``(.+?)``", r"`\1`", " ".join(said[option].split()))
            lines.append(f"| `{option}` | `{str(value).lower()}` | {shown} |")
    return "\n".join(lines)


def boards(*, jetson: bool = False) -> str:
    """Return the profiles of Linux boards: what they run on and may weigh by default."""
    from hwprune import targets

    rows = ["| `--target` | CPU | default budget | onnxruntime | form |", "|---|---|---|---|---|"]
    for target in map(targets.load, targets.names()):
        if target.kind == "linux" and target.name.startswith("jetson") is jetson:
            form = "inlined" if target.runtime.inline_functions else "functions"
            cpu, budget = f"{target.cores}x {target.core}", f"{target.budget_bytes:,} B"
            rows.append(
                f"| `{target.name}` | {cpu} | {budget} | {target.runtime.version} | {form} |"
            )
    return "\n".join(rows)


def chips() -> str:
    """Return the profiles of microcontrollers."""
    from hwprune import targets

    rows = ["| `--target` | core | clock | default budget | RAM |", "|---|---|---|---|---|"]
    for target in map(targets.load, targets.names()):
        if target.kind == "microcontroller":
            clock, core = f"{target.clock_hz // 10**6} MHz", f"{target.cores}x {target.core}"
            sizes = f"{target.budget_bytes:,} B | {target.ram_bytes:,} B"
            rows.append(f"| `{target.name}` | {core.removeprefix('1x ')} | {clock} | {sizes} |")
    return "\n".join(rows)


PARTS: dict[str, Callable[[], str]] = {
    "cli": cli, "python": python, "report": report, "strategies": strategies,
    "boards": boards, "jetsons": functools.partial(boards, jetson=True), "chips": chips,
}  # fmt: skip
