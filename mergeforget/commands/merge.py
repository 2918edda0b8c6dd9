"""`mergeforget merge`: the pair of a run, or any adapters, into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands._options import chosen_run, emit, json_option, run_argument

if TYPE_CHECKING:
    from mergeforget.adapter import Adapter
    from mergeforget.candidate import Candidate
    from mergeforget.merge.engine import Merged

FOLDER = click.Path(path_type=Path)


def numbers(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """``1,0.5`` as floats."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1,0.5") from error


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
@click.option("--out", type=FOLDER, help="Folder to write.  [default: RUN/candidates/NAME]")
@json_option
def command(run: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Merge adapters into one.

    Takes over and under of RUN (the newest run when left out), or the folders given by --adapter,
    and writes a plain PEFT folder. Neither the base model nor torch is loaded.
    """
    from mergeforget.errors import UsageError
    from mergeforget.merge.engine import How, merge_adapters, write_candidate

    sources, home = _sources(run, options["adapters"])
    if out is None and home is None:
        raise UsageError("Name the folder to write with --out.")
    candidate = _candidate(options, len(sources))
    how = How(options["modules"], options["svd"], compare=options["compare"])
    merged = merge_adapters(sources, candidate, how)
    folder = out or _under(home, merged)
    write_candidate(merged, folder)
    facts = {"folder": str(folder), "candidate": merged.candidate.to_dict(), **merged.report}
    emit(facts, _text(merged, folder), as_json)


def _sources(run: Path | None, adapters: tuple[Path, ...]) -> tuple[list[Adapter], Path | None]:
    """The adapters to merge, and the folder where candidates are kept, if there is a run."""
    from mergeforget.adapter import read_adapter

    if adapters:
        return [read_adapter(folder) for folder in adapters], None
    here = chosen_run(run)
    return [read_adapter(here.over, "over"), read_adapter(here.under, "under")], here.candidates


def _candidate(options: dict[str, Any], n: int) -> Candidate:
    import yaml

    from mergeforget.candidate import Candidate
    from mergeforget.errors import UsageError

    arguments = {}
    for assignment in options["arguments"]:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set wants NAME=VALUE, for example sign=count, not {assignment!r}.")
        arguments[name.strip()] = yaml.safe_load(value)
    weights = options["weights"] or (1.0,) * n
    chosen = {key: options[key] for key in ("method", "density", "space", "rank", "seed")}
    return Candidate(**chosen, weights=weights, arguments=arguments)


def _under(home: Path | None, merged: Merged) -> Path:
    assert home is not None
    return home / merged.candidate.name


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
