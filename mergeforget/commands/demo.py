"""`mergeforget demo`: run `unlearn` with the embedded model and made-up people."""

from __future__ import annotations

from pathlib import Path

import click

from mergeforget.commands._options import emit, json_option, set_option

PEOPLE = 10  # two of each kind of question
QUICK = (
    "memorise.epochs=1", "pair.over.until={max_steps: 8, every: 4, forget_risen: 100}",
    "pair.under.until={retain_kept: 0}",  # met by the first check; that of over is never met
    "search.finalists=1",
    "evaluation.max_new_tokens=8",
)  # fmt: skip
SHOWN = {"forget": 4, "retain": 2}  # answers of each set that are shown


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/demo]")
@click.option("--model", help="Model to use instead of the embedded one.")
@click.option("--recipe", default="level", show_default=True, help="Name or path of a recipe.")
@click.option(
    "--people",
    type=click.IntRange(2),
    default=PEOPLE,
    show_default=True,
    help="Number of people to forget, and of people to retain, with one question about each.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Train only a few steps, to test an installation: nothing is learned or forgotten.",
)
@click.option("--attack", "attacks", multiple=True, help="Also run this attack. Repeatable; "
              "without attacks, the verdict is never FORGOTTEN.")  # fmt: skip
@click.option("--again", is_flag=True, help="Delete an earlier demo and start over.")
@set_option
@json_option
def command(
    out: Path | None,
    model: str | None,
    recipe: str,
    people: int,
    quick: bool,
    attacks: tuple[str, ...],
    again: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Unlearn made-up people, and show the answers before and after.

    The model first memorises the people, so that there is something to forget. An interrupted demo
    resumes; a finished one is shown again.
    """
    import shutil

    from mergeforget.api.unlearn import answers_of, unlearn
    from mergeforget.data.people import made_up
    from mergeforget.recipe import load_recipe
    from mergeforget.run import RUNS

    folder = out or RUNS / "demo"
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    chosen = load_recipe(recipe, (*(QUICK if quick else ()), *settings))
    files = made_up(people, questions=1)
    result = unlearn(
        model or chosen.model.name,
        forget=files["forget"],
        retain=files["retain"],
        holdout=files["holdout"],
        out=folder,
        recipe=chosen,
        memorise=True,
        attacks=attacks,
    )
    answers = answers_of(result.run.paths, result.chosen, SHOWN)
    lines = [
        line
        for one in answers
        for line in (
            f"[{one['split']}] {one['prompt']}",
            f"    expected  {one['expected']}",
            f"    before    {one['before']}",
            f"    after     {one['after']}",
        )
    ]
    notes = [f"Note: {note}" for note in result.notes]
    end = [f"Report: {result.run.paths.report}",
           f"Ask it: mergeforget chat {result.run.root}"]  # fmt: skip
    values = result.to_dict() | {"answers": answers}
    emit(values, "\n".join([*lines, "", str(result), "", *notes, *end]), as_json)
