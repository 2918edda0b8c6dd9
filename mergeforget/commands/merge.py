"""`mergeforget merge`: merge the pair of a run, or any adapters, into an adapter or a model."""

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
        help="Modules to merge if the adapters have different ones.",
    ),
    click.option(
        "--svd",
        type=click.Choice(["fast", "exact"]),
        help="Algorithm that truncates the deltas to the rank.  [default: fast]",
    ),
    click.option(
        "--data",
        multiple=True,
        type=shared.FOLDER,
        help="File of rows for methods that use data: one per adapter, or one for all.  [default: "
        "the run's forget and retain rows]",
    ),
    click.option(
        "--compare", is_flag=True, help="Measure the distance from the merge in delta space."
    ),
    click.option(
        "--full", is_flag=True, help="Write a whole model: the base with the merged delta."
    ),
    click.option(
        "--base", help="Base model, for --full and --data.  [default: that of the adapters]"
    ),
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
    section merge of the run's recipe applies, and options override it; other adapters are merged by
    ties with density 0.8. A single adapter with --rank is truncated to that rank. With --full, the
    base with the merged delta is written as a model folder; rerun an interrupted command to resume.
    """
    from mergeforget.api.merging import merge, merge_full
    from mergeforget.errors import UsageError

    adapters, full = options.pop("adapters"), options.pop("full")
    if run is not None and adapters:
        raise UsageError(f"RUN and --adapter exclude each other: leave out {run} or --adapter.")
    options["arguments"] = shared.arguments_of(options["arguments"])
    if out is None and (adapters or full):
        raise UsageError("Name the folder to write with --out.")
    source: Any = list(adapters) if adapters else chosen_run(run)
    if full:
        shared.refuse(["compare"], "to --full")
        options.pop("compare")
        assert out is not None
        shared.print_written(merge_full(source, out, **options), as_json)
        return
    shared.refuse(shared.OUTPUT_ONLY, "to an adapter; add --full to write a whole model")
    for name in shared.OUTPUT_ONLY:
        options.pop(name)
    merged = merge(source, out=out, **options)
    folder = out or merged.save(source.candidates / merged.candidate.name)
    facts = {"folder": str(folder), "candidate": merged.candidate.to_dict(), **merged.report}
    emit(facts, _text(merged, folder), as_json)


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
