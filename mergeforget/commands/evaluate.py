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
)

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
@click.option("--metrics", metavar="M,M[/SPLIT]", help="Further metrics, besides those of the "
              "benchmark; `mergeforget list metrics` names them.")  # fmt: skip
@click.option("--forget", type=FILE, help="Rows that were to be forgotten (with --model).")
@click.option("--retain", type=FILE, help="Rows that were to be kept (with --model).")
@click.option("--holdout", type=FILE, help="Rows that no training saw: the non-members.")
@click.option("--members", type=FILE, help="Documents that were trained on, instead of --forget's.")
@click.option("--nonmembers", type=FILE, help="Documents that were not, instead of --holdout's.")
@click.option("--rows", multiple=True, metavar="SPLIT=FILE", help="Rows of a further split, say "
              "real_authors; or of forget or retain instead of a run's. Repeatable.")  # fmt: skip
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="With --model: a "
              "column's name in the files; ours are id, input, output, task, ...")  # fmt: skip
@template_options
@click.option("--ask", type=click.Choice(["all", "own"]), help="all: ask a model that has a chat "
              "template raw and in chat, and report the worst case; own: ask it by --template only."
              "  [default: all]")  # fmt: skip
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
    """``A=B`` each."""
    from mergeforget.errors import UsageError

    for word in words:
        if not all(word.partition("=")):
            raise UsageError(f"{option} wants A=B, not {word!r}. `--help` shows what A and B are.")
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}
