"""`mergeforget search`: find the balanced merge of a pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands._options import (
    chosen_run,
    emit,
    json_option,
    run_argument,
    template_options,
)

if TYPE_CHECKING:
    from mergeforget.search.choice import Choice


@click.command("search")
@run_argument
@click.option("--methods", metavar="M,M,...", help="Merge methods to try.")
@click.option(
    "--densities",
    metavar="LOW:HIGH:STEP",
    help="Fractions of entries kept, as a range or as a list: 0.3,0.5.",
)
@click.option(
    "--weights",
    metavar="W,W;W,W",
    help="Weights of over and under to try, for example '1,1;1,0.5'.",
)
@click.option("--spaces", metavar="S,S", help="Spaces to merge in: factors, delta.")
@click.option("--ranks", metavar="N,N", help="Ranks of the result to try, in delta space.")
@click.option(
    "--objective",
    help="Objective, for example mia, aggregate, '0.7*mia + 0.3*retain', 'mia if retain >= 95%'.",
)
@click.option(
    "--strategy",
    type=click.Choice(["grid", "refine", "tpe", "nsga2"]),
    help="grid: every candidate. refine: pattern search from the predicted density. "
    "tpe, nsga2: Optuna's samplers; nsga2 searches the whole Pareto front.",
)
@click.option(
    "--groups",
    type=click.IntRange(min=1),
    help="Number of layer groups with separate densities, starting from the best single density.",
)
@click.option(
    "--finalists",
    type=click.IntRange(min=1),
    help="Number of candidates that generate answers, the best by likelihood.  [default: all for "
    "grid, otherwise a fifth]",
)
@click.option(
    "--together",
    type=click.IntRange(min=1),
    help="Number of candidates that generate answers in one batch, as adapters on the base.  "
    "[default: as many as fill a batch of the device; 1 with several finalists]",
)
@click.option(
    "--budget",
    metavar="N|TIME",
    help="Maximum number of candidates, or a time limit: 90s, 10m, 2h.",
)
@click.option(
    "--seed", type=int, help="Random seed of the split and of methods and strategies that sample."
)
@click.option(
    "--holdout",
    type=click.Path(path_type=Path),
    help="Rows that are not in the training data, used as non-members.",
)
@template_options
@click.option("--first", type=click.FloatRange(0, 1, min_open=True),
              help="Density to try first.  [default: predicted from the pair]")  # fmt: skip
@click.option(
    "--storage",
    metavar="URL|FILE",
    help="Database (postgresql://, mysql://) or journal file that several workers share.",
)
@click.option(
    "--worker", is_flag=True, help="Explore candidates for another search on the same storage."
)
@click.option("--resume", is_flag=True, help="Resume a search; fails if there is none.")
@click.option("--again", is_flag=True, help="Ignore cached measurements.")
@click.option("--device", help="Device: cpu, cuda, ..., or auto to distribute the layers over all "
              "GPUs, main memory and disk.  [default: the GPU if there is one]")  # fmt: skip
@json_option
def command(run: Path | None, as_json: bool, **options: Any) -> None:
    """Merge the pair of RUN in many ways, evaluate each candidate, and choose the balanced one.

    The candidate is chosen on the selection split and reported on the report split. Results are
    saved as soon as they are measured; repeat the command to resume. Omitted options are taken from
    the run's recipe.
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
    """Return the explanation of the choice, and the scores on both splits."""
    from mergeforget.search.choice import figures

    lines = [choice.sentence, *([choice.next_best.sentence] if choice.next_best else []), ""]
    selection, report = (figures(choice.scored.scores, part) for part in ("choose", "report"))
    width = max(map(len, selection), default=0) + 1
    lines.append(f"{'':{width}}{'selection':>10}{'report':>11}")
    for name, value in selection.items():
        other = f"{report[name]:.3f}" if name in report else "-"  # some only select
        lines.append(f"{name:{width}}{value:10.3f}{other:>11}")
    return "\n".join(lines)
