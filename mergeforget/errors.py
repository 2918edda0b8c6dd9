"""Errors whose message a user can act on; the command line prints them without a traceback.

Each kind has an exit code, so that a script can tell a typing mistake from a full disk. A message
says what happened, why, and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MergeforgetError(Exception):
    """Base of every error raised on purpose by this package."""

    exit_code = 1


class UsageError(MergeforgetError):
    """A call that cannot be understood: an unknown name, a value out of range."""

    exit_code = 2


class RecipeError(MergeforgetError):
    """A recipe that is not valid."""

    exit_code = 3


class InputError(MergeforgetError):
    """A file, model or adapter that is missing, malformed or does not fit."""

    exit_code = 4


class NumericError(MergeforgetError):
    """NaN, Inf, divergence, or an adapter that did not move."""

    exit_code = 5


class ResourceError(MergeforgetError):
    """Not enough memory or disk, or a folder that somebody else is writing."""

    exit_code = 6


class VerificationError(MergeforgetError):
    """What was written does not equal what was meant."""

    exit_code = 7


class DensityError(UsageError, ValueError):
    """A density outside (0, 1]."""

    def __init__(self, density: float) -> None:
        super().__init__(
            f"The density is {density:g}, but it is the fraction of entries kept and must lie in "
            "(0, 1]. 1 keeps every entry; write 0.8 for 80 percent."
        )


class UnknownNameError(UsageError, LookupError):
    """A name that no member of a family has."""

    def __init__(self, kind: str, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"There is no {kind} named {name!r}.{suggest(name, known)} Known: {', '.join(known)}."
        )


def suggest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest known name, or nothing where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


class Interrupted(MergeforgetError):
    """Told to end from outside; a checkpoint is saved."""

    exit_code = 143
