"""`mergeforget evaluate`: score the models of a run, or any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeforget.commands._options import (
    chosen_run,
    emit,
    json_option,
    run_argument,
    template_options,
    turns_option,
)

DATA = click.Path(path_type=Path)  # a file, a folder, or a data set on the Hub
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("evaluate")
@run_argument
@click.option("--model", help="Evaluate this model instead of a run: hub id, folder or smollm2.")
@click.option("--adapter", type=FOLDER, help="PEFT folder to load on the model.")
@click.option("--run-model", "run_models", multiple=True,
              help="Model of the run: base, over, under or a candidate. Repeatable.  [default: "
              "base, over, under, and the chosen candidate, or all "
              "candidates if none is chosen]")  # fmt: skip
@click.option("--snapshots", is_flag=True, help="Evaluate the base and every training "
              "snapshot of the pair instead, for curves over the training.")  # fmt: skip
@click.option(
    "--benchmark",
    help="Name of the benchmark; see `mergeforget list benchmarks`.  [default: the recipe's]",
)
@click.option("--metrics", metavar="M,M[/SPLIT]", help="Further metrics, besides those of the "
              "benchmark; `mergeforget list metrics` names them.")  # fmt: skip
@click.option("--forget", type=DATA, help="Rows to forget (with --model).")
@click.option("--retain", type=DATA, help="Rows to retain (with --model).")
@click.option("--holdout", type=DATA, help="Rows not in the training data, used as non-members.")
@click.option(
    "--members", type=DATA, help="Documents that were trained on, instead of those of --forget."
)
@click.option(
    "--nonmembers",
    type=DATA,
    help="Documents that were not trained on, instead of those of --holdout; with --benchmark rwku "
    "those of retain_mia.",
)
@click.option("--rows", multiple=True, metavar="SPLIT=FILE", help="Rows of a further split, such "
              "as real_authors; or of forget or retain instead of the run's. "
              "Repeatable.")  # fmt: skip
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="Name of a "
              "column in the files, with --model. OURS is id, "
              "input, output, task, ...")  # fmt: skip
@template_options
@turns_option
@click.option("--ask", type=click.Choice(["all", "own"]), help="all: use raw and chat prompts for "
              "a model with a chat template, and report the worst case; own: use only --template."
              "  [default: all]")  # fmt: skip
@click.option("--ask-system", "system_prompts", multiple=True, metavar="TEXT", help="Also ask in "
              "chat with this system message. Repeatable.")  # fmt: skip
@click.option("--retrained", help="Model or adapter trained without the forget set, or its answers/"
              "NAME.likelihoods.jsonl: for forget quality and PrivLeak.")  # fmt: skip
@click.option("--reference", help="Model for reference-calibrated membership inference: its loss "
              "is subtracted from the evaluated model's.")  # fmt: skip
@click.option("--gradient-norm", is_flag=True, help="Compute gradient norms for membership "
              "inference; takes one backward pass per document.")  # fmt: skip
@click.option("--before", help="Model before unlearning, for the utility ratio; with --model "
              "only. A run uses its own base.")  # fmt: skip
@click.option("--utility", metavar="METRIC[/SPLIT]", help="Score that the utility ratio "
              "compares.  [default: mmlu, otherwise model_utility]")  # fmt: skip
@click.option("--floor", type=click.FloatRange(0, 1), help="Warn if the utility ratio is below "
              "this value.  [default: 0.75]")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Maximum number of forget rows, retain "
              "rows and questions per MMLU subject.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(1), help="Maximum tokens to generate per "
              "answer.  [default: 256; tofu: 200; muse: 128; rwku: 30]")  # fmt: skip
@click.option("--mmlu", type=FOLDER, help="Folder with MMLU's dev/ and test/ csv files.")
@click.option(
    "--mmlu-shots",
    type=click.IntRange(0, 5),
    help="Number of examples in each MMLU prompt.  [default: 5]",
)
@click.option("--mmlu-limit", type=click.IntRange(1), help="Maximum number of questions per MMLU "
              "subject.  [default: --limit]")  # fmt: skip
@click.option("--membership", type=click.Choice(["documents", "rows", "answers"]), help="Text "
              "that is judged as member or non-member: completed documents, the document of "
              "every row, or every answer given its prompt.  "
              "[default: documents; tofu: answers]")  # fmt: skip
@click.option("--lm-eval", multiple=True, metavar="TASK", help="Also run this lm-eval task. "
              "Repeatable. Needs the extra eval.")  # fmt: skip
@click.option(
    "--lm-eval-folder", type=FOLDER, help="Folder with YAML files of further lm-eval tasks."
)
@click.option("--backend", type=click.Choice(["transformers", "vllm"]), help="Backend that "
              "generates the answers; vllm needs the extra serve and a GPU.  [default: "
              "transformers]")  # fmt: skip
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens per batch.  [default: as "
              "many as fit into memory]")  # fmt: skip
@click.option("--device", help="Device: cpu, cuda, ..., or auto to distribute the layers over all "
              "GPUs, main memory and disk.  [default: the GPU if there is one]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Folder for scores.jsonl and the answers; with --model only.")  # fmt: skip
@click.option("--parquet", is_flag=True, help="Also write the answers as parquet.")
@click.option("--again", is_flag=True, help="Ignore cached measurements.")
@json_option
def command(run: Path | None, as_json: bool, **options: Any) -> None:
    """Score models with a benchmark: likelihoods, generated answers, membership inference.

    Without --model, the base, the pair and the candidates of RUN are evaluated on the run's own
    rows; results are written to scores.jsonl and answers/ in RUN. Measurements are cached, so an
    interrupted evaluation resumes when the command is repeated. Several processes share the rows:
    `accelerate launch -m mergeforget evaluate ...`.
    """
    from mergeforget.api.measuring import evaluate
    from mergeforget.distributed import is_main
    from mergeforget.errors import UsageError
    from mergeforget.evaluate.table import render

    if options["model"] and run is not None:
        raise UsageError("Give RUN or --model, not both.")
    for name in ("rows", "columns"):
        option = "--rows" if name == "rows" else "--column"
        options[name] = _pairs(option, options[name])
    options["metrics"] = [m.strip() for m in (options["metrics"] or "").split(",") if m.strip()]
    scores = evaluate(run=None if options["model"] else chosen_run(run), **options)
    if is_main():
        result = {name: [s.to_dict() for s in every] for name, every in scores.items()}
        text = "\n".join([render(scores), *scores.notes])
        emit({"scores": result, "notes": scores.notes}, text, as_json)


def _pairs(option: str, words: tuple[str, ...]) -> dict[str, str]:
    """Parse ``A=B`` texts into a mapping."""
    from mergeforget.errors import UsageError

    for word in words:
        if not all(word.partition("=")):
            raise UsageError(f"{option} expects A=B, not {word!r}; see --help.")
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}
