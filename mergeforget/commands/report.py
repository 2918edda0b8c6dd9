"""`mergeforget report`: one self-contained page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeforget.commands._options import chosen_run, emit, json_option, run_argument


@click.command("report")
@run_argument
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the page.  [default: RUN/report/index.html]",
)
@click.option("--open", "open_it", is_flag=True, help="Open the page in the browser.")
@click.option("--person", help="Print what is known about one person of the forget set instead.")
@json_option
def command(
    run: Path | None, out: Path | None, open_it: bool, person: str | None, as_json: bool
) -> None:
    """Write the report of a run: one HTML file that needs no network.

    RUN is a run folder; the newest under runs/ if omitted. RUN/report also gets people.csv,
    leaks.csv, every prompt and completion as answers.csv and answers.parquet, and evidence.json.
    """
    from mergeforget.api.runs import report
    from mergeforget.errors import UsageError

    if person is not None:
        if out is not None or open_it:
            raise UsageError("--person prints one person; it takes neither --out nor --open.")
        _print_person(chosen_run(run), person, as_json)
        return
    path = report(chosen_run(run), out=out)
    emit({"report": str(path.resolve())}, f"Report: {path}", as_json)
    if open_it:
        click.launch(path.resolve().as_uri())


def _print_person(run: Any, person: str, as_json: bool) -> None:
    from dataclasses import asdict

    from mergeforget.analysis.people import person_record, person_text, run_people

    found = person_record(run_people(run), person)
    result = found.to_dict() | {"leaks": [asdict(leak) for leak in found.leaks]}
    emit(result, person_text(found), as_json)
