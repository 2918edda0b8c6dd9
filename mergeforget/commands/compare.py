"""`mergeforget compare`: show runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeforget.commands._options import emit, json_option


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run-model", "model",
              help="Model of each run to compare.  [default: the chosen candidate]")  # fmt: skip
@click.option("--part", type=click.Choice(["all", "choose", "report"]), default="all",
              show_default=True, help="Rows that the scores are computed on: all, the selection "
              "split (choose), or the report split.")  # fmt: skip
@click.option("--page", type=click.Path(path_type=Path, dir_okay=False),
              help="Also write the table as an HTML page.")  # fmt: skip
@json_option
def command(
    runs: tuple[Path, ...], model: str | None, part: Any, page: Path | None, as_json: bool
) -> None:
    """Print the scores of several runs in one table, one column per run.

    A second table has the differences from the first run on the rows that both were evaluated on,
    with their 95 % intervals.
    """
    from mergeforget.api.runs import compare
    from mergeforget.evaluate.table import render, render_differences

    scores = compare(runs, run_model=model, part=part, page=page)
    result = {name: [s.to_dict() for s in every] for name, every in scores.items()}
    found = {name: [d.to_dict() for d in every] for name, every in scores.differences.items()}
    text = render(scores)
    if found:
        text += "\n\n" + render_differences(next(iter(scores)), scores.differences)
    emit({"scores": result, "differences": found}, text, as_json)
