"""Arrays that are nested in dictionaries, tuples and lists: labels, and what networks return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


class Outputs(tuple[Any, ...]):
    """The tensors that a network returns, by place and by name: ``outputs[0]``, ``outputs["box"]``.

    Attributes:
        names: keys of the dictionary or fields of the dataclass that the network returns, else the
            places.
    """

    names: tuple[str, ...]

    def __new__(cls, values: Sequence[Any], names: Sequence[str]) -> Outputs:
        """Name the values."""
        made = super().__new__(cls, values)
        made.names = tuple(names)
        return made

    def __getitem__(self, key: Any) -> Any:
        """Return one by its name or its place, or a slice."""
        if isinstance(key, str):
            if key not in self.names:
                raise KeyError(f"the network has no output {key!r}; it has {', '.join(self.names)}")
            key = self.names.index(key)
        return super().__getitem__(key)


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return the tree with ``function`` applied to each leaf, and to those of trees like it."""
    if isinstance(tree, Mapping):
        return {k: tree_map(function, v, *(each[k] for each in others)) for k, v in tree.items()}
    if isinstance(tree, (tuple, list)):
        found = tuple(tree_map(function, *each) for each in zip(tree, *others, strict=True))
        return Outputs(found, tree.names) if isinstance(tree, Outputs) else found
    return function(tree, *others)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf with its path, such as ``boxes.0``; that of a bare leaf is empty."""
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, (tuple, list)):
        names = tree.names if isinstance(tree, Outputs) else range(len(tree))
        items = list(zip(getattr(tree, "_fields", names), tree, strict=True))
    else:
        yield path, tree
        return
    for key, value in items:
        yield from leaves(value, f"{path}.{key}" if path else str(key))


def outputs_of(found: Any) -> Any:
    """Return what a network returned: one array or tensor as it is, several as ``Outputs``."""
    named = [(path, value) for path, value in leaves(found) if hasattr(value, "shape")]
    if len(named) == 1:
        return named[0][1]
    return Outputs([value for _, value in named], [path for path, _ in named])
