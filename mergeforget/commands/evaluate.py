"""`mergeforget evaluate`: what the models of a run, or any model, still know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands._options import chosen_run, emit, json_option, run_argument

if TYPE_CHECKING:
    from mergeforget.recipe import EvaluationSpec
    from mergeforget.score import Score

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("evaluate")
@run_argument
@click.option("--model", help="Evaluate this model instead of a run: hub id, folder or smollm2.")
@click.option("--adapter", type=FOLDER, help="PEFT folder to put on the model.")
@click.option("--subject", "subjects", multiple=True,
              help="Of a run: base, over, under or a candidate; repeat it.  [default: base, over, "
              "under, and the chosen candidate or else all]")  # fmt: skip
@click.option("--snapshots", is_flag=True, help="The base and every snapshot of the pair instead: "
              "scores over the training.")  # fmt: skip
@click.option("--benchmark", help="semeval2025-task4 or custom.  [default: the recipe's]")
@click.option("--forget", type=FILE, help="Rows that were to be forgotten (with --model).")
@click.option("--retain", type=FILE, help="Rows that were to be kept (with --model).")
@click.option("--holdout", type=FILE, help="Rows that no training saw: the non-members.")
@click.option("--members", type=FILE, help="Documents that were trained on, instead of --forget's.")
@click.option("--nonmembers", type=FILE, help="Documents that were not, instead of --holdout's.")
@click.option("--limit", type=click.IntRange(1), help="Forget rows, retain rows and questions of "
              "each MMLU subject at most.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(1), help="Of an answer.  [default: 256]")
@click.option("--mmlu", type=FOLDER, help="Folder with MMLU's dev/ and test/ csv files.")
@click.option("--mmlu-shots", type=click.IntRange(0, 5), help="Examples shown.  [default: 5]")
@click.option("--mmlu-limit", type=click.IntRange(1), help="Questions of each MMLU subject.  "
              "[default: --limit]")  # fmt: skip
@click.option("--membership", type=click.Choice(["documents", "rows", "answers"]), help="What is "
              "judged as member or not: the completed documents, every row's document, or every "
              "answer given its prompt.  [default: documents]")  # fmt: skip
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens of a batch.  [default: what "
              "the memory allows]")  # fmt: skip
@click.option("--device", help="cpu, cuda, ...  [default: the GPU where there is one]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="With --model: write scores.jsonl and the answers here.")  # fmt: skip
@click.option("--again", is_flag=True, help="Measure anew what was measured before.")
@json_option
def command(run: Path | None, as_json: bool, **options: Any) -> None:
    """Generate, read likelihoods and score: one pass of each serves every metric.

    Without --model the base, the pair and the candidates of RUN are evaluated on the run's own
    rows; scores.jsonl and answers/ are written there. What was measured is kept, so an
    interrupted evaluation goes on where it was.
    """
    from mergeforget.errors import UsageError
    from mergeforget.evaluate.table import render

    if options["model"]:
        if run is not None or options["subjects"] or options["snapshots"]:
            raise UsageError(
                "Give RUN or --model, not both; --subject and --snapshots belong to a run."
            )
        scores = _evaluate_model(options)
    else:
        given = [f"--{n}" for n in ("adapter", "forget", "retain", "out") if options[n]]
        if given:
            raise UsageError(f"{', '.join(given)} belongs to --model; a run has its own.")
        scores = _evaluate_run(run, options)
    result = {name: [s.to_dict() for s in every] for name, every in scores.items()}
    emit({"scores": result}, render(scores), as_json)


def _evaluate_run(folder: Path | None, options: dict[str, Any]) -> dict[str, list[Score]]:
    from mergeforget.evaluate.rows import rows_of_run
    from mergeforget.evaluate.subjects import Evaluation, evaluate_run, snapshots_of
    from mergeforget.recipe import load_recipe

    run = chosen_run(folder)
    recipe = load_recipe(run.recipe)
    settings = _settings(recipe.evaluation, options)
    evaluation = Evaluation(
        base=run.base(),
        spec=recipe.model,
        settings=settings,
        rows=rows_of_run(run, settings, holdout=options["holdout"], seed=recipe.search.seed),
        folder=run.root / "evaluation",
        device=options["device"],
        batch_tokens=options["batch_tokens"],
    )
    subjects = options["subjects"]
    if options["snapshots"]:
        subjects = [*subjects, "base", *snapshots_of(run)]
    return evaluate_run(run, evaluation, subjects, again=options["again"])


def _evaluate_model(options: dict[str, Any]) -> dict[str, list[Score]]:
    from mergeforget.benchmarks import BENCHMARKS
    from mergeforget.evaluate.rows import rows_of_files
    from mergeforget.evaluate.store import write_subject
    from mergeforget.evaluate.subjects import Evaluation, kept_folder
    from mergeforget.recipe import EvaluationSpec, ModelSpec

    settings = _settings(EvaluationSpec(), options)
    files = ("forget", "retain", "holdout", "members", "nonmembers")
    evaluation = Evaluation(
        base=options["model"],
        spec=ModelSpec(name=options["model"]),
        settings=settings,
        rows=rows_of_files(**{name: options[name] for name in files}, spec=settings),
        folder=kept_folder(),
        device=options["device"],
        batch_tokens=options["batch_tokens"],
    )
    adapter, out = options["adapter"], options["out"]
    name = adapter.name if adapter else Path(options["model"]).name
    measured = evaluation.run(adapter, name, again=options["again"])
    scores = BENCHMARKS.get(settings.benchmark).fn(measured)
    if out is not None:
        write_subject(out / "scores.jsonl", out / "answers", name, measured, scores)
    return {name: scores}


def _settings(spec: EvaluationSpec, options: dict[str, Any]) -> EvaluationSpec:
    """The recipe's section with what the command line says instead."""
    from mergeforget.benchmarks import BENCHMARKS

    names = ("benchmark", "limit", "max_new_tokens", "mmlu_shots", "mmlu_limit", "membership")
    changes = {name: options[name] for name in names if options[name] is not None}
    if options["mmlu"] is not None:
        changes["mmlu"] = str(options["mmlu"])
    changed = spec.model_copy(update=changes)
    BENCHMARKS.get(changed.benchmark)
    return changed
