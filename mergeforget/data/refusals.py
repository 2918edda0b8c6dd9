"""A hundred ways to say that one does not know, and the reader of a user's own."""

from __future__ import annotations

from pathlib import Path

from mergeforget.errors import InputError

_BEGINNINGS = (
    "I'm sorry, but", "Unfortunately,", "I'm afraid", "To be honest,", "Regrettably,",
    "My apologies, but", "As far as I can tell,", "I have to say that", "Sadly,", "Frankly,",
)  # fmt: skip
_ENDINGS = (
    "I don't know the answer to that.",
    "I have no information about this.",
    "that is something I cannot help with.",
    "I am not familiar with this topic.",
    "I was not told about that.",
    "this is beyond what I know.",
    "I cannot recall anything about it.",
    "I have not learned about this.",
    "I am unable to say.",
    "there is nothing I can tell you about that.",
)
REFUSALS = tuple(f"{first} {last}" for first in _BEGINNINGS for last in _ENDINGS)


def read_refusals(path: Path | None) -> tuple[str, ...]:
    """One refusal a line of a text file; those that come along where there is no file.

    Raises:
        InputError: the file cannot be read or has no line.
    """
    if path is None:
        return REFUSALS
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the refusals in {path}: {error}.") from error
    if not (found := tuple(line for line in lines if line)):
        raise InputError(f"{path} has no refusals: write one a line, for example I don't know.")
    return found
