"""`mergeforget attack`: try to recover the forgotten data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands._merge import arguments_of
from mergeforget.commands._options import chosen_run, emit, json_option, template_options
from mergeforget.commands.analyze import split

if TYPE_CHECKING:
    from mergeforget.attack.result import Result

DATA = click.Path(path_type=Path)  # a file, a folder, or a data set on the Hub
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
WORDS = ("model", "kind")
SHARED = (
    "quick", "run_models", "adapter", "base", "control", "forget", "retain", "holdout", "limit",
    "max_new_tokens", "seed", "batch_tokens", "device", "out", "again", "template",
    "system_prompt",
)  # fmt: skip


@click.command("attack")
@click.argument("arguments", nargs=-1, metavar="[RUN] [ATTACK]...")
@click.option("--quick", is_flag=True, help="Run the quick set of attacks on at most 24 "
              "rows per split.")  # fmt: skip
@click.option("--run-model", "run_models", multiple=True,
              help="Model of the run: chosen, base, over, under or a candidate. Repeatable.  "
              "[default: chosen]")  # fmt: skip
@click.option("--model", help="Attack this model instead of a run: hub id, folder or smollm2.")
@click.option("--adapter", type=FOLDER, help="PEFT folder to load on the model.")
@click.option("--base", help="With --model: the model before unlearning.")
@click.option("--control", help="Model that never saw the data.  [default: the run's model before "
              "it memorised the data, trained on the retain rows alone]")  # fmt: skip
@click.option("--forget", type=DATA, help="Rows to forget.  [default: the run's]")
@click.option("--retain", type=DATA, help="Rows to retain.  [default: the run's]")
@click.option(
    "--holdout", type=DATA, help="Rows that are not in the training data.  [default: the run's]"
)
@template_options
@click.option("--limit", type=click.IntRange(1), help="Maximum number of rows per split.")
@click.option("--steps", type=click.IntRange(1), help="relearn: optimiser steps.  [default: 100]")
@click.option(
    "--on",
    metavar="forget|retain|both|unrelated|FILE",
    help="relearn: rows to train "
    "on: a few forget rows, the retain rows, both, or other text.  [default: both]",
)
@click.option("--shown", type=click.IntRange(1), help="relearn: maximum number of rows to train "
              "on, whole documents.  [default: a quarter of forget, all of others]")  # fmt: skip
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True),
              help="relearn: constant learning rate of AdamW.  [default: 2e-4]")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), help="relearn: rows per step.  [default: 4]")
@click.option("--rank", type=click.IntRange(1), help="relearn: rank of the LoRA.  [default: 16]")
@click.option(
    "--full", is_flag=True, default=None, help="relearn: train every weight instead of a LoRA."
)
@click.option("--bits", metavar="N,N", help="quantise: bit widths to round to.  [default: 8,4]")
@click.option("--group", type=click.IntRange(2), help="quantise, nf4, gptq, awq: number of weights "
              "that share a scale, below 8 bits.  [default: 64]")  # fmt: skip
@click.option("--kinds", metavar="K,K", help="prompts: plain, paraphrase, prefix, jailbreak.  "
              "[default: all]")  # fmt: skip
@click.option("--words", metavar="N,N", help="prompts: how many answer words a prefix contains.  "
              "[default: 1,3,5]")  # fmt: skip
@click.option("--templates", type=FILE, help="prompts: file with your own jailbreaks, one per "
              "line, each containing {prompt}.")  # fmt: skip
@click.option("--formats", metavar="F,F", help="formats: raw, chat, system, instruction, dialogue, "
              "completion, fill-in, reversed, json, form.  [default: all]")  # fmt: skip
@click.option("--systems", type=FILE, help="formats: file with system messages to try, one per "
              "line.  [default: six common ones]")  # fmt: skip
@click.option("--languages", metavar="L,L", help="translation: german, french, spanish.  "
              "[default: all]")  # fmt: skip
@click.option("--shots", type=click.IntRange(1), help="in_context: number of retain rows before "
              "the prompt.  [default: 3]")  # fmt: skip
@click.option("--samples", type=click.IntRange(1), help="sampling: number of answers per prompt.  "
              "[default: 32]")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(0, min_open=True),
              help="sampling: temperature of the softmax.  [default: 1.0]")  # fmt: skip
@click.option("--candidates", type=click.IntRange(1), help="exposure: number of answers of the "
              "same type to rank the true answer with.  [default: 15]")  # fmt: skip
@click.option("--options", type=click.IntRange(2, 8), help="multiple_choice: number of answers "
              "to choose from.  [default: 4]")  # fmt: skip
@click.option("--layers", type=click.IntRange(1), help="logit_lens: number of layers.  "
              "[default: 8]")  # fmt: skip
@click.option("--pool", type=click.Choice(["last", "mean"]), help="probe: use the hidden state "
              "of the prompt's last token, or the mean over tokens.  [default: last]")  # fmt: skip
@click.option("--shuffles", type=click.IntRange(19), help="probe: number of label permutations "
              "for the chance level.  [default: 39]")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(1), help="Maximum tokens to generate per "
              "answer.  [default: the run's, or 64]")  # fmt: skip
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Set any "
              "argument of an attack, for example of a plugin's. Repeatable.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens per batch.  [default: as many "
              "as fit into memory]")  # fmt: skip
@click.option("--device", help="Device: cpu, cuda, ..., or auto to distribute the layers over all "
              "GPUs, main memory and disk.  [default: the GPU if there is one]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the results.  [default: RUN/attacks, or attacks]")  # fmt: skip
@click.option("--again", is_flag=True, help="Ignore cached measurements.")
@json_option
def command(arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Try to recover the forgotten data, and judge the claim that it is gone.

    RUN is a run folder; the newest under runs/ if omitted. Without the name of an attack, every
    attack runs (see `mergeforget list attacks`). Measurements are cached; repeat an interrupted
    command to resume with the next model.
    """
    from mergeforget.api.attacking import attack
    from mergeforget.attack.driver import attack_names
    from mergeforget.attack.methods import ATTACKS
    from mergeforget.errors import UsageError
    from mergeforget.parsing import printable

    folder, names = split(arguments, [*ATTACKS.names(), "all"], "attack")
    if options["model"] and folder is not None:
        raise UsageError("Give RUN or --model, not both; --run-model belongs to a run.")
    given = _arguments(options, attack_names(names, quick=options["quick"]))
    shared = {k: v for k, v in options.items() if k in SHARED}
    results = attack(
        options["model"], names, run=None if options["model"] else chosen_run(folder),
        on_result=None if as_json else lambda result: click.echo(printable(text_of(result)) + "\n"),
        **shared, **given,
    )  # fmt: skip
    verdicts = results.verdicts
    text = "".join(f"{name}: {sentence}\n" for name, sentence in verdicts.items())
    emit(
        {"out": str(results.folder), "verdicts": verdicts, "files": [str(f) for f in results.files],
         "results": [r.to_dict() for r in results]},
        f"{text}Results are in {results.folder}: {', '.join(f.name for f in results.files)}",
        as_json,
    )  # fmt: skip


def _arguments(options: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the arguments of the attacks; an option that no named attack takes is an error."""
    from mergeforget.api.attacking import check_arguments
    from mergeforget.attack.methods import ATTACKS

    own = {key for name in ATTACKS.names() for key in ATTACKS.get(name).parameters}
    given = {k: v for k, v in options.items() if k in own and v is not None}
    check_arguments(given | arguments_of(options["assignments"]), names)
    for key in ("bits", "words"):
        if key in given:
            given[key] = _whole_numbers(key, given[key])
    for key in ("kinds", "formats", "languages"):
        if key in given:
            given[key] = [one.strip() for one in given[key].split(",")]
    return given | arguments_of(options["assignments"])


def _whole_numbers(key: str, text: str) -> list[int]:
    from mergeforget.errors import UsageError

    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < (2 if key == "bits" else 1):
        example = "8,4" if key == "bits" else "1,3,5"
        raise UsageError(f"--{key} expects integers such as {example}, not {text!r}.")
    return numbers


def text_of(result: Result) -> str:
    """Format the table of a result and its verdict."""
    from rich import box
    from rich.table import Table

    from mergeforget.evaluate.table import as_text

    if not result.rows:
        return f"{result.attack}: {result.model}\n{result.verdict}"
    table = Table(box=box.SIMPLE_HEAD, title=f"{result.attack}: {result.model}")
    rows = side_by_side(result.rows)
    for heading in rows[0]:
        table.add_column(heading.replace("_", " "), justify="left" if heading in WORDS else "right")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return f"{as_text(table)}\n{result.verdict}"


def side_by_side(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pivot rows of one score to one column per model; return other rows unchanged."""
    key, *figures = [name for name in rows[0] if name != "model"]
    if len(figures) != 1:
        return rows
    table: dict[Any, dict[str, Any]] = {}
    for row in rows:
        table.setdefault(row[key], {key: row[key]})[row["model"]] = row[figures[0]]
    return list(table.values())


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
