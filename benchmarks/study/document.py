"""Write the document of a study from its results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.study.cells import NOT_RUN, Found, Results, at, cells_of, read_results
from benchmarks.study.claims import Verdict, verdicts
from benchmarks.study.definition import StudyDefinition, StudySection, StudyStep, Table
from mergeforget.console import duration
from mergeforget.files import write_text

FACTS = ("processor", "cores", "threads", "memory", "device", "python")


def write_document(results: Path, path: Path) -> Path:
    """Write a study's document from the folder of its results."""
    found = read_results(results)
    folder = Path(os.path.relpath(results, path.parent)).as_posix()
    lines = list(document(found, {p.name for p in results.glob("*.svg")}, folder))
    write_text(path, "\n".join(lines) + "\n")
    return path


def document(found: Found, pictures: set[str], folder: str) -> Iterator[str]:
    """Return the lines of the document, in Markdown.

    Args:
        pictures: Names of the figure files that exist.
        folder: Their folder, relative to the document.
    """
    study, results = found.study, found.results
    yield from (f"# {study.title}", "", study.text.strip(), "")
    yield from _summary(study, results)
    missing = [section for section in study.parts if not _is_measured(section, results)]
    for section in study.parts:
        if section in missing:
            continue
        yield from (f"## {section.title}", "")
        if section.text:
            yield from (section.text.strip(), "")
        for table in section.tables:
            yield from _table(table, results)
        quoted = [at(results[q.step]["measured"], q.reads) for q in section.quotes
                  if q.step in results]  # fmt: skip
        for sentence in [s for s in quoted if s]:
            yield from (f"> {sentence}", "")
        for figure in section.figures:
            name = f"{figure.step}-{figure.name}.svg"
            if name in pictures:
                yield from (f"![{figure.caption}]({folder}/{name})", "", f"*{figure.caption}*", "")
        yield from _commands(found, section)
    if missing:
        yield from ("## Not measured yet", "", "```bash")
        yield from (f"{found.command} --only {s.name}  # {s.title}" for s in missing)
        yield from ("```", "")
    yield from _circumstances(found)


def _is_measured(section: StudySection, results: Results) -> bool:
    """Return whether a step of a part was run, or, if it has none, one that its tables show."""
    own = [step.name for step in section.steps]
    shown = [name for table in section.tables for row in table.rows for name in row.steps]
    return not {*(own or shown)}.isdisjoint(results)


def _summary(study: StudyDefinition, results: Results) -> Iterator[str]:
    """Return a table of the claims, one line each."""
    found = [v for section in study.parts for t in section.tables for v in verdicts(t, results)]
    missing = [v for v in found if v.here.holds is None and not v.here.detail]
    done = sum(result["state"] == "done" for result in results.values())
    total = len(list(study.steps()))
    yield from ("## In short", "")
    yield (
        f"{done} of {total} steps are done. Each claim is judged below with its numbers. A verdict "
        "is *open* if the 95 % intervals of the numbers also allow the opposite answer"
        + (f". Claims not measured yet: {len(missing)}." if missing else ":")
    )
    yield ""
    yield from ("| claim | published | here | verdict |", "|---|---|---|---|")
    for verdict in (one for one in found if one not in missing):
        yield f"| {verdict.claim.text} | {_truth(verdict, True)} | {_truth(verdict, False)} | " + (
            f"{verdict.word.lower()}{', open' if verdict.settled is False else ''} |"
        )
    yield ""


def _truth(verdict: Verdict, source: bool) -> str:
    holds = (verdict.published if source else verdict.here).holds
    return {True: "yes", False: "no", None: "no number" if source else "not measured"}[holds]


def _table(table: Table, results: Results) -> Iterator[str]:
    """Return a table of measured and published values, with the verdicts."""
    yield from (f"### {table.title}", "")
    if table.text:
        yield from (table.text.strip(), "")
    shown = {c.label: any(c.label in r.published for r in table.rows) for c in table.columns}
    heads = [
        h for label, both in shown.items() for h in ([label, "published"] if both else [label])
    ]
    yield "| | " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * len(heads)
    for row in table.rows:
        cells = cells_of(table, row, results)
        texts = []
        for column in table.columns:
            texts.append(cells[column.label].text(column.decimals))
            if shown[column.label]:
                figure = row.published.get(column.label)
                texts.append("" if figure is None else f"{figure:.{column.decimals}f}")
        yield f"| {row.label} | " + " | ".join(texts) + " |"
    yield ""
    parts = {"report": "the report split", "choose": "the selection split", "all": "all rows"}
    source = f" Published: {table.source}." if table.source else ""
    yield from (f"Scores on {parts[table.part]}.{source}", "")
    for verdict in verdicts(table, results):
        yield f"- {verdict.sentence}"
    yield from ([""] if table.claims else [])


def _commands(found: Found, section: StudySection) -> Iterator[str]:
    if not section.steps:
        return
    missing = [step.name for step in section.steps if step.name not in found.results]
    if missing:
        yield f"Not run yet: {', '.join(missing)}. To run them:"
        yield from ("", "```bash", f"{found.command} --only {section.name}")
        yield from ("```", "")
    yield from ("<details><summary>Commands of this part</summary>", "", "```text")
    for step in section.steps:
        yield f"# {step.name}: {_state(step, found.results)}"
        yield from (f"mergeforget {command}" for command in found.study.commands(step))
    yield from ("```", "", "</details>", "")


def _state(step: StudyStep, results: Results) -> str:
    result = results.get(step.name)
    if result is None:
        return NOT_RUN
    state = "diverged" if result["state"] == "failed" else result["state"]
    return f"{state} in {duration(result['run']['seconds'])}"


def _circumstances(found: Found) -> Iterator[str]:
    """Return hardware, versions, commits and time of the runs."""
    yield from ("## Environment", "")
    if not found.results:
        yield "Nothing has been run yet."
        return
    runs = [result["run"] for result in found.results.values()]
    seconds = sum(run["seconds"] for run in runs)
    days = sorted({run["time"][:10] for run in runs})
    loads = [run["load"] for run in runs]
    yield from ("| | |", "|---|---|")
    for fact in [*FACTS, *sorted(_facts(runs) - {*FACTS, "commit"}), "commit"]:
        yield f"| {fact} | {', '.join(_values(runs, fact))} |"
    when = " to ".join(dict.fromkeys([days[0], days[-1]]))
    yield f"| time | {duration(seconds)} over all steps, {when} |"
    load = f"{min(loads):.1f} to {max(loads):.1f} processes, including others'"
    yield f"| load of the machine | {load} |"
    yield ""
    yield (
        "In the commands, `{here}` is the folder of the step, `{NAME}` the folder of another step, "
        "`{NAME.base}` the model before unlearning in that step, and `{data}` the folder of the "
        "data sets."
    )
    write = "`python -m benchmarks.study write` writes this document"
    yield f"`{found.command}` runs the missing steps; {write}"
    yield "from the results."


def _facts(runs: list[dict[str, Any]]) -> set[str]:
    return {key for run in runs for key in run} - {"time", "seconds", "load"}


def _values(runs: list[dict[str, Any]], fact: str) -> list[str]:
    """Return the different values of a fact, in order of appearance."""
    return list(dict.fromkeys(str(run[fact]) for run in runs if run.get(fact)))
