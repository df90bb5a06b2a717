"""Arrays that are nested in dictionaries, tuples and lists: labels, and what networks return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return the tree with ``function`` applied to each leaf, and to those of trees like it."""
    if isinstance(tree, Mapping):
        return {k: tree_map(function, v, *(each[k] for each in others)) for k, v in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(tree_map(function, *each) for each in zip(tree, *others, strict=True))
    return function(tree, *others)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf with its path, such as ``boxes.0``; that of a bare leaf is empty."""
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, (tuple, list)):
        items = list(enumerate(tree))
    else:
        yield path, tree
        return
    for key, value in items:
        yield from leaves(value, f"{path}.{key}" if path else str(key))
