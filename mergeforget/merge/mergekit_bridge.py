"""Runs mergekit on configurations that this engine cannot run; the only module that imports it."""

from __future__ import annotations

from pathlib import Path

from mergeforget.console import save_details, say
from mergeforget.errors import InputError, suggest
from mergeforget.files import replacing
from mergeforget.parsing import parse_yaml, read_text
from mergeforget.replace import NO_SPACE, write_lock

THEIR_MARK = "mergekit_config.yml"  # file that mergekit writes into every result


def run_mergekit(path: Path, out: Path, why: str) -> None:
    """Run a configuration with mergekit; the result is written atomically.

    Args:
        path: The configuration.
        out: Folder to write.
        why: Reason why this engine cannot run it, for the message.

    Raises:
        InputError: mergekit is not installed, or rejects the configuration or a model. The message
            is one sentence and names a file with mergekit's own message.
        ResourceError: There is too little memory or disk space, or another process writes there.
    """
    config = parse_yaml(read_text(path), path)
    name = config["merge_method"]
    say(f"mergekit runs this configuration, because {why}.")
    try:
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.merge_methods.registry import registered_methods
        from mergekit.options import MergeOptions
    except ImportError as error:
        raise InputError(
            f"{path} can only be run by mergekit, which is not installed or does not load "
            f"({_first_line(error)}). Install it: pip install mergekit (Python 3.11 to 3.13)."
        ) from error
    known_methods = [method.spec.name for method in registered_methods()]
    if name not in known_methods:
        raise InputError(
            f"{path} names the merge method {name!r}, which neither mergeforget nor mergekit has."
            f"{suggest(name, known_methods)} Known: {', '.join(sorted(known_methods))}."
        )
    with write_lock(out), replacing(out) as temporary:
        try:
            run_merge(
                MergeConfiguration.model_validate(config), str(temporary), MergeOptions(quiet=True)
            )
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in NO_SPACE
            if full or "out of memory" in str(error).lower():
                raise  # the command line has messages for these
            details = save_details(error)
            where = f" The details are in {details}." if details else ""
            raise InputError(
                f"mergekit could not run {path}: {_first_line(error)}{where}"
            ) from error


def _first_line(error: Exception) -> str:
    """Return the first informative line of an error; pydantic's first line is only a count."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 2 and "validation error" in lines[0]:
        lines = [f"{lines[1]}: {lines[2].split(' [type=')[0]}"]
    text = lines[0][:300] if lines else type(error).__name__
    text = f"no entry {text}" if isinstance(error, KeyError) else text
    return text if text.endswith(".") else f"{text}."
