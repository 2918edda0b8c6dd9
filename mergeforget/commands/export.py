"""`mergeforget export`: write the chosen adapter or the whole model, checked, with its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeforget.commands._options import (
    chosen_run,
    dtype_option,
    emit,
    json_option,
    run_argument,
    template_options,
)


@click.command("export")
@run_argument
@click.option(
    "--candidate", default="", help="Candidate under RUN/candidates.  [default: the chosen one]"
)
@click.option("--full", is_flag=True, help="Write the whole model instead of the adapter.")
@dtype_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write.  [default: RUN/export/NAME-adapter or -model]",
)  # fmt: skip
@click.option(
    "--gguf", is_flag=True, help="With --full: also convert the model to GGUF, with llama.cpp."
)
@click.option("--push", metavar="ID", help="Upload the folder to this hub repository.")
@template_options
@json_option
def command(
    run: Path | None, candidate: str, full: bool, dtype: Any, out: Path | None, template: Any,
    system_prompt: str | None, gguf: bool, push: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Write the chosen adapter or model as a plain folder, with tokenizer and model card.

    RUN is a run folder; the newest under runs/ if omitted. The written weights are loaded again and
    their logits are compared with the candidate's.
    """
    from dataclasses import asdict

    from mergeforget.api.runs import export

    exported = export(chosen_run(run), candidate=candidate, full=full, dtype=dtype, out=out,
                   template=template, system_prompt=system_prompt, gguf=gguf,
                   push=push)  # fmt: skip
    text = (
        f"{exported.name} as {exported.kind}: {exported.folder}\n"
        f"Its logits equal the candidate's to {exported.difference:.1e} of the largest "
        f"({exported.tolerance:.0e} allowed for {exported.dtype})."
        + (f"\nGGUF file: {exported.gguf}" if exported.gguf else "")
        + (f"\nUploaded: {exported.pushed}" if exported.pushed else "")
    )
    emit(asdict(exported), text, as_json)
