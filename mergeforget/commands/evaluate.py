"""`mergeforget evaluate`: what the models of a run, or any model, still know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands._options import chosen_run, emit, json_option, run_argument

if TYPE_CHECKING:
    from mergeforget.evaluate.sharing import RankShare
    from mergeforget.recipe import EvaluationSpec
    from mergeforget.score import Score

    Scored = tuple[EvaluationSpec, dict[str, list[Score]]]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("evaluate")
@run_argument
@click.option("--model", help="Evaluate this model instead of a run: hub id, folder or smollm2.")
@click.option("--adapter", type=FOLDER, help="PEFT folder to put on the model.")
@click.option("--run-model", "run_models", multiple=True,
              help="Of a run: base, over, under or a candidate; repeat it.  [default: base, over, "
              "under, and the chosen candidate or else all]")  # fmt: skip
@click.option("--snapshots", is_flag=True, help="The base and every snapshot of the pair instead: "
              "scores over the training.")  # fmt: skip
@click.option("--benchmark", help="semeval2025-task4, tofu or custom.  [default: the recipe's]")
@click.option("--forget", type=FILE, help="Rows that were to be forgotten (with --model).")
@click.option("--retain", type=FILE, help="Rows that were to be kept (with --model).")
@click.option("--holdout", type=FILE, help="Rows that no training saw: the non-members.")
@click.option("--members", type=FILE, help="Documents that were trained on, instead of --forget's.")
@click.option("--nonmembers", type=FILE, help="Documents that were not, instead of --holdout's.")
@click.option("--rows", multiple=True, metavar="SPLIT=FILE", help="Rows of a further split, say "
              "real_authors; or of forget or retain instead of a run's. Repeatable.")  # fmt: skip
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="With --model: a "
              "column's name in the files; ours are id, input, output, task, ...")  # fmt: skip
@click.option("--retrained", help="Model or adapter trained without the forget set, or its answers/"
              "NAME.likelihoods.jsonl: for forget quality and PrivLeak.")  # fmt: skip
@click.option("--reference", help="Model for the membership signal reference: its loss of each "
              "document less this one's.")  # fmt: skip
@click.option("--gradient-norm", is_flag=True, help="Membership by gradient norms too: a backward "
              "pass of each document.")  # fmt: skip
@click.option("--before", help="With --model: the model before unlearning, for the ratio of "
              "utility. A run has its base.")  # fmt: skip
@click.option("--utility", metavar="METRIC[/SPLIT]", help="Score of that ratio.  [default: mmlu, "
              "else model_utility]")  # fmt: skip
@click.option("--floor", type=click.FloatRange(0, 1), help="Warn where the ratio is below.  "
              "[default: 0.75]")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Forget rows, retain rows and questions of "
              "each MMLU subject at most.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(1), help="Of an answer.  [default: 256; "
              "tofu: 200]")  # fmt: skip
@click.option("--mmlu", type=FOLDER, help="Folder with MMLU's dev/ and test/ csv files.")
@click.option("--mmlu-shots", type=click.IntRange(0, 5), help="Examples shown.  [default: 5]")
@click.option("--mmlu-limit", type=click.IntRange(1), help="Questions of each MMLU subject.  "
              "[default: --limit]")  # fmt: skip
@click.option("--membership", type=click.Choice(["documents", "rows", "answers"]), help="What is "
              "judged as member or not: the completed documents, every row's document, or every "
              "answer given its prompt.  [default: documents]")  # fmt: skip
@click.option("--lm-eval", multiple=True, metavar="TASK", help="A task of lm-eval as well; repeat "
              "it. Needs the extra eval.")  # fmt: skip
@click.option("--lm-eval-folder", type=FOLDER, help="Folder with the YAML files of further tasks.")
@click.option("--backend", type=click.Choice(["transformers", "vllm"]), help="What writes answers; "
              "vllm needs the extra serve and a GPU.  [default: transformers]")  # fmt: skip
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens of a batch.  [default: what "
              "the memory allows]")  # fmt: skip
@click.option("--device", help="cpu, cuda, ...  [default: the GPU where there is one]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="With --model: write scores.jsonl and the answers here.")  # fmt: skip
@click.option("--parquet", is_flag=True, help="Write the answers as parquet beside JSON Lines.")
@click.option("--again", is_flag=True, help="Measure anew what was measured before.")
@json_option
def command(run: Path | None, as_json: bool, **options: Any) -> None:
    """Generate, read likelihoods and score: one pass of each serves every metric.

    Without --model the base, the pair and the candidates of RUN are evaluated on the run's own
    rows; scores.jsonl and answers/ are written there. What was measured is kept, so an
    interrupted evaluation goes on where it was. Many processes share the rows:
    `accelerate launch -m mergeforget evaluate ...`.
    """
    from mergeforget.errors import UsageError
    from mergeforget.evaluate.sharing import together
    from mergeforget.evaluate.table import notes, render

    sharing = together()
    if options["model"]:
        if run is not None or options["run_models"] or options["snapshots"]:
            raise UsageError(
                "Give RUN or --model, not both; --run-model and --snapshots belong to a run."
            )
        settings, scores = _evaluate_model(sharing, options)
    else:
        only = ("adapter", "forget", "retain", "columns", "before", "out")
        given = [f"--{n.removesuffix('s')}" for n in only if options[n]]
        if given:
            raise UsageError(f"{', '.join(given)} belongs to --model; a run has its own.")
        settings, scores = _evaluate_run(run, sharing, options)
    if sharing.main:
        told = notes(settings, scores)
        result = {name: [s.to_dict() for s in every] for name, every in scores.items()}
        text = "\n".join([render(scores), *told])
        emit({"scores": result, "notes": told}, text, as_json)


def _evaluate_run(folder: Path | None, sharing: RankShare, options: dict[str, Any]) -> Scored:
    from mergeforget.evaluate.evaluation import Evaluation
    from mergeforget.evaluate.rows import rows_of_run
    from mergeforget.evaluate.run_models import evaluate_run, snapshots_of
    from mergeforget.recipe import load_recipe

    run = chosen_run(folder)
    recipe = load_recipe(run.recipe)
    settings = _settings(recipe.evaluation, options)
    files = {n: options[n] for n in ("holdout", "members", "nonmembers")}
    evaluation = Evaluation(
        base=run.base(),
        spec=recipe.model,
        settings=settings,
        rows=rows_of_run(run, settings, **files, seed=recipe.search.seed),
        folder=run.root / "evaluation",
        device=options["device"],
        batch_tokens=options["batch_tokens"],
        sharing=sharing,
    )
    names = options["run_models"]
    if options["snapshots"]:
        names = [*names, "base", *snapshots_of(run)]
    again, parquet = options["again"], options["parquet"]
    return settings, evaluate_run(run, evaluation, names, again=again, parquet=parquet)


def _evaluate_model(sharing: RankShare, options: dict[str, Any]) -> Scored:
    from mergeforget.evaluate.evaluation import Evaluation
    from mergeforget.evaluate.rows import rows_of_files
    from mergeforget.evaluate.run_models import evaluate_any, kept_folder
    from mergeforget.evaluate.store import write_model_scores
    from mergeforget.recipe import EvaluationSpec, ModelSpec

    settings = _settings(EvaluationSpec(), options)
    files = {n: options[n] for n in ("forget", "retain", "holdout", "members", "nonmembers")}
    columns = _pairs("--column", options["columns"])
    evaluation = Evaluation(
        base=options["model"],
        spec=ModelSpec(name=options["model"]),
        settings=settings,
        rows=rows_of_files(**files, spec=settings, columns=columns),
        folder=kept_folder(),
        device=options["device"],
        batch_tokens=options["batch_tokens"],
        sharing=sharing,
    )
    adapter, out = options["adapter"], options["out"]
    name = adapter.name if adapter else Path(options["model"]).name
    measured, scores = evaluate_any(
        evaluation, adapter, name, before=options["before"], again=options["again"]
    )
    if out is not None and sharing.main:
        write_model_scores(
            out / "scores.jsonl", out / "answers", name, measured, scores,
            parquet=options["parquet"],
        )  # fmt: skip
    return settings, {name: scores}


def _settings(spec: EvaluationSpec, options: dict[str, Any]) -> EvaluationSpec:
    """The recipe's section with what the command line says instead."""
    from mergeforget.benchmarks import BENCHMARKS
    from mergeforget.recipe import NEW_TOKENS

    names = ("benchmark", "limit", "max_new_tokens", "mmlu_shots", "mmlu_limit", "membership",
             "retrained", "reference", "utility", "floor", "backend")  # fmt: skip
    changes = {name: options[name] for name in names if options[name] is not None}
    folders = {name: options[name] for name in ("mmlu", "lm_eval_folder") if options[name]}
    changes |= {name: str(folder) for name, folder in folders.items()}
    if options["lm_eval"]:
        changes["lm_eval"] = list(options["lm_eval"])
    if options["gradient_norm"]:
        changes["gradient_norm"] = True
    if "benchmark" in changes:
        changes = {"max_new_tokens": NEW_TOKENS.get(changes["benchmark"], 256)} | changes
    changes["rows"] = spec.rows | _pairs("--rows", options["rows"])
    changed = spec.model_copy(update=changes)
    BENCHMARKS.get(changed.benchmark)
    return changed


def _pairs(option: str, words: tuple[str, ...]) -> dict[str, str]:
    """``A=B`` each."""
    from mergeforget.errors import UsageError

    for word in words:
        if not all(word.partition("=")):
            raise UsageError(f"{option} wants A=B, not {word!r}. `--help` shows what A and B are.")
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}
