"""Errors that a user can fix; the command line prints them without a traceback.

Each class has an exit code, so that a script can distinguish a misspelled option from a full disk.
A message says what happened, why, and how to fix it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MergeforgetError(Exception):
    """Base class of the errors of this package."""

    exit_code = 1


class UsageError(MergeforgetError):
    """An unknown name, an option that does not apply, or a value out of range."""

    exit_code = 2


class RecipeError(MergeforgetError):
    """A recipe that is not valid."""

    exit_code = 3


class InputError(MergeforgetError):
    """A file, model or adapter that is missing, malformed or incompatible."""

    exit_code = 4


class NumericError(MergeforgetError):
    """NaN, infinity, divergence, or an adapter that did not change."""

    exit_code = 5


class ResourceError(MergeforgetError):
    """Not enough memory or disk space, or a folder that another process is writing."""

    exit_code = 6


class VerificationError(MergeforgetError):
    """A written result differs from the expected one."""

    exit_code = 7


class DensityError(UsageError, ValueError):
    """A density outside (0, 1]."""

    def __init__(self, density: float) -> None:
        super().__init__(
            f"The density is {density:g}, but it is the fraction of entries kept and must be in "
            "(0, 1]. 1 keeps every entry; write 0.8 for 80 percent."
        )


class UnknownNameError(UsageError, LookupError):
    """A name that no member of a family has."""

    def __init__(self, kind: str, name: str, known: Sequence[str], hint: str = "") -> None:
        near = suggest(name, known)
        super().__init__(
            f"There is no {kind} named {name!r}.{near} Known: {', '.join(known)}."
            f"{'' if near else hint}"
        )


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message as a sentence."""
    return first_line(error).rstrip(". ") + "."


class Interrupted(MergeforgetError):
    """A signal stopped a training after a checkpoint was saved.

    Args:
        message: The message for the user.
        signum: The signal: SIGINT gives exit code 130, SIGTERM 143.
    """

    exit_code = 143

    def __init__(self, message: str, signum: int = 15) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum
