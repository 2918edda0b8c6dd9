"""One folder per family, one file per member, one decorator per file."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from mergeforget.errors import UnknownNameError, UsageError, suggest

F = TypeVar("F", bound=Callable[..., Any])  # what the family promises
G = TypeVar("G", bound=Callable[..., Any])  # one member, with its own signature kept


@dataclass(frozen=True)
class Entry(Generic[F]):
    """A registered function, its name, where it was published, and what it needs to be given."""

    name: str
    fn: F
    source: str
    needs: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Keyword-only arguments of ``fn``: what a recipe or the command line may set."""
        every = inspect.signature(self.fn).parameters
        return {n: p for n, p in every.items() if p.kind is p.KEYWORD_ONLY}

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.fn) or "").split("\n")[0]

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Raise UsageError for an argument that ``fn`` does not take, with those it takes."""
        for name in arguments:
            if name not in self.parameters:
                takes = ", ".join(self.parameters) or "none"
                raise UsageError(
                    f"{self.name!r} takes no argument {name!r}."
                    f"{suggest(name, self.parameters)} It takes: {takes}."
                )


class Registry(Generic[F]):
    """The members of one family, for example every merge method.

    A member lives in ``<package>/<name>.py``; the file name is its name, so listing the
    family imports nothing and fetching one member imports one file.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry[F]] = {}

    def register(self, name: str, *, source: str, needs: tuple[str, ...] = ()) -> Callable[[G], G]:
        """Decorator that adds a function under ``name``; ``source`` says where it is published.

        ``needs`` names what a caller must compute for it, in the family's own words.
        """

        def keep(fn: G) -> G:
            self._entries[name] = Entry(name, cast(F, fn), source, needs)
            return fn

        return keep

    def names(self) -> list[str]:
        """Every member, sorted; nothing is imported."""
        path = import_module(self.package).__path__
        return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))

    def get(self, name: str) -> Entry[F]:
        """The member called ``name`` (dashes and underscores are the same).

        Raises:
            UnknownNameError: there is none; the message names the nearest.
        """
        name = name.replace("-", "_")
        if name in self._entries:
            return self._entries[name]
        known = self.names()
        if name not in known:
            raise UnknownNameError(self.kind, name, known)
        import_module(f"{self.package}.{name}")
        return self._entries[name]
