"""`mergeforget merge-models`: merge whole models, or run a mergekit configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeforget.commands import _merge as shared
from mergeforget.commands._options import json_option

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
        help="Model that the others were fine-tuned from. The method then merges their "
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

    Only the tensors being merged are in memory. Rerun an interrupted command to resume. This
    engine runs a mergekit configuration (--config) if it has the method and the options; otherwise,
    mergekit runs it.
    """
    from mergeforget.api.merging import merge_models

    options["arguments"] = shared.arguments_of(options["arguments"])
    if options.pop("print_mergekit"):
        names = ("config", "out", "as_json", "precision", "same_base", "seed", *RUNTIME)
        why = "to --print-mergekit, which prints the merge of --model as YAML and runs nothing"
        shared.refuse(names, why)
        _print_mergekit(options)
        return
    models = list(options.pop("models"))
    shared.print_written(merge_models(models, out, **options), as_json)


def _print_mergekit(options: dict[str, Any]) -> None:
    import yaml

    from mergeforget.api.merging import mergekit_config

    apart = ("config", "precision", "same_base", "seed", *RUNTIME)
    given = {name: value for name, value in options.items() if name not in apart}
    config = mergekit_config(list(given.pop("models")), **given)
    click.echo(yaml.safe_dump(config, sort_keys=False), nl=False)
