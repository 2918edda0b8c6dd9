"""`mergeforget merge`: the pair of a run, any adapters, or whole models, into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.api.merging import DEFAULTS
from mergeforget.commands import _merge as asked
from mergeforget.commands._options import (
    chosen_run,
    dtype_option,
    emit,
    json_option,
    run_argument,
)

if TYPE_CHECKING:
    from mergeforget.candidate import Candidate
    from mergeforget.merge.checkpoint.full import Written
    from mergeforget.merge.engine import Merged

FOLDER = click.Path(path_type=Path)


@click.command("merge")
@run_argument
@click.option(
    "--method", help="Merge method, or PEFT's name.  [default: the run's recipe says how, or ties]"
)
@click.option(
    "--density", type=float, help="Fraction of entries kept, in (0, 1], for methods that take one."
)
@click.option(
    "--weights",
    callback=asked.numbers,
    metavar="W,W,...",
    help="One per adapter.  [default: 1 each]",
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
    help="Merge A and B apart, or the products B @ A.  [default: factors]",
)
@click.option("--rank", type=click.IntRange(1), help="Of the result, in delta space.")
@click.option("--seed", type=int, help="Of methods that draw at random.  [default: 0]")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float64"]),
    help="Of the computation, whatever is stored.  [default: float32]",
)
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
@click.option(
    "--data",
    multiple=True,
    type=FOLDER,
    help="Rows for regmean: a file per adapter, or one.  [default: the run's forget and retain]",
)
@click.option("--compare", is_flag=True, help="Measure how far factor space is from delta space.")
@click.option("--full", is_flag=True, help="Write a whole model: the base with the merged change.")
@click.option("--base", help="Model that adapters or models came from.  [default: the run's]")
@click.option("--model", "models", multiple=True, type=FOLDER, help="Model to merge; repeat it.")
@dtype_option
@click.option(
    "--max-memory", callback=asked.size, metavar="SIZE", help="For a whole model: 800MB, 4GB."
)
@click.option(
    "--shard-size",
    callback=asked.size,
    default="5GB",
    show_default=True,
    help="Of one weights file.",
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
    and writes a plain PEFT folder; neither the base model nor torch is loaded. Without --method a
    run's recipe (its section merge) says how, and options change what it says. With --full it
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
    from mergeforget.api.merging import merge

    source = _source(run, options)
    out = _named(out) if options["adapters"] else out
    merged = merge(source, **_given(options), compare=options["compare"], out=out)
    folder = out or merged.save(source.candidates / merged.candidate.name)
    facts = {"folder": str(folder), "candidate": merged.candidate.to_dict(), **merged.report}
    emit(facts, _text(merged, folder), as_json)


def _full(run: Path | None, out: Path | None, as_json: bool, options: dict[str, Any]) -> None:
    from mergeforget.api.merging import merge_full

    names = ("dtype", "max_memory", "shard_size", "device")
    written = merge_full(
        _source(run, options), _named(out), **_given(options), **{n: options[n] for n in names}
    )
    _tell(written, as_json)


def _source(run: Path | None, options: dict[str, Any]) -> Any:
    from mergeforget.adapter import read_config

    for folder in options["adapters"]:  # before any other fault of the options is reported
        read_config(folder)
    return list(options["adapters"]) or chosen_run(run)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that the API functions take, by their names there."""
    names = ("method", "density", "weights", "density_by", "weights_by", "space", "rank", "seed",
             "precision", "modules", "svd", "data", "base", "threads")  # fmt: skip
    arguments = asked.arguments_of(options["arguments"])
    return {name: options[name] for name in names} | {"arguments": arguments}


def _models(out: Path | None, as_json: bool, options: dict[str, Any]) -> None:
    from mergeforget.errors import UsageError
    from mergeforget.merge.checkpoint.full import merge_models
    from mergeforget.models import locate

    if options["adapters"]:
        raise UsageError("Give --adapter or --model, not both.")
    if options["data"]:
        raise UsageError("--data is read for adapters, not for --model.")
    mean = not options["base"] and options["method"] != "slerp"  # of the models themselves
    share = 1 / len(options["models"]) if mean else 1.0
    candidate = asked.candidate(options, len(options["models"]), share)
    if options["print_mergekit"]:
        _print_mergekit(candidate, options)
        return
    asked.check_out(out := _named(out), options, [])
    base = locate(options["base"]) if options["base"] else None
    models = [locate(str(model)) for model in options["models"]]
    output, precision = asked.output(options), options["precision"] or DEFAULTS["precision"]
    _tell(merge_models(models, base, candidate, out, output, precision), as_json)


def _print_mergekit(candidate: Candidate, options: dict[str, Any]) -> None:
    import yaml

    from mergeforget.merge.mergekit_bridge import to_config

    names = [str(model) for model in options["models"]]
    config = to_config(candidate, names, options["base"], options["dtype"])
    click.echo(yaml.safe_dump(config, sort_keys=False), nl=False)


def _config(out: Path | None, as_json: bool, options: dict[str, Any]) -> None:
    from dataclasses import replace

    from mergeforget.merge.checkpoint.full import merge_models
    from mergeforget.merge.mergekit_bridge import THEIR_MARK, read_config, run_mergekit
    from mergeforget.models import locate

    out = _named(out)
    request = read_config(options["config"])
    if isinstance(request, str):
        asked.check_out(out, options, [], mark=THEIR_MARK)
        run_mergekit(options["config"], out, request)
        emit({"folder": str(out), "engine": "mergekit"}, f"{out}: merged by mergekit", as_json)
        return
    asked.check_out(out, options, [*request.models, request.base or ""])
    output = replace(asked.output(options), dtype=request.dtype)
    candidate = replace(request.candidate, seed=options["seed"] or 0)
    base = locate(request.base) if request.base else None
    models = [locate(model) for model in request.models]
    precision = options["precision"] or DEFAULTS["precision"]
    _tell(merge_models(models, base, candidate, out, output, precision), as_json)


def _named(out: Path | None) -> Path:
    from mergeforget.errors import UsageError

    if out is None:
        raise UsageError("Name the folder to write with --out.")
    return out


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
