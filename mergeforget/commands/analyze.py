"""`mergeforget analyze`: numbers and figures of a run."""

from __future__ import annotations

from pathlib import Path

import click

from mergeforget.commands._options import chosen_run, emit, json_option


@click.command("analyze")
@click.argument("arguments", nargs=-1, metavar="[RUN] [WHAT]...")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: RUN/analysis]"
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Another run, whose training curves are drawn in the same figure; with dynamics only.",
)
@json_option
def command(
    arguments: tuple[str, ...], out: Path | None, against: Path | None, as_json: bool
) -> None:
    """Analyze a run: numbers as json and csv, figures as png and svg.

    RUN is a run folder; the newest under runs/ if omitted. WHAT is one or more of density, mia,
    attacks, prediction, angles, weights, curves and dynamics; all of them if omitted.
    """
    from mergeforget.analysis.findings import ANALYSES
    from mergeforget.api.runs import analyze

    folder, names = split(arguments, [*ANALYSES, "all"])
    run = chosen_run(folder)
    findings = analyze(run, names, out=out, against=against)
    out = out or run.analysis
    emit(
        {"run": str(run.root), "out": str(out), "analyses": [vars(f) for f in findings]},
        "\n\n".join(text_of(f, out) for f in findings),
        as_json,
    )


def split(
    arguments: tuple[str, ...], known: list[str], kind: str = "analysis"
) -> tuple[Path | None, list[str]]:
    """Split arguments into a run folder and names of analyses, or of another kind.

    The first argument is a run unless it is a known name; write ./angles for a run of that name.
    """
    from mergeforget.errors import UnknownNameError

    names = list(arguments)
    folder = None
    if names and names[0] not in known and (len(names) > 1 or Path(names[0]).exists()):
        folder = Path(names.pop(0))
    elif names and names[0] not in known and "/" in names[0]:
        folder = Path(names.pop(0))  # a run that does not exist: its own message says so
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    return folder, names


def text_of(finding: object, out: Path) -> str:
    """Format a finding for a terminal."""
    from mergeforget.analysis.findings import Finding

    assert isinstance(finding, Finding)
    if finding.missing:
        return f"{finding.title}: skipped.\n  {finding.missing}"
    lines = [finding.title + ":", *(f"  {s}" for s in finding.sentences)]
    files = [
        f"{finding.name}.json",
        f"{finding.name}.csv",
        *(f"{f['name']}.svg" for f in finding.figures),
    ]
    return "\n".join([*lines, f"  in {out}: {', '.join(files)}"])
