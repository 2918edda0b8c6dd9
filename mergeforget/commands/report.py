"""`mergeforget report`: write the self-contained page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergeforget.commands._options import chosen_run, emit, json_option, run_argument

if TYPE_CHECKING:
    from mergeforget.analysis.people import PersonRecord


@click.command("report")
@run_argument
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML file to write.  [default: RUN/report/index.html]",
)
@click.option("--open", "open_it", is_flag=True, help="Open the page in the browser.")
@click.option("--person", help="Print the record of one person of the forget set instead.")
@json_option
def command(
    run: Path | None, out: Path | None, open_it: bool, person: str | None, as_json: bool
) -> None:
    """Write the report of a run: one HTML file that needs no network.

    RUN is a run folder; the newest under runs/ if omitted. Also writes people.csv,
    leaks.csv, every prompt and completion as answers.csv and answers.parquet, and evidence.json.
    """
    from mergeforget.api.runs import report
    from mergeforget.errors import UsageError

    if person is not None:
        if open_it:
            raise UsageError("--open does not apply to --person, which writes no page.")
        if out is not None:
            raise UsageError("--out does not apply to --person, which writes no file.")
        _print_person(report(chosen_run(run), person=person), as_json)
        return
    path = report(chosen_run(run), out=out)
    emit({"report": str(path.resolve())}, f"Report: {path}", as_json)
    if open_it:
        click.launch(path.resolve().as_uri())


def _print_person(found: PersonRecord, as_json: bool) -> None:
    from dataclasses import asdict

    from mergeforget.analysis.people import person_text

    result = found.to_dict() | {"leaks": [asdict(leak) for leak in found.leaks]}
    emit(result, person_text(found), as_json)
