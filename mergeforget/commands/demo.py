"""`mergeforget demo`: the whole chain on the embedded model and a few made-up people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands._options import emit, json_option, set_option

if TYPE_CHECKING:
    from mergeforget.recipe import Recipe
    from mergeforget.run import Run

COLUMNS = ("AUC", "|AUC - 0.5|", "forget exact", "retain exact")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/demo]")
@click.option("--model", help="Model to use instead of the embedded one.")
@click.option("--again", is_flag=True, help="Delete an earlier demo and start over.")
@set_option
@json_option
def command(
    out: Path | None, model: str | None, again: bool, assignments: tuple[str, ...], as_json: bool
) -> None:
    """Train, merge, search, analyse and report: about ten minutes on two cores.

    A demo that was interrupted goes on where it was; a finished one is shown again.
    """
    import shutil

    from mergeforget.data.people import made_up
    from mergeforget.recipe import change, load_recipe
    from mergeforget.run import RUNS, Run

    run = Run(out or RUNS / "demo")
    if again:
        shutil.rmtree(run.root, ignore_errors=True)
    recipe = load_recipe("demo", assignments)
    recipe = change(recipe, data=made_up(), model={"name": model} if model else {})
    choice = run_chain(recipe, run)
    rows = table(run, choice["name"])
    result = {"run": str(run.root), "report": str(run.report), "chosen": choice, "table": rows}
    emit(result, text(rows, choice, run), as_json)


def run_chain(recipe: Recipe, run: Run) -> dict[str, Any]:
    """Every step of the main job; each keeps what it has done, so that it can go on.

    Returns:
        The content of ``search/chosen.json``.
    """
    from mergeforget.analysis.report import write_report
    from mergeforget.search.budget import SearchBudget
    from mergeforget.search.driver import Options, search
    from mergeforget.train.pair import train_pair

    train_pair(recipe, run, memorise_first=True, resume=run.recipe.exists())
    choice = search(run, recipe.search, Options(SearchBudget()))
    write_report(run)  # analyses the run as well
    chosen: dict[str, Any] = choice.to_dict()
    return chosen


def table(run: Run, chosen: str) -> list[dict[str, Any]]:
    """Base, over, under and the chosen merge, measured on the half that did not choose."""
    from mergeforget.run import ANCHORS
    from mergeforget.score import find, read_scores

    known = read_scores(run.scores)
    rows = []
    for model in (*ANCHORS, chosen):
        scores = known.get(model, [])
        found = [
            find(scores, metric, split, part="report")
            for metric, split in (
                ("mia_auc", "mia"),
                ("exact_match", "forget"),
                ("exact_match", "retain"),
            )  # fmt: skip
        ]
        auc, forget, retain = (None if s is None else s.value for s in found)
        rows.append({"model": model, "mia_auc": auc, "forget": forget, "retain": retain})
    return rows


def text(rows: list[dict[str, Any]], choice: dict[str, Any], run: Run) -> str:
    """The table and the choice, for a person."""
    width = max(len(row["model"]) for row in rows)
    lines = [" " * width + "".join(f"{name:>14}" for name in COLUMNS)]
    for row in rows:
        auc = row["mia_auc"]
        values = [auc, None if auc is None else abs(auc - 0.5), row["forget"], row["retain"]]
        cells = ("-" if v is None else f"{v:.3f}" for v in values)
        lines.append(f"{row['model']:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
    lines += ["", choice["sentence"]]
    lines += [f"Warning: {choice['warning']}"] if choice["warning"] else []
    lines += ["Figures of the half of the data that did not choose.", f"Report: {run.report}"]
    return "\n".join(lines)
