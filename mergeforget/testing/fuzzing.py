"""Damage valid documents at random and give them to each parser.

``FUZZED`` lists the parsers, each with a valid document. ``fuzz`` changes the document at random;
the parser may only raise a MergeforgetError.
"""

from __future__ import annotations

import json
import random
import traceback
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeforget.errors import MergeforgetError
from mergeforget.testing.parsers import FUZZED, FuzzedParser


@dataclass
class Counted:
    """Outcomes of one kind of fault.

    Attributes:
        tried: Number of faults.
        failures: A sentence for each that lost a result, left a file, or raised another error.
    """

    tried: int = 0
    failures: list[str] = field(default_factory=list)


PIECES = [
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"null", b"NaN", b"Infinity", b"-1", b"1e999",
    b"9" * 400, b"9" * 5000, b"[" * 100_000, b'{"a":' * 3000, b"\\ud800", b"\xe9", b"2024-13-45",
    b"!!set x", b"&a [*a, *a]", b"*a", b"../../x", b"\x1b[31m", b"(a+)+$", b"a" * 300, b"\n",
    b'"', b"'", b",", b": ", b"- ", b"{}", b"[]", b"true", b"''", b"\t", b"%", b"=", b".", b"0x10",
    b"!!binary x", b"(a|aa)+", b".*", b"{0,50}", b"\xe2\x80\xa8",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 1.5, "", "x", "../../x", "a\x00b", "\x1b[31m", "1.2.3", "(a+)+$", [], [None],
    {}, {"a": None}, [[1, "x"]], [{"a": []}], 2**62, "x" * 300,
]  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return a document with one to four random changes of its bytes or of its JSON values."""
    if draw.random() < 0.5:
        changed = _other_values(content, draw)
        if changed is not None:
            return changed
    raw = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        where = draw.randint(0, len(raw))
        kind = draw.randrange(5)
        if kind == 0 and raw:
            raw[min(where, len(raw) - 1)] = draw.randrange(256)
        elif kind == 1:
            del raw[where : where + draw.randint(1, 12)]
        elif kind == 2:
            del raw[where:]
        elif kind == 3:  # a value of another type
            ends = [i for i, c in enumerate(raw) if c in b":,=["]
            at = draw.choice(ends) + 1 if ends else where
            stop = next((i for i in range(at, len(raw)) if raw[i] in b",\n]}"), len(raw))
            raw[at:stop] = b" " + draw.choice(PIECES)  # YAML separates a key by ": "
        else:
            raw[where:where] = draw.choice(PIECES)
    return bytes(raw)


def _other_values(content: bytes, draw: random.Random) -> bytes | None:
    """Replace or remove one to three values of a JSON document or of JSON Lines, at any depth."""
    try:
        text = content.decode()
        lines = [json.loads(text)] if not text.count("\n") else None
        values = lines or [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        try:
            values = [json.loads(content)]
        except ValueError:
            return None
    for _ in range(draw.randint(1, 3)):
        places = list(_places(values))
        holder, key = draw.choice(places)
        if draw.random() < 0.2 and holder is not values:
            del holder[key]
        else:
            holder[key] = deepcopy(draw.choice(VALUES))
    return "\n".join(json.dumps(value) for value in values).encode() + b"\n"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Return each element of a nested value as its container and its key."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def fuzz(name: str, folder: Path, count: int, seed: int = 0) -> Counted:
    """Give a parser damaged documents; any exception but a MergeforgetError is a failure.

    Args:
        name: A key of ``FUZZED``.
        folder: A working folder.
        count: Number of documents.
        seed: Random seed.
    """
    return fuzz_target(FUZZED[name], folder, count, f"{name}{seed}")


def fuzz_target(target: FuzzedParser, folder: Path, count: int, seed: str) -> Counted:
    """``fuzz`` for a parser that is not in ``FUZZED``."""
    content = target.content() if callable(target.content) else target.content
    content = content.encode() if isinstance(content, str) else content
    draw, counted = random.Random(seed), Counted()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / target.file
    path.write_bytes(content)
    target.parse(path)  # the document itself is valid
    for _ in range(count):
        raw = mutated(content, draw)
        path.write_bytes(raw)
        counted.tried += 1
        try:
            target.parse(path)
        except MergeforgetError:
            continue
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            counted.failures.append(
                f"{target.file}: {error!r:.150} at {Path(place.filename).name}:{place.lineno}, "
                f"input {raw[:120]!r}"
            )
    return counted
