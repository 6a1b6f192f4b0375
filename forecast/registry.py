"""Registries: items found by name, from this package and from others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from forecast.errors import UsageError

Item = TypeVar("Item")


class Registry(Mapping[str, Item], Generic[Item]):
    """Items of one kind by name, in the order they were added.

    An installed package adds an item with an entry point in the registry's group. Every process finds it: commands,
    Ray workers and replicas. ``add`` adds an item in this process alone.
    """

    def __init__(self, kind: str, group: str, items: Mapping[str, Item], accepts: type = object) -> None:
        """Start with ``items``.

        Args:
            kind: name of the kind of item, for messages: ``metric``.
            group: group of the entry points that add items: ``forecast.metrics``.
            items: the items of this package.
            accepts: type of an item.
        """
        self._kind, self._group, self._accepts = kind, group, accepts
        self._items = dict(items)
        self._own = frozenset(items)

    def add(self, name: str, item: Item) -> None:
        """Add an item; adding the same one again changes nothing.

        Raises:
            UsageError: when another item has that name.
        """
        if self._items.setdefault(name, item) is not item:
            raise UsageError(f"there is a {self._kind} called {name!r} already; choose another name")

    def find(self, name: str) -> Item:
        """Find the item called ``name``.

        Raises:
            UsageError: when there is none; the message lists the known names.
        """
        try:
            return self[name]
        except KeyError:
            raise UsageError(
                f"`{self._kind}` {name}: no {self._kind} has this name; choose one of {', '.join(self)}, or install "
                "the package that adds it"
            ) from None

    def __getitem__(self, name: str) -> Item:
        if name not in self._items:
            self.add(name, self._load(self._outside[name]))
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items or name in self._outside

    def __iter__(self) -> Iterator[str]:
        return iter([*self._items, *(name for name in self._outside if name not in self._items)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    @cached_property
    def _outside(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages by name; none is loaded before its item is needed.

        Raises:
            UsageError: when a package uses a name that is taken.
        """
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self._group):
            if entry.name in found or entry.name in self._own:
                raise UsageError(
                    f"the package {_package(entry)} adds a {self._kind} {entry.name!r}, but this name is taken; rename "
                    "the entry point, or uninstall the package"
                )
            found[entry.name] = entry
        return found

    def _load(self, entry: EntryPoint) -> Item:
        try:
            item: Item = entry.load()
        except Exception as error:  # a package's import can fail in any way
            raise UsageError(
                f"the {self._kind} {entry.name!r} of the package {_package(entry)} cannot be loaded "
                f"({type(error).__name__}: {error}); fix or uninstall the package"
            ) from error
        if not isinstance(item, self._accepts):
            raise UsageError(
                f"the {self._kind} {entry.name!r} of the package {_package(entry)} is not an instance of "
                f"{self._accepts.__name__}; name an instance in the entry point"
            )
        return item


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value
