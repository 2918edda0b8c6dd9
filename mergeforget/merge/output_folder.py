"""Checks that an output folder may be written, since its content is replaced as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mergeforget.errors import InputError
from mergeforget.merge.inputs import some

MADE = "candidate.json"  # a folder that has it was merged here, and may be merged again


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Raise InputError where ``out`` is an input, or contains one."""
    place = out.resolve()
    for path in inputs:
        read = path.resolve()
        if place in (read, *read.parents) and read.exists():
            what = "is read" if place == read else f"holds {path}, which is read"
            raise InputError(
                f"{out} {what}, and the output would replace it. Choose another place with --out."
            )


def check_free(
    out: Path, inputs: Iterable[Path], mark: str = MADE, made: str = "merged here"
) -> None:
    """Raise InputError where ``out`` contains an input, or files from elsewhere.

    Args:
        mark: the file by which an earlier result is known, which may be replaced.
        made: how such a result came to be, for the message.
    """
    check_apart(out, inputs)
    if out.is_file():
        raise InputError(f"{out} is a file. Choose another place with --out.")
    held = [path.name for path in out.iterdir()] if out.is_dir() else []
    if held and mark not in held:
        raise InputError(
            f"{out} holds something that was not {made}: {some(held)}. Choose another place with "
            "--out, or an empty one."
        )
