"""Options of `merge`, `merge-models` and `extract-lora`, and the refusal of unused options."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from mergeforget.merge.checkpoint.full import Written

F = TypeVar("F", bound=Callable[..., Any])
FOLDER = click.Path(path_type=Path)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def numbers(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Parse ``1,0.5`` into floats."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1,0.5") from error


def size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """Parse a size such as ``800MB`` or ``4GB`` into bytes."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9.]+)\s*([kKMGT]?)i?B?", text.strip())
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if not match or number <= 0:
        raise click.BadParameter(f"{text!r} is not a size such as 800MB or 4GB")
    return int(number * UNITS[match[2].upper()])


METHOD = [
    click.option(
        "--density",
        type=float,
        help="Fraction of entries kept, in (0, 1].  [default: the recipe's if a run is merged, "
        "otherwise 0.8 for methods that need one]",
    ),
    click.option(
        "--density-by",
        multiple=True,
        metavar="FILTER=D",
        help="Density of the modules whose name contains FILTER; 0.9..0.3 interpolates from the "
        "first to the last layer. Repeatable.",
    ),
    click.option(
        "--weights-by",
        multiple=True,
        metavar="FILTER=W,W,...",
        help="Weights, one per input, of the modules whose name contains FILTER. Repeatable.",
    ),
    click.option(
        "--seed",
        type=int,
        help="Random seed, for methods that drop entries at random.  [default: 0]",
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "float64"]),
        help="Precision of the computation, for any stored dtype.  [default: float32]",
    ),
    click.option(
        "--set",
        "arguments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Set an argument of the method, for example --set sign=count. Repeatable.",
    ),
    click.option(
        "--same-base",
        is_flag=True,
        help="Merge even if the inputs name or contain different base models.",
    ),
    click.option(
        "--device",
        default="cpu",
        show_default=True,
        help="Device of the computation: cpu (numpy), or cuda (torch).",
    ),
]
MODEL_OUTPUT = [
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="Dtype of the written model; auto keeps the base's.",
    ),
    click.option(
        "--max-memory",
        callback=size,
        metavar="SIZE",
        help="Memory for the tensors being merged, for example 800MB.  [default: no limit]",
    ),
    click.option(
        "--shard-size",
        callback=size,
        metavar="SIZE",
        default="5GB",
        show_default=True,
        help="Maximum size of a weights file.",
    ),
]
THREADS = click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    help="Number of threads; does not change the result.  [default: one per core]",
)
NAMES = {"arguments": "--set", "models": "--model", "adapters": "--adapter", "as_json": "--json"}
OUTPUT_ONLY = ("dtype", "max_memory", "shard_size")


def options(*groups: Any) -> Callable[[F], F]:
    """Apply several click options in the order given."""

    def decorate(command: F) -> F:
        for option in reversed(
            [one for g in groups for one in (g if isinstance(g, list) else [g])]
        ):
            command = option(command)
        return command

    return decorate


def given(name: str) -> bool:
    """Return whether an option was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP, None)


def refuse(names: Iterable[str], why: str) -> None:
    """Raise UsageError for given options that do not apply.

    Args:
        names: Parameters of the command.
        why: Completes the sentence "--name does not apply ...".
    """
    from mergeforget.errors import UsageError

    unused = [NAMES.get(n, "--" + n.replace("_", "-")) for n in names if given(n)]
    if unused:
        verb = "does" if len(unused) == 1 else "do"
        raise UsageError(f"{', '.join(unused)} {verb} not apply {why}.")


def arguments_of(texts: Iterable[str]) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` texts into arguments of a method."""
    from mergeforget.errors import UsageError
    from mergeforget.parsing import parse_yaml

    arguments = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set expects NAME=VALUE, for example sign=count, not {text!r}.")
        arguments[name.strip()] = parse_yaml(value, f"--set {name.strip()}", UsageError)
    return arguments


def print_written(written: Written, as_json: bool) -> None:
    """Print the folder of a whole model, and the rounding error of its dtype."""
    from mergeforget.commands._options import emit

    made = written.candidate
    lines = [f"{written.folder}: {made.name if made else 'merged by mergekit'}"]
    if written.rounding:
        lines.append(
            f"Rounding to the output dtype causes an error of {written.rounding:.1%} in the "
            "realised change. --dtype float32 avoids it; evaluate the model that you ship."
        )
    facts: dict[str, Any] = {
        "folder": str(written.folder),
        "engine": "mergeforget" if made else "mergekit",
    }
    if made is not None:
        facts |= {"candidate": made.to_dict(), "rounding": written.rounding}
    emit(facts, "\n".join(lines), as_json)
