"""Find a profile by name, alias or path, follow ``extends``, and hand it on as a Target."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hwprune import toml
from hwprune.errors import TargetError
from hwprune.targets.explain import give
from hwprune.targets.profile import Target, build

_FOLDER = Path(__file__).resolve().parent
# What belongs to one file and is not handed down.
_OWN_FIELDS = ("name", "aliases", "extends")


class _Index(NamedTuple):
    """The profiles of one folder: path by name, name by alias."""

    paths: Mapping[str, Path]
    aliases: Mapping[str, str]


def names() -> list[str]:
    """Return the names of the built-in profiles, sorted."""
    return sorted(_index(_FOLDER).paths)


def aliases() -> dict[str, str]:
    """Return the built-in aliases: alias -> name."""
    return dict(sorted(_index(_FOLDER).aliases.items()))


def load(name_or_path: str | os.PathLike[str]) -> Target:
    """Read a profile.

    Args:
        name_or_path: a built-in name or alias (case and ``_`` do not matter), or the path of a
            TOML file: anything that ends in ``.toml`` or contains a separator.

    Raises:
        TargetError: no such profile, not readable, not TOML, or not valid; names file and field.
    """
    text = os.fspath(name_or_path)
    return load_file(text if _is_path(text) else _find(text, _index(_FOLDER)))


def load_file(path: str | os.PathLike[str]) -> Target:
    """Read a profile from a file, whatever its name.

    Raises:
        TargetError: not readable, not TOML, or not valid; names file and field.
    """
    index = _index(_FOLDER)
    file = Path(path)
    table, origins = _resolve(file, index)
    name = file.stem.lower().replace(" ", "-")
    target = build(table, name=name, path=str(file), origins=origins)
    if file.resolve().parent != _FOLDER:
        _refuse_taken_names(target, index)
    return target


def _refuse_taken_names(target: Target, index: _Index) -> None:
    """A user's profile must not pass for a built-in one in a report."""
    for field, name in (("name", target.name), *(("aliases", alias) for alias in target.aliases)):
        taken = name if name in index.paths else index.aliases.get(name)
        if taken is not None:
            raise TargetError(
                f"{target.source_path}: {field}: {name!r} already names the built-in {taken}; "
                "expected a name of its own",
                hint="rename the file, or add `name = ...` at its top; drop copied aliases",
            )


def _is_path(text: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return text.lower().endswith(".toml") or any(mark in text for mark in separators)


def _find(name: str, index: _Index) -> Path:
    wanted = _normal(name)
    wanted = index.aliases.get(wanted, wanted)
    if wanted in index.paths:
        return index.paths[wanted]
    close = _suggestions(_normal(name), [*index.paths, *index.aliases])
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise TargetError(
        f"{give(name)} is not a device profile",
        hint=f"{hint}`hwprune targets` lists all; the path of a profile of your own ends in .toml",
    )


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def _suggestions(wanted: str, known: Iterable[str]) -> list[str]:
    """Return at most four names: those spelt alike first, then those one part of the other."""
    known = sorted(known)
    inside = [name for name in known if len(wanted) > 2 and (wanted in name or name in wanted)]
    alike = difflib.get_close_matches(wanted, known, n=4, cutoff=0.6)
    return list(dict.fromkeys([*alike, *inside]))[:4]


@functools.cache
def _index(folder: Path) -> _Index:
    """Read the names and aliases of a folder's profiles; ``_name.toml`` only serves ``extends``.

    Raises:
        TargetError: a name or alias occurs twice.
    """
    paths = {path.stem: path for path in sorted(folder.glob("[!_]*.toml"))}
    owners = {name: name for name in paths}
    aliases: dict[str, str] = {}
    for name, path in paths.items():
        listed = _read(path).get("aliases", [])
        for alias in listed if isinstance(listed, list) else []:
            if isinstance(alias, str) and alias in owners:
                raise TargetError(
                    f"{path}: aliases: {give(alias)} already names {owners[alias]}; "
                    "expected a name of its own",
                    hint="take the alias out of one of the two profiles",
                )
            if isinstance(alias, str):
                owners[alias] = aliases[alias] = name
    return _Index(paths, aliases)


# -- files --------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    """Read one TOML file, whatever it turns out to be."""
    hint = "docs/targets.md has a complete example; `hwprune targets` lists the profiles there are"
    return toml.read(path, "a device profile", TargetError, hint=hint)


def _resolve(path: Path, index: _Index) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a profile and what it extends.

    Returns:
        The merged table, and for each inherited field the file it stands in.
    """
    chain: dict[Path, tuple[Path, dict[str, Any]]] = {}
    while True:
        table = _read(path)  # first: it answers for paths that cannot even be resolved
        here = path.resolve()
        if here in chain:
            circle = [link.name for link in (*list(chain)[list(chain).index(here) :], here)]
            if (more := len(circle) - 8) > 0:
                circle[4:-4] = [f"({more:,} more)"]
            raise TargetError(
                f"{next(iter(chain))}: extends: goes in a circle: {' extends '.join(circle)}",
                hint="one of these profiles must stand on its own",
            )
        chain[here] = path, table
        if "extends" not in table:
            break
        path = _parent(table["extends"], path, index)
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    above = ""
    for path, table in reversed(chain.values()):
        for field in _OWN_FIELDS:
            merged.pop(field, None)
        child = {field: value for field, value in table.items() if field != "extends"}
        merged, above = _merge(merged, child, "", above, origins), str(path)
    return merged, origins


def _parent(extends: Any, path: Path, index: _Index) -> Path:
    if not isinstance(extends, str):
        raise TargetError(
            f"{path}: extends = {give(extends)}: expected the name of a profile, "
            "or the path of one, as text"
        )
    if _is_path(extends):
        return path.parent / extends
    base = _FOLDER / f"{extends}.toml"
    if extends.startswith("_") and base.exists():
        return base
    try:
        return _find(extends, index)
    except TargetError as error:
        raise TargetError(f"{path}: extends: {error.message}", hint=error.hint) from None


def _merge(
    parent: dict[str, Any],
    child: dict[str, Any],
    prefix: str,
    parent_path: str,
    origins: dict[str, str],
) -> dict[str, Any]:
    """Lay the child's fields over the parent's, and note in ``origins`` what stays the parent's.

    A fact is replaced as a whole: a new value under the old source would be a lie. Tables hold no
    further tables.
    """
    merged = dict(child)
    for field, value in parent.items():
        place = prefix + field
        if field not in child:
            merged[field] = value
            origins.setdefault(place, parent_path)
        elif not prefix and _is_table(value) and _is_table(child[field]):
            # A table that the parent itself inherited whole: its fields stand where it stands.
            stands = origins.pop(place, parent_path)
            merged[field] = _merge(value, child[field], f"{place}.", stands, origins)
        else:
            for inherited in [at for at in origins if at == place or at.startswith(f"{place}.")]:
                del origins[inherited]
    return merged


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and not {"value", "source"} & value.keys()
