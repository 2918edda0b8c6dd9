"""`mergeforget merge-models`: merge whole models, or run a mergekit configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeforget.commands import _merge as shared
from mergeforget.commands._options import emit, json_option

RUNTIME = ("threads", "device", "max_memory", "shard_size")


@click.command("merge-models")
@shared.options(
    click.option(
        "--model",
        "models",
        multiple=True,
        help="Name or folder of a model to merge. Repeatable.",
    ),
    click.option(
        "--base",
        help="Model that the others were fine-tuned from. The method then acts on their "
        "differences from it.",
    ),
    click.option("--method", help="Merge method.  [default: ties]"),
    click.option(
        "--weights",
        callback=shared.numbers,
        metavar="W,W,...",
        help="One weight per model.  [default: 1 each; without --base a mean]",
    ),
    shared.METHOD,
    shared.MODEL_OUTPUT,
    shared.THREADS,
    click.option(
        "--config", type=shared.FOLDER, help="mergekit configuration to run instead of --model."
    ),
    click.option(
        "--print-mergekit",
        is_flag=True,
        help="Print the merge as a mergekit configuration instead of running it.",
    ),
    click.option("--out", type=shared.FOLDER, help="Output folder."),
)
@json_option
def command(out: Path | None, as_json: bool, **options: Any) -> None:
    """Merge whole models tensor by tensor, streamed from and to safetensors files.

    Only the tensors in work are in memory. Rerun an interrupted command to resume. A mergekit
    configuration given by --config is run by this engine where it knows the method and options,
    and by mergekit otherwise.
    """
    from mergeforget.errors import UsageError

    if options["config"]:
        shared.refuse(
            ("models", "base", "method", "weights", "density", "density_by", "weights_by",
             "arguments", "dtype", "print_mergekit"),
            "together with --config, which says it",
        )  # fmt: skip
        _config(_named(out), as_json, options)
        return
    if not options["models"]:
        raise UsageError("There is nothing to merge: name models with --model, or a --config.")
    options["arguments"] = shared.arguments_of(options["arguments"])
    if options["print_mergekit"]:
        names = ("out", "as_json", "precision", "same_base", "seed", *RUNTIME)
        shared.refuse(names, "to --print-mergekit, which writes nothing")
        _print_mergekit(options)
        return
    from mergeforget.api.merging import merge_models

    options.pop("config"), options.pop("print_mergekit")
    models = options.pop("models")
    shared.print_written(merge_models(list(models), _named(out), **options), as_json)


def _print_mergekit(options: dict[str, Any]) -> None:
    import yaml

    from mergeforget.api.merge_request import candidate_of_models
    from mergeforget.merge.mergekit_bridge import to_config

    names = [str(model) for model in options["models"]]
    candidate = candidate_of_models(len(names), options["base"], options | {"seed": None})  # type: ignore[arg-type]
    config = to_config(candidate, names, options["base"], options["dtype"])
    click.echo(yaml.safe_dump(config, sort_keys=False), nl=False)


def _config(out: Path, as_json: bool, options: dict[str, Any]) -> None:
    from dataclasses import replace

    from mergeforget.api.merge_request import refuse_unused
    from mergeforget.api.merging import run_merge_models
    from mergeforget.merge.inputs import check_free
    from mergeforget.merge.mergekit_bridge import THEIR_MARK, read_config, run_mergekit

    request = read_config(options["config"])
    if isinstance(request, str):
        names = (*RUNTIME, "seed", "precision", "same_base")
        shared.refuse(names, f"to mergekit, which runs this configuration since {request}")
        check_free(out, [options["config"]], THEIR_MARK)
        run_mergekit(options["config"], out, request)
        emit({"folder": str(out), "engine": "mergekit"}, f"{out}: merged by mergekit", as_json)
        return
    candidate = replace(request.candidate, seed=options["seed"] or 0)
    refuse_unused(candidate, {"seed": options["seed"]}, full=True)
    check_free(out, [options["config"]])
    how: Any = options | {"dtype": request.dtype}
    written = run_merge_models(request.models, out, request.base, candidate, how)
    shared.print_written(written, as_json)


def _named(out: Path | None) -> Path:
    from mergeforget.errors import UsageError

    if out is None:
        raise UsageError("Name the folder to write with --out.")
    return out
