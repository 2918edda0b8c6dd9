"""`mergeforget merge`: the pair of a run, any adapters, or whole models, into one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands._options import chosen_run, emit, json_option, run_argument

if TYPE_CHECKING:
    from mergeforget.adapter import Adapter
    from mergeforget.candidate import Candidate
    from mergeforget.merge.engine import How, Merged
    from mergeforget.merge.full import Written
    from mergeforget.merge.tensorwise import Output

FOLDER = click.Path(path_type=Path)
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


@click.command("merge")
@run_argument
@click.option("--method", default="ties", show_default=True, help="Merge method, or PEFT's name.")
@click.option(
    "--density", type=float, help="Fraction of entries kept, in (0, 1], for methods that take one."
)
@click.option(
    "--weights", callback=numbers, metavar="W,W,...", help="One per adapter.  [default: 1 each]"
)
@click.option(
    "--density-by",
    multiple=True,
    metavar="FILTER=D",
    help="Density of modules whose name holds FILTER; 0.9..0.3 goes from first to last layer.",
)
@click.option(
    "--weights-by", multiple=True, metavar="FILTER=W,W,...", help="Weights of such modules."
)
@click.option(
    "--space",
    type=click.Choice(["factors", "delta"]),
    default="factors",
    show_default=True,
    help="Merge A and B apart, or the products B @ A.",
)
@click.option("--rank", type=click.IntRange(1), help="Of the result, in delta space.")
@click.option("--seed", default=0, show_default=True, help="Of methods that draw at random.")
@click.option(
    "--set", "arguments", multiple=True, metavar="NAME=VALUE", help="Argument of the method."
)
@click.option("--adapter", "adapters", multiple=True, type=FOLDER, help="PEFT folder; repeat it.")
@click.option(
    "--modules",
    type=click.Choice(["same", "common", "all"]),
    default="same",
    show_default=True,
    help="What to do where adapters change different modules.",
)
@click.option(
    "--svd",
    type=click.Choice(["fast", "exact"]),
    default="fast",
    show_default=True,
    help="How a change is cut to the rank.",
)
@click.option("--compare", is_flag=True, help="Measure how far factor space is from delta space.")
@click.option("--full", is_flag=True, help="Write a whole model: the base with the merged change.")
@click.option("--base", help="Model that adapters or models came from.  [default: the run's]")
@click.option("--model", "models", multiple=True, type=FOLDER, help="Model to merge; repeat it.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Of a whole model; auto keeps the base's.",
)
@click.option("--max-memory", callback=size, metavar="SIZE", help="For a whole model: 800MB, 4GB.")
@click.option(
    "--shard-size", callback=size, default="5GB", show_default=True, help="Of one weights file."
)
@click.option("--threads", type=click.IntRange(0), default=0, help="[default: one per core]")
@click.option("--device", default="cpu", show_default=True, help="For whole models: cpu or cuda.")
@click.option("--config", type=FOLDER, help="A mergekit configuration to run instead.")
@click.option("--print-mergekit", is_flag=True, help="Print the merge of --model for mergekit.")
@click.option("--out", type=FOLDER, help="Folder to write.  [default: RUN/candidates/NAME]")
@json_option
def command(run: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Merge adapters, or whole models, into one.

    Takes over and under of RUN (the newest run when left out), or the folders given by --adapter,
    and writes a plain PEFT folder; neither the base model nor torch is loaded. With --full it
    writes the base with the merged change as a plain model folder. With --model it merges whole
    models, block by block. An interrupted --full or --model goes on when started again.
    """
    if options["config"]:
        _config(out, as_json, options)
    elif options["models"]:
        _models(out, as_json, options)
    elif options["full"]:
        _full(run, out, as_json, options)
    else:
        _adapters(run, out, as_json, options)


def _adapters(run: Path | None, out: Path | None, as_json: bool, options: dict[str, Any]) -> None:
    from mergeforget.merge.engine import merge_adapters, write_candidate

    sources, here = _sources(run, options["adapters"])
    if here is None:
        out = _named(out)
    merged = merge_adapters(sources, _candidate(options, len(sources)), _how(options))
    folder = out or here.candidates / merged.candidate.name
    write_candidate(merged, folder)
    facts = {"folder": str(folder), "candidate": merged.candidate.to_dict(), **merged.report}
    emit(facts, _text(merged, folder), as_json)


def _full(run: Path | None, out: Path | None, as_json: bool, options: dict[str, Any]) -> None:
    from mergeforget.merge.full import fold_adapters
    from mergeforget.models import locate

    out = _named(out)
    sources, here = _sources(run, options["adapters"])
    base = options["base"] or (here.base() if here else sources[0].base)
    candidate = _candidate(options, len(sources))
    how, output = _how(options), _output(options)
    written = fold_adapters(locate(base), sources, candidate, out, output, how)
    _tell(written, as_json)


def _models(out: Path | None, as_json: bool, options: dict[str, Any]) -> None:
    from mergeforget.errors import UsageError
    from mergeforget.merge.full import merge_models
    from mergeforget.models import locate

    if options["adapters"]:
        raise UsageError("Give --adapter or --model, not both.")
    share = 1.0 if options["base"] else 1 / len(options["models"])  # of a mean, without a base
    candidate = _candidate(options, len(options["models"]), share)
    if options["print_mergekit"]:
        _print_mergekit(candidate, options)
        return
    base = locate(options["base"]) if options["base"] else None
    models = [locate(str(model)) for model in options["models"]]
    _tell(merge_models(models, base, candidate, _named(out), _output(options)), as_json)


def _print_mergekit(candidate: Candidate, options: dict[str, Any]) -> None:
    import yaml

    from mergeforget.merge.mergekit_bridge import to_config

    names = [str(model) for model in options["models"]]
    config = to_config(candidate, names, options["base"], options["dtype"])
    click.echo(yaml.safe_dump(config, sort_keys=False), nl=False)


def _config(out: Path | None, as_json: bool, options: dict[str, Any]) -> None:
    from dataclasses import replace

    from mergeforget.merge.full import merge_models
    from mergeforget.merge.mergekit_bridge import read_config, run_mergekit
    from mergeforget.models import locate

    out = _named(out)
    request = read_config(options["config"])
    if isinstance(request, str):
        run_mergekit(options["config"], out, request)
        emit({"folder": str(out), "engine": "mergekit"}, f"{out}: merged by mergekit", as_json)
        return
    output = replace(_output(options), dtype=request.dtype)
    candidate = replace(request.candidate, seed=options["seed"])
    base = locate(request.base) if request.base else None
    models = [locate(model) for model in request.models]
    _tell(merge_models(models, base, candidate, out, output), as_json)


def _named(out: Path | None) -> Path:
    from mergeforget.errors import UsageError

    if out is None:
        raise UsageError("Name the folder to write with --out.")
    return out


def _sources(run: Path | None, adapters: tuple[Path, ...]) -> tuple[list[Adapter], Any]:
    """The adapters to merge, and the run that they come from, if they do."""
    from mergeforget.adapter import read_adapter

    if adapters:
        return [read_adapter(folder) for folder in adapters], None
    here = chosen_run(run)
    return [read_adapter(here.over, "over"), read_adapter(here.under, "under")], here


def _how(options: dict[str, Any]) -> How:
    from mergeforget.merge.engine import How

    return How(
        options["modules"], options["svd"], compare=options["compare"], threads=options["threads"]
    )


def _output(options: dict[str, Any]) -> Output:
    from mergeforget.merge.tensorwise import Output

    return Output(
        dtype=options["dtype"],
        shard_bytes=options["shard_size"],
        threads=options["threads"],
        device=options["device"],
        max_memory=options["max_memory"],
    )


def _candidate(options: dict[str, Any], n: int, weight: float = 1.0) -> Candidate:
    import yaml

    from mergeforget.candidate import Candidate
    from mergeforget.errors import UsageError

    arguments = {}
    for assignment in options["arguments"]:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set wants NAME=VALUE, for example sign=count, not {assignment!r}.")
        arguments[name.strip()] = yaml.safe_load(value)
    weights = options["weights"] or (weight,) * n
    chosen = {key: options[key] for key in ("method", "density", "space", "rank", "seed")}
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


def _text(merged: Merged, folder: Path) -> str:
    report = merged.report
    lines = [f"{folder}: {merged.candidate.name}, {report['modules']} modules"]
    if "energy_lost" in report:
        rank = max(delta.rank for delta in merged.adapter.deltas.values())
        lines.append(f"Rank {rank} leaves out {report['energy_lost']:.2%} of the energy.")
    if "space_error" in report:
        lines.append(
            f"The merged factors are {report['space_error']:.2f} (relative) away from the same "
            "method on the deltas."
        )
    return "\n".join(lines)


def _tell(written: Written, as_json: bool) -> None:
    lines = [f"{written.folder}: {written.candidate.name}"]
    if written.rounding:
        lines.append(
            f"Rounding to the output's dtype leaves an error of {written.rounding:.1%} in the "
            "realised change. --dtype float32 keeps it whole; evaluate the model that you ship."
        )
    facts = {"folder": str(written.folder), "candidate": written.candidate.to_dict()}
    emit(facts | {"rounding": written.rounding}, "\n".join(lines), as_json)
