"""`python -m benchmarks.study`: run a list of commands, and write the document of their results."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mergeforget.cli import ReportingGroup, add_common_options
from mergeforget.commands._options import emit, json_option

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group("study", cls=ReportingGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Repeat the published experiments, and write a document of the results."""


@main.command("run")
@click.argument("name", metavar="NAME|FILE")
@click.option("--out", type=FOLDER, help="Folder of the runs.  [default: runs/study-NAME]")
@click.option("--results", type=FOLDER, help="Folder of the results, small json files.  "
              "[default: OUT/results]")  # fmt: skip
@click.option("--data", type=FOLDER, help="Folder of the data sets.  [default: $MERGEFORGET_DATA, "
              "or data]")  # fmt: skip
@click.option("--only", multiple=True, metavar="PART", help="Run only this part and the parts "
              "that it depends on. Repeatable.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Stop after this many "
              "minutes; rerun the command to resume.")  # fmt: skip
@click.option("--again", multiple=True, metavar="STEP", help="Discard the results of this step "
              "and of the steps that depend on it, and run them again. Repeatable.")  # fmt: skip
@click.option("--value", "values", multiple=True, metavar="NAME=TEXT", help="Replace one of the "
              "study's values, for example limit=32. Repeatable.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Number of "
              "steps that run in parallel.")  # fmt: skip
@json_option
def run(
    name: str,
    out: Path | None,
    results: Path | None,
    data: Path | None,
    only: tuple[str, ...],
    minutes: float | None,
    again: tuple[str, ...],
    values: tuple[str, ...],
    jobs: int,
    as_json: bool,
) -> None:
    """Run the steps of a study that are not done yet.

    Each step is one or more mergeforget commands. An interrupted step resumes; a part whose data is
    missing is skipped and reported.
    """
    from benchmarks.study.definition import load_study
    from benchmarks.study.places import Places
    from benchmarks.study.schedule import run_study
    from mergeforget.run import RUNS

    given = dict(_pair(value) for value in values)
    study, file = load_study(name, given)
    out = out or RUNS / f"study-{study.name}"
    data = data or Path(os.environ.get("MERGEFORGET_DATA", "data"))
    places = Places(out, results or out / "results", data, file)
    states = run_study(
        study, places, only=only, minutes=minutes, again=again, given=given, jobs=jobs
    )
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    told = "\n".join(f"{n} {'step' if n == 1 else 'steps'} {state}" for state, n in counts.items())
    more = f"\nNext: python -m benchmarks.study write {places.results}" if "done" in counts else ""
    emit({"out": str(out), "results": str(places.results), "steps": states}, told + more, as_json)


@main.command("write")
@click.argument("results", type=FOLDER)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False),
              help="The document.  [default: RESULTS.md]")  # fmt: skip
@json_option
def write(results: Path, out: Path | None, as_json: bool) -> None:
    """Write the document of a study from its results folder alone."""
    from benchmarks.study.document import write_document

    path = write_document(results, out or results.with_name(results.name + ".md"))
    emit({"document": str(path)}, f"Document: {path}", as_json)


@main.command("compare")
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@json_option
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Compare the results of two runs of a study, given their `results` folders.

    Only steps that both ran with the same commands are compared. Exits with code 7 if a
    figure differs.
    """
    from benchmarks.study.cells import read_results
    from benchmarks.study.compare import compared
    from mergeforget.errors import VerificationError

    steps = compared(read_results(first).results, read_results(second).results)
    differ = [one.step for one in steps if one.differ]
    lines = [one.told for one in steps]
    lines.append(f"{len(steps) - len(differ)} of {len(steps)} steps gave the same figures.")
    found = {one.step: {"figures": one.figures, "differ": one.differ} for one in steps}
    emit({"same": not differ, "steps": found}, "\n".join(lines), as_json)
    if differ:
        raise VerificationError(
            f"The figures of {', '.join(differ)} differ. Sums differ in their last bits with the "
            "processor, the number of threads and the versions of the libraries: the documents of "
            "both name them."
        )


@main.command("plan")
@click.argument("name", metavar="NAME|FILE")
@json_option
def plan(name: str, as_json: bool) -> None:
    """Print the parts, steps, commands and expected times of a study."""
    from benchmarks.study.definition import load_study

    study, _ = load_study(name)
    lines = []
    for section in study.parts:
        minutes = sum(step.minutes for step in section.steps)
        time = f"{minutes:g} min" if section.steps else "tables of the steps above"
        lines.append(f"{section.name}: {section.title} ({time})")
        for step in section.steps:
            lines.append(f"  {step.name} ({step.minutes:g} min)")
            lines += [f"    mergeforget {text}" for text in study.commands(step)]
    emit(study.model_dump(mode="json"), "\n".join(lines), as_json)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not of the form NAME=TEXT.", param_hint="--value")
    return name, value


add_common_options(main)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks.study")
