"""`mergeforget search`: of all merges of a pair, find the balanced one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands._options import chosen_run, emit, json_option, run_argument

if TYPE_CHECKING:
    from mergeforget.search.choice import Choice


@click.command("search")
@run_argument
@click.option("--methods", metavar="M,M,...", help="Merge methods.")
@click.option("--densities", metavar="LOW:HIGH:STEP", help="Fractions kept, or a list: 0.3,0.5.")
@click.option("--weights", metavar="W,W;W,W", help="Of over and under, for example '1,1;1,0.5'.")
@click.option("--spaces", metavar="S,S", help="factors, delta.")
@click.option("--ranks", metavar="N,N", help="Of the result, in delta space.")
@click.option(
    "--objective", help="mia, aggregate, '0.7*mia + 0.3*retain', 'mia if retain >= 95%', ..."
)
@click.option(
    "--strategy",
    type=click.Choice(["grid", "refine", "tpe", "nsga2"]),
    help="Every candidate; from the density that the pair predicts by ever smaller steps; or those "
    "that optuna asks for, where nsga2 seeks the whole Pareto front.",
)
@click.option(
    "--groups",
    type=click.IntRange(min=1),
    help="Of layers, each with a density of its own, from the best with one for all.",
)
@click.option(
    "--finalists",
    type=click.IntRange(min=1),
    help="Generate with so many only, those that are best by likelihoods.  "
    "[default: all of a grid, else a fifth]",
)
@click.option(
    "--together",
    type=click.IntRange(min=1),
    help="Let so many answer in one batch, unmerged.  [default: as many as fill a batch of the "
    "device, in a race of finalists 1]",
)
@click.option("--budget", metavar="N|TIME", help="Candidates to look at, or a time: 90s, 10m, 2h.")
@click.option("--seed", type=int, help="Of the two halves, of methods and strategies that draw.")
@click.option(
    "--holdout",
    type=click.Path(path_type=Path),
    help="Rows that no training saw: the non-members.",
)
@click.option("--first", type=click.FloatRange(0, 1, min_open=True),
              help="Density to begin with.  [default: what the pair predicts]")  # fmt: skip
@click.option(
    "--storage",
    metavar="URL|FILE",
    help="Database (postgresql://, mysql://) or journal file that several workers share.",
)
@click.option("--worker", is_flag=True, help="Explore for another search on the same storage.")
@click.option("--resume", is_flag=True, help="Go on with a search; there must be one.")
@click.option("--again", is_flag=True, help="Measure anew what was measured before.")
@click.option("--device", help="cpu, cuda, ...  [default: the GPU where there is one]")
@json_option
def command(run: Path | None, as_json: bool, **options: Any) -> None:
    """Merge the pair of RUN in many ways, measure each, and choose the balanced one.

    One half of the documents chooses, the other reports. Everything is kept in RUN as soon as it is
    measured; a second call goes on from there. What is not given is as the recipe says.
    """
    from mergeforget.api import searching
    from mergeforget.console import say

    given = options | {key: _words(options[key]) for key in ("methods", "spaces", "ranks")}
    given["weights"] = [_words(pair) for pair in (options["weights"] or "").split(";") if pair]
    worker, here = given.pop("worker"), chosen_run(run)
    if worker:
        count = searching.work(here, **given)
        emit({"explored": count}, f"{count} candidates are explored.", as_json)
        return
    choice = searching.search(here, **given).choice
    if choice.warning:
        say(f"Warning: {choice.warning}")
    emit(choice.to_dict(), text(choice), as_json)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []


def text(choice: Choice) -> str:
    """The choice in its sentence, and the figures of both halves."""
    from mergeforget.search.choice import figures

    lines = [choice.sentence, ""]
    choosing, reporting = (figures(choice.scored.scores, part) for part in ("choose", "report"))
    lines.append(f"{'':24}{'choosing':>10}{'reporting':>11}")
    for name, value in choosing.items():
        lines.append(f"{name:24}{value:10.3f}{reporting.get(name, float('nan')):11.3f}")
    return "\n".join(lines)
