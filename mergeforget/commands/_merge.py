"""Parse the options of `mergeforget merge` into the types of the merge engine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.api.merging import DEFAULTS

if TYPE_CHECKING:
    from mergeforget.candidate import Candidate
    from mergeforget.merge.checkpoint.tensor_jobs import Output

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def numbers(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """``1,0.5`` as floats."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1,0.5") from error


def size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """``800MB`` or ``4GB`` in bytes."""
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


def check_out(out: Path, options: dict[str, Any], bases: Iterable[str], mark: str = "") -> None:
    """Raise InputError where ``--out`` is an input, or holds what no merge made.

    Args:
        bases: Models, by folder or by their name on the hub.
        mark: The file that marks an earlier result, if it is not ``candidate.json``.
    """
    from mergeforget.merge.output_folder import MADE, check_free

    given = [*options["adapters"], *options["models"], *options["data"]]
    given += [Path(name) for name in [options["config"], options["base"], *bases] if name]
    check_free(out, given, mark or MADE)


def output(options: dict[str, Any]) -> Output:
    from mergeforget.merge.checkpoint.tensor_jobs import Output

    return Output(
        dtype=options["dtype"],
        shard_bytes=options["shard_size"],
        threads=options["threads"],
        device=options["device"],
        max_memory=options["max_memory"],
    )


def arguments_of(assignments: Iterable[str]) -> dict[str, Any]:
    """``sign=count`` each, values in YAML, as arguments of a merge method."""
    import yaml

    from mergeforget.errors import UsageError

    found = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set wants NAME=VALUE, for example sign=count, not {assignment!r}.")
        found[name.strip()] = yaml.safe_load(value)
    return found


def candidate(options: dict[str, Any], n: int, weight: float = 1.0) -> Candidate:
    """How whole models are merged."""
    from mergeforget.candidate import Candidate

    arguments = arguments_of(options["arguments"])
    weights = options["weights"] or (weight,) * n
    chosen = {key: options[key] for key in ("density", "rank")}
    for key in ("method", "space", "seed"):
        chosen[key] = DEFAULTS[key] if options[key] is None else options[key]
    by_module = _by_module(options, n)
    return Candidate(**chosen, weights=weights, arguments=arguments, by_module=by_module)


def _by_module(options: dict[str, Any], n: int) -> dict[str, Any]:
    from mergeforget.errors import UsageError
    from mergeforget.merge.by_module import parse

    settings: dict[str, Any] = {}
    for key, count in (("density_by", 1), ("weights_by", n)):
        rows = [parse(text) for text in options[key]]
        for pattern, values in rows:
            if len(values) != count:
                raise UsageError(f"{pattern}: {len(values)} values are given, {count} are wanted.")
        found = [[{"filter": p, "value": v[i]} for p, v in rows] for i in range(count)]
        if rows:
            settings[key.removesuffix("_by")] = found[0] if key == "density_by" else found
    return settings
