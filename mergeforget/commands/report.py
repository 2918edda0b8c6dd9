"""`mergeforget report`: one self-contained page of a run."""

from __future__ import annotations

from pathlib import Path

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
@json_option
def command(run: Path | None, out: Path | None, open_it: bool, as_json: bool) -> None:
    """Write the report of a run: one HTML file that needs no network.

    RUN is a run folder; the newest under runs/ if omitted.
    """
    from mergeforget.api.runs import report

    path = report(chosen_run(run), out=out)
    emit({"report": str(path.resolve())}, f"Report: {path}", as_json)
    if open_it:
        click.launch(path.resolve().as_uri())
