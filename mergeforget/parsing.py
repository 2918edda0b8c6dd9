"""Read JSON, YAML, names and patterns from files and options that may be damaged or hostile.

Each function returns a plain value or raises a MergeforgetError that names the place. Nothing else
in the package calls ``json.loads`` or ``yaml.load`` on text that a user can change.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mergeforget.errors import InputError, MergeforgetError

E = TypeVar("E", bound=MergeforgetError)
YAML_BYTES = 512_000  # PyYAML parses about 200 kB/s; recipes are a few kB
DEPTH = 100  # nesting of lists and objects
NODES = 100_000  # values of a YAML document after its aliases are expanded
NAME_BYTES = 200  # file systems allow 255, and suffixes are appended
INTEGERS = 2**63
PATTERN_BITS = 23.5  # log2 of the ways in which a pattern may match a module name
REPEAT_BITS = 4.8  # of one unbounded repetition, for a name of 60 characters

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""Text with each control character written as an escape, safe to print on a terminal.

    Line feeds and tabs are kept. Escape sequences, bidirectional overrides, invisible characters
    and lone surrogates are not.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return _HIDDEN.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), str(text))


def read_text(path: Path, kind: type[MergeforgetError] = InputError) -> str:
    """Read a UTF-8 text file; a byte order mark is removed.

    Raises:
        MergeforgetError: The file cannot be read (InputError) or is not UTF-8 (``kind``).
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise kind(f"{path}, line {line}: not UTF-8 text. Save the file as UTF-8.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"Cannot read {path}: {reason}.") from error


def parse_json(
    text: str | bytes,
    where: object,
    kind: type[MergeforgetError] = InputError,
    *,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parse JSON.

    Args:
        text: The document.
        where: File (and line) for the message.
        kind: The error to raise.
        pairs: ``object_pairs_hook`` of ``json.loads``.

    Raises:
        MergeforgetError: Not JSON, nested deeper than 100 levels, an infinite number, NaN, an
            integer beyond 64 bits, or text that UTF-8 cannot encode.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=pairs,
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason: object = "nested too deeply" if isinstance(error, RecursionError) else error
        if isinstance(error, json.JSONDecodeError) and error.lineno == 1 and "\n" not in error.doc:
            reason = f"{error.msg} at column {error.colno}"
        raise kind(f"{where} is not valid JSON: {reason}.") from error
    # the walk costs more than parsing: only for a text that can hold what it looks for
    if text.count("[") + text.count("{") > DEPTH or "\\ud" in text.lower():
        _walk(value, where, kind)
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; for ``pairs`` of ``parse_json``.

    Raises:
        ValueError: A key occurs twice, of which ``json`` would keep the last value.
    """
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return mapping


def parse_yaml(text: str, where: object, kind: type[MergeforgetError] = InputError) -> Any:
    """Parse YAML into dictionaries with text keys, lists, texts, numbers, booleans and None.

    Numbers follow JSON and ``true`` and ``false`` are the only booleans, so that ``1e-4`` is a
    number and ``on`` and ``2024-05-01`` are texts.

    Raises:
        MergeforgetError: Not YAML, longer than 512 kB, aliases that expand to more than 100,000
            values or contain themselves, nested too deeply, or a value of another type.
    """
    return parse_yaml_lines(text, where, kind)[0]


def parse_yaml_lines(
    text: str, where: object, kind: type[MergeforgetError] = InputError
) -> tuple[Any, dict[tuple[str, ...], int]]:
    """``parse_yaml``, and the line of every key, counted from 1."""
    import yaml

    if len(text) > YAML_BYTES:
        raise kind(f"{where} is {len(text) / 1e3:.0f} kB of YAML; at most 512 kB are read.")
    loader = None
    try:
        loader = _yaml_loader()(text)
        node = loader.get_single_node()
        _check_size(node, where, kind)
        value = None if node is None else loader.construct_document(node)
        lines = _lines(node)
    except yaml.YAMLError as error:
        raise kind(f"{where} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise kind(f"{where} is not valid YAML: nested too deeply.") from error
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise kind(f"{where} is not valid YAML: {error}.") from error
    finally:
        if loader is not None:
            loader.dispose()
    _walk(value, where, kind)
    return value, lines


def plain_name(name: object, where: object, kind: type[MergeforgetError] = InputError) -> str:
    """Return a name after checking that it is one path component, which cannot leave a folder.

    Raises:
        MergeforgetError: ``name`` is not text, is empty, hidden, longer than 200 bytes, or contains
            a separator, a drive or a control character.
    """
    if not isinstance(name, str) or not name:
        raise kind(f"{where} has {name!r} where a name is expected.")
    if (
        re.search(r"[/\\\x00-\x1f\x7f]", name)
        or name.startswith(".")
        or re.match(r"[A-Za-z]:", name)
        or _HIDDEN.search(name)
        or len(name.encode("utf-8")) > NAME_BYTES
    ):
        raise kind(
            f"{where} has the name {name[:80]!r}, which is not a plain file name: no path "
            f"separators, leading dots or control characters, at most {NAME_BYTES} bytes."
        )
    return name


def usable_path(path: str | Path, kind: type[MergeforgetError] = InputError) -> Path:
    """Return a path after checking that a file system can store it.

    Raises:
        MergeforgetError: It contains a NUL character or a name of more than 255 bytes.
    """
    for name in Path(path).parts:
        if "\0" in name or len(name.encode("utf-8", "surrogateescape")) > 255:
            raise kind(
                f"{name[:40]!r}... cannot be part of a path: it has more than 255 bytes or a NUL "
                "character. Check the path."
            )
    return Path(path)


def safe_pattern(
    pattern: str, where: object, kind: type[MergeforgetError] = InputError
) -> re.Pattern[str]:
    """Compile a regular expression that cannot take exponential time.

    Raises:
        MergeforgetError: Not a regular expression, a repetition or a choice inside an unbounded
            repetition, as in ``(a+)+``, or more than about four unbounded repetitions.
    """
    from re import _parser  # type: ignore[attr-defined]

    try:
        tree = _parser.parse(pattern)
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError, TypeError, ValueError) as error:
        raise kind(f"{where} is not a regular expression: {error}.") from error
    if _bits(tree) > PATTERN_BITS:
        raise kind(
            f"{where}: the pattern {pattern[:60]!r} can take exponential time, because it repeats "
            "a repetition or a choice, or has many of them. Write it without nested * or +, and "
            "with at most four of them."
        )
    return compiled


def _bits(tree: Any) -> float:
    """log2 of the number of ways in which a parsed pattern may match; it bounds backtracking."""
    bits = 0.0
    for op, argument in tree:
        name = str(op)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, inner = int(argument[0]), int(argument[1]), _bits(argument[2])
            if high - low > 2**REPEAT_BITS:
                bits += math.inf if inner else REPEAT_BITS
            else:
                bits += high * inner + math.log2(high - low + 1)
        elif name == "BRANCH":
            bits += math.log2(sum(2 ** min(_bits(one), 1000) for one in argument[1]))
        elif name == "SUBPATTERN":
            bits += _bits(argument[3])
        elif name in ("ASSERT", "ASSERT_NOT"):
            bits += _bits(argument[1])
        elif name == "GROUPREF_EXISTS":
            bits += sum(_bits(one) for one in argument[1:] if one is not None)
        elif name == "ATOMIC_GROUP":
            bits += _bits(argument)
    return bits


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -INTEGERS <= (value := int(digits)) < INTEGERS:
        raise ValueError(f"the integer {digits[:20]}... exceeds 64 bits")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is not a finite number")
    return value


def _walk(value: Any, where: object, kind: type[MergeforgetError]) -> None:
    """Check depth and types without recursion."""
    todo: list[tuple[Any, int]] = [(value, 0)]
    while todo:
        one, depth = todo.pop()
        if depth > DEPTH:
            raise kind(f"{where} is nested deeper than {DEPTH} levels.")
        if isinstance(one, dict):
            for key, inner in one.items():
                if not isinstance(key, str):
                    raise kind(f"{where} has the key {key!r}, which is not text: put it in quotes.")
                todo += [(key, depth), (inner, depth + 1)]
        elif isinstance(one, list):
            todo += [(inner, depth + 1) for inner in one]
        elif isinstance(one, str):
            if not one.isascii() and any("\ud800" <= c <= "\udfff" for c in one):
                raise kind(f"{where} has text that UTF-8 cannot encode: a lone surrogate.")
        elif isinstance(one, bool) or one is None:
            continue
        elif isinstance(one, int):
            if not -INTEGERS <= one < INTEGERS:
                raise kind(f"{where} has an integer that exceeds 64 bits.")
        elif not isinstance(one, float) or not math.isfinite(one):
            raise kind(
                f"{where} has {str(one)[:40]!r}, which is not text, a finite number or a boolean."
            )


def _yaml_loader() -> Any:
    """PyYAML's safe loader with JSON's numbers, two booleans, and no dates."""
    if "loader" in _made:
        return _made["loader"]
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    left_out = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    Loader.yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0] not in left_out]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool",
        re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
        list("tTfF"),
    )
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$"
        ),
        list("-+0123456789."),
    )
    _made["loader"] = Loader
    return Loader


_made: dict[str, Any] = {}


def _check_size(node: Any, where: object, kind: type[MergeforgetError]) -> None:
    """Refuse aliases that expand to too many values or contain themselves."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()
    todo = [(node, False)]
    while todo:
        one, finished = todo.pop()
        value = getattr(one, "value", None)
        if not isinstance(value, list):
            continue
        inner = [x for pair in value for x in (pair if isinstance(pair, tuple) else (pair,))]
        if finished:
            sizes[id(one)] = 1 + sum(sizes.get(id(x), 1) for x in inner)
            open_.discard(id(one))
            if sizes[id(one)] > NODES:
                raise kind(f"{where}: its aliases expand to more than {NODES:,} values.")
        elif id(one) in open_:
            raise kind(f"{where}: an alias contains itself.")
        elif id(one) not in sizes:
            open_.add(id(one))
            todo += [(one, True), *((x, False) for x in inner)]


def _lines(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """Line of every key of a YAML document, counted from 1."""
    found: dict[tuple[str, ...], int] = {}
    value = getattr(node, "value", None)
    if not isinstance(value, list):
        return found
    for i, entry in enumerate(value):
        key, inner = entry if isinstance(entry, tuple) else (entry, entry)
        here = (*path, str(key.value) if isinstance(entry, tuple) else str(i))
        found[here] = key.start_mark.line + 1
        found |= _lines(inner, here)
    return found
