"""What the options of `mergeforget merge` ask for, as the engine's own types."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands._options import chosen_run

if TYPE_CHECKING:
    from mergeforget.adapter import Adapter
    from mergeforget.candidate import Candidate
    from mergeforget.merge.activation_grams import Grams
    from mergeforget.merge.checkpoint.tensor_jobs import Output
    from mergeforget.merge.engine import MergeSettings

DEFAULTS: dict[str, Any] = {"method": "ties", "space": "factors", "seed": 0, "precision": "float32"}
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


def sources(run: Path | None, options: dict[str, Any]) -> tuple[list[Adapter], Any]:
    """The adapters to merge, and the run that they come from, if they do.

    Options that were left out are filled in from the run's recipe, where no method is named.
    """
    from mergeforget.adapter import read_adapter
    from mergeforget.recipe import load_recipe

    if options["adapters"]:
        return [read_adapter(folder) for folder in options["adapters"]], None
    here = chosen_run(run)
    if options["method"] is None:
        spec = load_recipe(here.recipe).merge.model_dump()
        arguments, weights = spec.pop("arguments"), spec.pop("weights")
        options["given"] = arguments
        options["weights"] = options["weights"] or tuple(weights)
        options |= {k: value for k, value in spec.items() if options[k] is None}
    return [read_adapter(here.over, "over"), read_adapter(here.under, "under")], here


def check_out(
    out: Path, options: dict[str, Any], bases: Iterable[str], run: Any = None, mark: str = ""
) -> None:
    """Raise InputError where ``--out`` is read, or holds what no merge made.

    Args:
        bases: models, by folder or by their name on the hub.
        mark: the file by which an earlier result is known, if it is not ``candidate.json``.
    """
    from mergeforget.merge.output_folder import MADE, check_free

    given = [*options["adapters"], *options["models"], *options["data"]]
    given += [Path(name) for name in [options["config"], options["base"], *bases] if name]
    given += [run.over, run.under] if run is not None else []
    check_free(out, given, mark or MADE)


def grams(
    options: dict[str, Any], candidate: Candidate, adapters: list[Adapter], run: Any
) -> Grams | None:
    """What the layers are given on the data that was named, or on the run's."""
    from mergeforget.merge.activation_grams import grams_of, looks_at_data

    files = list(options["data"])
    if run is not None and not files and looks_at_data(candidate):
        files = [run.root / "data" / "forget.jsonl", run.root / "data" / "retain.jsonl"]
    if not files:
        return None
    base = options["base"] or (run.base() if run else adapters[0].base)
    return grams_of(base, adapters, files, candidate)


def how(options: dict[str, Any], grams: Grams | None = None) -> MergeSettings:
    """How modules are merged."""
    from mergeforget.merge.engine import MergeSettings

    return MergeSettings(
        options["modules"],
        options["svd"],
        options["precision"] or DEFAULTS["precision"],
        compare=options["compare"],
        threads=options["threads"],
        grams=grams,
    )


def output(options: dict[str, Any]) -> Output:
    from mergeforget.merge.checkpoint.tensor_jobs import Output

    return Output(
        dtype=options["dtype"],
        shard_bytes=options["shard_size"],
        threads=options["threads"],
        device=options["device"],
        max_memory=options["max_memory"],
    )


def candidate(options: dict[str, Any], n: int, weight: float = 1.0) -> Candidate:
    import yaml

    from mergeforget.candidate import Candidate
    from mergeforget.errors import UsageError

    arguments = dict(options.get("given", {}))
    for assignment in options["arguments"]:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set wants NAME=VALUE, for example sign=count, not {assignment!r}.")
        arguments[name.strip()] = yaml.safe_load(value)
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
