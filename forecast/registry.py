"""Registries: items found by name, from this package and from others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from forecast.errors import UsageError

Item = TypeVar("Item")


class Registry(Mapping[str, Item], Generic[Item]):
    """Items of one kind by name, in the order they were added.

    An installed package adds an item with an entry point in the registry's group. Every process finds it: commands,
    Ray workers and replicas. ``add`` adds an item in this process alone.
    """

    def __init__(self, kind: str, group: str, items: Mapping[str, Item]) -> None:
        """Start with ``items``.

        Args:
            kind: name of the kind of item, for messages: ``metric``.
            group: group of the entry points that add items: ``forecast.metrics``.
            items: the items of this package.
        """
        self._kind, self._group = kind, group
        self._items = dict(items)
        self._complete = False

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
            raise UsageError(f"there is no {self._kind} {name!r}; choose one of: {', '.join(self)}") from None

    def _all(self) -> dict[str, Item]:
        # Read on first use only: the entry points of installed packages take some hundredths of a second.
        if not self._complete:
            for found in entry_points(group=self._group):
                try:
                    self.add(found.name, found.load())
                except (ImportError, AttributeError) as error:
                    raise UsageError(
                        f"the {self._kind} {found.name!r} of an installed package cannot be loaded ({error}); fix or "
                        f"uninstall {found.value.partition(':')[0]}"
                    ) from error
            self._complete = True
        return self._items

    def __getitem__(self, name: str) -> Item:
        return self._items[name] if name in self._items else self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())
