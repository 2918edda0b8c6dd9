"""`mergeforget extract-lora`: turn a fine-tuned model, or another kind of adapter, into a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeforget.commands import _merge as shared
from mergeforget.commands._options import emit, json_option


@click.command("extract-lora")
@click.argument("model")
@shared.options(
    click.option(
        "--base", required=True, help="Name or folder of the model that MODEL was fine-tuned from."
    ),
    click.option(
        "--rank",
        type=click.IntRange(1),
        default=32,
        show_default=True,
        help="Maximum rank of a module.",
    ),
    click.option(
        "--svd",
        type=click.Choice(["fast", "exact"]),
        default="fast",
        show_default=True,
        help="Algorithm that truncates the differences to the rank.",
    ),
    shared.THREADS,
    click.option("--out", type=shared.FOLDER, required=True, help="Folder to write."),
)
@json_option
def command(model: str, out: Path, as_json: bool, **options: Any) -> None:
    """Extract a plain LoRA from MODEL: its difference from the base, truncated to a rank.

    MODEL is a name or folder of a fine-tuned model, or a folder of any adapter that PEFT can merge
    into its base (DoRA, PiSSA, LoHa, LoKr, IA3, ...). The command prints the share of the
    difference that the adapter does not contain.
    """
    from mergeforget.api.merging import extract_lora

    merged = extract_lora(model, out=out, **options)
    report = merged.report
    lines = [
        f"{out}: {report['modules']} modules of rank {merged.candidate.rank} or less",
        f"Truncation lost {report['energy_lost']:.2%} of the energy of the difference.",
    ]
    if "left_out" in report:
        lines.append(
            f"Warning: {report['energy_left_out']:.2%} of it is in tensors that a LoRA cannot "
            f"change: {report['left_out']}."
        )
    emit({"folder": str(out), **report}, "\n".join(lines), as_json)
