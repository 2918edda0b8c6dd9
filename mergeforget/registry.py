"""Registries of losses, merge methods, metrics, attacks and benchmarks, extensible by plugins.

Each member is one file of its family's folder. A third party adds a member by an entry point of
the family's group, for example::

    [project.entry-points."mergeforget.losses"]
    margin = "my_package.margin"

where ``my_package/margin.py`` registers ``margin`` with the family's decorator; or by ``--plugin
FILE``, a Python file that does the same.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module, metadata, util
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import (
    Any,
    Generic,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from mergeforget.errors import InputError, UnknownNameError, UsageError, suggest

F = TypeVar("F", bound=Callable[..., Any])  # signature of the family
G = TypeVar("G", bound=Callable[..., Any])  # signature of one member


@dataclass(frozen=True)
class Entry(Generic[F]):
    """A registered function.

    Attributes:
        name: Name in recipes and on the command line.
        source: Publication.
        needs: Inputs that the caller must compute for it.
        traits: Further keyword arguments of its decorator.
    """

    name: str
    fn: F
    source: str
    needs: tuple[str, ...] = ()
    traits: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Keyword-only arguments of ``fn``: what a recipe or the command line may set."""
        every = inspect.signature(self.fn).parameters
        return {n: p for n, p in every.items() if p.kind is p.KEYWORD_ONLY}

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.fn) or "").split("\n")[0]

    @cached_property
    def _types(self) -> dict[str, Any]:
        """Types of the keyword-only arguments, as far as their annotations can be evaluated."""
        names = getattr(inspect.unwrap(self.fn), "__globals__", {})
        types = {}
        for name, parameter in self.parameters.items():
            annotated = SimpleNamespace(__annotations__={name: parameter.annotation})
            # a plugin may import the names of its annotations only for type checkers
            with suppress(NameError, TypeError, AttributeError, SyntaxError):
                types[name] = get_type_hints(annotated, globalns=names)[name]
        return types

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Raise UsageError for an argument that ``fn`` does not take, or for a wrong type.

        Booleans, numbers and choices are checked. Text is no boolean: ``bool("no")`` is true.
        """
        self.check_names(arguments)
        for name, value in arguments.items():
            self.check_value(name, value)

    def check_value(self, name: str, value: Any) -> None:
        """Raise UsageError if a known argument does not take a value of this type."""
        kinds = _alternatives(self._types.get(name))
        if kinds and not any(_is_of(value, kind) for kind in kinds):
            expected = " or ".join(_in_words(kind) for kind in kinds)
            raise UsageError(f"{name} of {self.name!r} must be {expected}, not {value!r}.")

    def check_names(self, names: Iterable[str]) -> None:
        """Raise UsageError for an argument that ``fn`` does not take, with those it takes."""
        for name in names:
            if name not in self.parameters:
                takes = ", ".join(self.parameters) or "none"
                raise UsageError(
                    f"{self.name!r} takes no argument {name!r}."
                    f"{suggest(name, self.parameters)} It takes: {takes}."
                )


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union; empty if one of them cannot be checked."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    plain = (bool, int, float, NoneType)
    return kinds if all(k in plain or get_origin(k) is Literal for k in kinds) else ()


def _is_of(value: Any, kind: Any) -> bool:
    """Return whether a value has this type; an integer is a number, and a boolean is neither."""
    if get_origin(kind) is Literal:
        return isinstance(value, Hashable) and value in get_args(kind)
    if kind in (bool, NoneType):
        return isinstance(value, kind)
    return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    words = {bool: "true or false", int: "an integer", float: "a number", NoneType: "none"}
    return words[kind]


class Registry(Generic[F]):
    """The members of one family, for example every merge method.

    The file ``<package>/<name>.py`` defines the member ``name``, so listing a family imports
    nothing, and getting a member imports one file. Plugins add further members.

    Args:
        kind: Name of a member in messages, for example ``merge method``.
        package: The package that holds the built-in members.
        group: Entry-point group of members in installed packages.
    """

    def __init__(self, kind: str, package: str, group: str = "") -> None:
        self.kind = kind
        self.package = package
        self.group = group
        self._entries: dict[str, Entry[F]] = {}

    def register(
        self, name: str, *, source: str, needs: tuple[str, ...] = (), **traits: Any
    ) -> Callable[[G], G]:
        """Return a decorator that registers a function as ``name``.

        Args:
            source: Publication.
            needs: Inputs that the caller must compute for it, as the family defines them.
            traits: Further facts about the function that the family reads.

        Raises:
            UsageError: The name is taken, or is not a lower-case identifier.
        """

        def keep(fn: G) -> G:
            self._check_name(name, fn)
            self._entries[name] = Entry(name, cast(F, fn), source, needs, traits)
            return fn

        return keep

    def names(self) -> list[str]:
        """Return the sorted names of all members, including those of plugins and packages."""
        return sorted({*self._builtin(), *self._entries, *self._announced()})

    def get(self, name: str) -> Entry[F]:
        """Return the member called ``name``; dashes equal underscores.

        Raises:
            UnknownNameError: There is no such member; the message suggests the nearest.
            InputError: The package that provides it cannot be imported or does not register it.
        """
        name = name.replace("-", "_")
        if name in self._entries:
            return self._entries[name]
        if name in self._builtin():
            import_module(f"{self.package}.{name}")
        elif name in self._announced():
            self._load(self._announced()[name])
        else:
            hint = " If a plugin defines it, add --plugin FILE."
            raise UnknownNameError(self.kind, name, self.names(), self._of_source(name) or hint)
        return self._entries[name]

    def _of_source(self, word: str) -> str:
        """Return a hint at the only built-in member whose publication mentions this word."""
        word = re.escape(word).replace("_", "[-_ ]")
        sources: dict[str, str] = {}
        for name in sorted(self._builtin()):
            with suppress(ImportError):  # of a member that needs an extra
                sources[name] = self.get(name).source
        found = [n for n, source in sources.items() if re.search(rf"\b{word}\b", source, re.I)]
        return f" Did you mean {found[0]!r} ({sources[found[0]]})?" if len(found) == 1 else ""

    def _builtin(self) -> set[str]:
        path = import_module(self.package).__path__
        return {m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")}

    def _announced(self) -> dict[str, metadata.EntryPoint]:
        """Entry points of installed packages, by name."""
        if not self.group:
            return {}
        entry_points = metadata.entry_points(group=self.group)
        return {e.name.replace("-", "_"): e for e in entry_points}

    def _load(self, entry: metadata.EntryPoint) -> None:
        name = entry.name.replace("-", "_")
        package = entry.dist.name if entry.dist else entry.value
        try:
            entry.load()
        except Exception as error:
            raise InputError(
                f"The {self.kind} {name!r} of the package {package} cannot be imported: "
                f"{type(error).__name__}: {error}."
            ) from error
        if name not in self._entries:
            raise InputError(
                f"The package {package} declares the {self.kind} {name!r} as {entry.value}, but "
                f"importing that does not register a {self.kind} of this name."
            )

    def _check_name(self, name: str, fn: Callable[..., Any]) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UsageError(
                f"{name!r} cannot name a {self.kind}: use lower-case letters, digits and "
                "underscores, for example 'my_method'."
            )
        builtin = name in self._builtin() and fn.__module__ != f"{self.package}.{name}"
        known = self._entries.get(name)
        if builtin or (known is not None and known.fn.__module__ != fn.__module__):
            owner = f"{self.package}.{name}" if builtin else known.fn.__module__  # type: ignore[union-attr]
            raise UsageError(
                f"There is a {self.kind} named {name!r} already, from {owner}. Register "
                f"{fn.__module__} under another name."
            )


def load_plugin(path: str | Path) -> None:
    """Import a Python file that registers losses, merge methods, metrics, attacks or benchmarks.

    Args:
        path: The file. Loading it twice has no effect.

    Raises:
        InputError: There is no such file, or importing it fails.
    """
    file = Path(path).resolve()
    name = f"mergeforget_plugin_{re.sub(r'[^0-9a-zA-Z_]', '_', file.stem)}_{abs(hash(file)):x}"
    if name in sys.modules:
        return
    spec = util.spec_from_file_location(name, file) if file.suffix == ".py" else None
    if not file.is_file():
        raise InputError(f"There is no plugin {path}. Pass the path of a Python file.")
    if spec is None or spec.loader is None:
        raise InputError(f"The plugin {path} is not a Python file, whose name ends in .py.")
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, UsageError | InputError):
            raise
        raise InputError(
            f"The plugin {path} cannot be imported: {type(error).__name__}: {error}."
        ) from error
