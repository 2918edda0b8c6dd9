"""`mergeforget merge`: merge the pair of a run, or any adapters, into one adapter or one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands import _merge as shared
from mergeforget.commands._options import chosen_run, emit, json_option, run_argument

if TYPE_CHECKING:
    from mergeforget.merge.engine import Merged


@click.command("merge")
@run_argument
@shared.options(
    click.option(
        "--adapter",
        "adapters",
        multiple=True,
        type=shared.FOLDER,
        help="PEFT folder of an adapter to merge, instead of RUN. Repeatable.",
    ),
    click.option(
        "--method",
        help="Merge method, or PEFT's name for it; purpose chooses the weights of every module "
        "from forget and retain rows.  [default: from the run's recipe; otherwise ties, or linear "
        "for one adapter]",
    ),
    click.option(
        "--weights",
        callback=shared.numbers,
        metavar="W,W,...",
        help="One weight per adapter.  [default: 1 each]",
    ),
    click.option(
        "--space",
        type=click.Choice(["factors", "delta"]),
        help="Merge A and B separately, or the products B @ A.  [default: factors; delta for one "
        "adapter]",
    ),
    click.option("--rank", type=click.IntRange(1), help="Rank of the result, in delta space."),
    shared.METHOD,
    click.option(
        "--modules",
        type=click.Choice(["same", "common", "all"]),
        default="same",
        show_default=True,
        help="Modules to merge where the adapters change different ones.",
    ),
    click.option(
        "--svd",
        type=click.Choice(["fast", "exact"]),
        default="fast",
        show_default=True,
        help="How a delta is truncated to the rank.",
    ),
    click.option(
        "--data",
        multiple=True,
        type=shared.FOLDER,
        help="File of rows for methods that use data: one per adapter, or one for all.  [default: "
        "the run's forget and retain rows]",
    ),
    click.option(
        "--compare", is_flag=True, help="Measure how far factor space is from delta space."
    ),
    click.option(
        "--full", is_flag=True, help="Write a whole model: the base with the merged change."
    ),
    click.option("--base", help="Base model, for --full and --data.  [default: the adapters']"),
    shared.MODEL_OUTPUT,
    shared.THREADS,
    click.option(
        "--out", type=shared.FOLDER, help="Folder to write.  [default: RUN/candidates/NAME]"
    ),
)
@json_option
def command(run: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Merge adapters of one base into one adapter, or with --full into a whole model.

    Merges over and under of RUN (default: the newest run), or the folders given by --adapter, and
    writes a plain PEFT folder. Neither the base model nor torch is loaded. Without --method, the
    section merge of the run's recipe applies, and options override it. One adapter with --rank is
    truncated to that rank. With --full, the base with the merged change is written as a model
    folder; rerun an interrupted command to resume.
    """
    from mergeforget.errors import UsageError

    adapters, full = options.pop("adapters"), options.pop("full")
    if run is not None and adapters:
        raise UsageError(f"RUN and --adapter exclude each other: leave out {run} or --adapter.")
    options["arguments"] = shared.arguments_of(options["arguments"])
    if options["method"] is None and (len(adapters) == 1):
        options["method"] = "linear"
        options["space"] = options["space"] or "delta"
    if out is None and (adapters or full):
        raise UsageError("Name the folder to write with --out.")
    source = list(adapters) if adapters else chosen_run(run)
    if full:
        _full(source, out, as_json, options)
    else:
        _adapter(source, out, as_json, options)


def _adapter(source: Any, out: Path | None, as_json: bool, options: dict[str, Any]) -> None:
    from mergeforget.api.merging import prepare
    from mergeforget.merge.engine import merge_adapters

    shared.refuse(shared.OUTPUT_ONLY, "to an adapter; add --full to write a whole model")
    for name in shared.OUTPUT_ONLY:
        options.pop(name)
    asked = prepare(source, **options)
    if asked.settings.grams is None and options["method"] != "purpose":
        shared.refuse(["base"], "here: it is used with --full, or with --data")
    shared.refuse_unused(asked.candidate.method, asked.candidate.space, cuts=True)
    if out is not None:
        asked.check_out(out)
    merged = merge_adapters(asked.adapters, asked.candidate, asked.settings)
    folder = merged.save(out or source.candidates / merged.candidate.name)
    facts = {"folder": str(folder), "candidate": merged.candidate.to_dict(), **merged.report}
    emit(facts, _text(merged, folder), as_json)


def _full(source: Any, out: Path | None, as_json: bool, options: dict[str, Any]) -> None:
    from mergeforget.api.merging import prepare, write_full

    shared.refuse(["compare"], "to --full")
    options.pop("compare")
    output = {name: options.pop(name) for name in shared.OUTPUT_ONLY}
    asked = prepare(source, **options, compare=False)
    shared.refuse_unused(asked.candidate.method, asked.candidate.space)
    if asked.candidate.rank is None:
        shared.refuse(["svd"], "to --full without --rank: nothing is truncated")
    assert out is not None
    shared.print_written(write_full(asked, out, options["base"], **output), as_json)


def _text(merged: Merged, folder: Path) -> str:
    report = merged.report
    lines = [f"{folder}: {merged.candidate.name}, {report['modules']} modules"]
    if "energy_lost" in report:
        rank = max(delta.rank for delta in merged.adapter.deltas.values())
        lines.append(f"Truncation to rank {rank} lost {report['energy_lost']:.2%} of the energy.")
    if "space_error" in report:
        lines.append(
            f"The merged factors differ by {report['space_error']:.2f} (relative) from the same "
            "method in delta space."
        )
    return "\n".join(lines)
