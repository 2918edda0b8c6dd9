"""The report: one self-contained HTML file.

Texts of the data are escaped, and the content policy allows no request and no script but the
page's own (by hash). Tables and figures work without scripts.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mergeforget.analysis.answers import compare_answers
from mergeforget.analysis.evidence import (
    Chosen,
    MissingError,
    read_candidates,
    read_chosen,
    run_scores,
)
from mergeforget.analysis.findings import Finding, analyse_all
from mergeforget.analysis.people import (
    PersonRecord,
    base_name,
    run_people,
    summary_of,
    write_people,
)
from mergeforget.analysis.tables import (
    cards_of,
    cell_of,
    label_of,
    lines_of,
    measures_of,
    shown_measures,
)
from mergeforget.analysis.verification import write_evidence
from mergeforget.errors import InputError, suggest
from mergeforget.files import read_json, sha256, write_text
from mergeforget.parsing import read_text
from mergeforget.recipe import load_recipe
from mergeforget.run import PAIR, Run, open_run, versions
from mergeforget.score import Score, find, read_scores

FOLDER = Path(__file__).parent
QUESTIONS = 9  # of each split
OPEN = 8  # figures of an analysis that are shown at once; more wait behind a summary
UNITS = {
    "documents": "whole documents",
    "rows": "rows, prompt and answer together",
    "answers": "answers, given their prompts",
}


def write_report(run: Run, path: Path | None = None) -> Path:
    """Analyse a run and write its page; ``evidence.json`` and the tables lie in ``RUN/report``.

    Returns:
        The page's path, ``RUN/report/index.html`` where none was given.
    """
    path = path or run.report
    findings = analyse_all(run, run.analysis)
    try:
        people = run_people(run)
    except MissingError:
        people = []
    write_text(path, render("report.html", context_of(run, findings, people)))
    if people:
        write_people(run, run.report.parent, people)
        write_evidence(run, run.report.parent / "evidence.json", people)
    return path


def context_of(
    run: Run, findings: list[Finding], people: Sequence[PersonRecord] = ()
) -> dict[str, Any]:
    """Return everything the page shows, as plain values."""
    chosen = read_chosen(run)
    comparisons = compare_answers(run, QUESTIONS)
    return {
        "title": f"mergeforget: {run.name}",
        "run": run.name,
        "chosen": chosen,
        "base_name": base_name(run),
        "summary": summary_of(run, people) if people else None,
        "people": people,
        "unchosen": _unchosen(run) if chosen is None else "",
        "findings": [
            (f, [image_of(run.analysis, g) for g in f.figures]) for f in findings if not f.missing
        ],
        "missing": [f"{f.title}: {f.missing}" for f in findings if f.missing],
        "comparisons": [
            (split, [c for c in comparisons if c.row.split == split])
            for split in dict.fromkeys(c.row.split for c in comparisons)
        ],
        "no_answers": _no_answers(run),
        "limits": limits_of(run, chosen),
        "open_figures": OPEN,
        **scores_of(run, chosen),
        **facts_of(run, chosen),
    }


def scores_of(run: Run, chosen: Chosen | None) -> dict[str, Any]:
    """Cards and table; empty, with the reason, before anything was scored."""
    try:
        scores = run_scores(run)
    except MissingError as missing:
        return {"cards": [], "lines": [], "labels": [], "no_scores": str(missing), "halves": False}
    name = chosen.name if chosen else ""
    lines = lines_of(scores, read_candidates(run, list(scores)), name)
    return {
        "cards": cards_of(scores, name) if name in scores else [],
        "lines": lines,
        "labels": [label_of(m, scores) for m in shown_measures(scores)],
        "no_scores": "",
        "halves": any(c.choose is not None for line in lines for c in line.cells),
    }


def facts_of(run: Run, chosen: Chosen | None) -> dict[str, Any]:
    """Recipe, versions, what each stage was run with, hashes of what came out."""
    manifest = run.read_manifest()
    folders = [run.root / side for side in PAIR]
    folders += [run.candidates / chosen.name] if chosen else []
    hashes = {p.name: sha256(p) for p in folders if (p / "adapter_model.safetensors").is_file()}
    return {
        "recipe": read_text(run.recipe),
        "versions": manifest.get("versions") or versions(),
        "machine": manifest.get("machine") or {},
        "base": flat(manifest.get("base") or {}),
        "stages": {name: flat(facts) for name, facts in (manifest.get("stages") or {}).items()},
        "hashes": hashes,
    }


def limits_of(run: Run, chosen: Chosen | None) -> list[str]:
    """Return what the scores do not show."""
    found = [
        f"The MIA AUC is that of one attack, on the loss of {UNITS[_unit(run)]}. Another attack "
        "may tell members from non-members where this one does not.",
        "The answers to the questions of the data are greedy. A paraphrase, a prefix or sampling "
        "may bring out more; `mergeforget attack` tries them.",
        "Fine-tuning hides knowledge rather than erasing it: a few training steps on related text "
        "may bring it back. A report is no proof of deletion.",
    ]
    if chosen:
        found.insert(0, _how_many(run, chosen))
    return [*_collapsed(run), *(text for text in found if text)]


def _collapsed(run: Run) -> list[str]:
    """A sentence for each training that stopped because the model collapsed."""
    stages = read_json(run.status) if run.status.is_file() else {}
    return [
        f"The training of {stage} collapsed: step {facts['step']}, the last before the retain loss "
        "passed its threshold, is kept."
        for stage, facts in stages.items()
        if facts.get("outcome") == "collapsed"
    ]


def _unit(run: Run) -> str:
    return load_recipe(run.recipe).evaluation.membership


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as one level, keys joined by dots; a list is one line.

    The home folder becomes ``~``: a page that is passed on need not tell whose it was.
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            found |= flat({str(i): v for i, v in enumerate(value)}, f"{prefix}{key}.")
        else:
            joined = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            found[prefix + str(key)] = joined.replace(str(Path.home()), "~")
    return found


def image_of(folder: Path, figure: dict[str, Any]) -> dict[str, Any]:
    """A figure with its picture inlined as a data address."""
    svg = (folder / f"{figure['name']}.svg").read_bytes()
    data = base64.b64encode(svg).decode("ascii")
    return figure | {"src": f"data:image/svg+xml;base64,{data}"}


def render(template: str, context: dict[str, Any]) -> str:
    """Fill a template of this folder; everything but its own style and script is escaped."""
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template(template)
    own = {"style": Markup(style), "script": Markup(script), "script_sha256": digest}
    return page.render(own | context)


def _unchosen(run: Run) -> str:
    return f"No candidate is chosen yet. `mergeforget search {run.root}` chooses one."


def _no_answers(run: Run) -> str:
    return (
        f"No answers are stored. `mergeforget evaluate {run.root}` asks every model the questions "
        "of the forget and the retain set."
    )


def _how_many(run: Run, chosen: Chosen) -> str:
    """Say on how much data the AUC of the chosen candidate rests."""
    try:
        scores = run_scores(run).get(chosen.name, [])
    except MissingError:
        return ""
    parts = {"report": "the report split", "all": "all data"}
    shown = [find(scores, "mia_auc", "mia", part=part) for part in parts]
    score = next((s for s in shown if s), None)
    if score is None:
        return ""
    span = f", 95 % CI {score.interval[0]:.2f} to {score.interval[1]:.2f}" if score.interval else ""
    return (
        f"The MIA AUC is computed on {score.n} documents ({parts[score.part]}){span}. A candidate "
        "within that interval of another is not shown to be better."
    )


def compare(
    folders: Sequence[Path], model: str | None = None, part: str = "all"
) -> dict[str, list[Score]]:
    """Scores of one model of each run, by ``RUN: MODEL``.

    Args:
        model: base, over, under or a candidate; None takes each run's chosen candidate.

    Raises:
        InputError: a run has no such scores; the message names those it has.
    """
    found = {}
    for folder in folders:
        run = open_run(folder)
        scores = read_scores(run.scores, part)
        name = model or _chosen(run)
        if name not in scores:
            known = ", ".join(scores) or "none"
            raise InputError(
                f"{folder} has no scores of {name!r} (part {part}).{suggest(name, scores)} It has "
                f"scores of: {known}. `mergeforget evaluate {folder}` measures its models."
            )
        found[f"{_title(folder, folders)}: {name}"] = scores[name]
    return found


def _chosen(run: Run) -> str:
    name = run.chosen_name()
    if name is None:
        raise InputError(
            f"{run.root} has no chosen candidate. Choose one with `mergeforget search {run.root}`, "
            "or name a model with --run-model, for example --run-model over."
        )
    return name


def _title(folder: Path, folders: Sequence[Path]) -> str:
    """The run's name; its path where two runs have the same name."""
    same = [f for f in folders if f.name == folder.name]
    return folder.name if len(same) == 1 else str(folder)


def write_comparison(scores: Mapping[str, list[Score]], path: Path) -> None:
    """Write a page with a row a model and a column a score.

    Args:
        scores: by the name of the model, for example ``RUN: MODEL``, on one part of the data each.
    """
    measures = measures_of(dict(scores))
    rows = [(name, [cell_of(every, m) for m in measures]) for name, every in scores.items()]
    context = {"title": "mergeforget: comparison", "labels": map(label_of, measures), "rows": rows}
    write_text(path, render("comparison.html", context))
