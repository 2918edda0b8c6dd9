"""The report: one self-contained HTML file.

Texts of the data are escaped. The content security policy allows no request and only the page's own
script (by hash). Tables and figures work without scripts.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mergeforget.analysis.evidence import (
    Chosen,
    MissingError,
    read_candidates,
    read_chosen,
    run_scores,
)
from mergeforget.analysis.findings import Finding, analyse_all
from mergeforget.analysis.people import PersonRecord, base_name, run_people, write_people
from mergeforget.analysis.sections import compare_answers, summary_of
from mergeforget.analysis.tables import (
    cards_of,
    cell_of,
    label_of,
    lines_of,
    measures_of,
    shown_measures,
)
from mergeforget.analysis.verification import write_evidence
from mergeforget.data.readers import read_rows
from mergeforget.data.twins import stands_in
from mergeforget.errors import InputError, suggest
from mergeforget.evaluate.paired import PairedDifference, paired_differences
from mergeforget.files import sha256, write_text
from mergeforget.parsing import read_text
from mergeforget.recipe import load_recipe
from mergeforget.run import PAIR, Run, open_run, versions
from mergeforget.score import Score, find, read_scores

FOLDER = Path(__file__).parent
QUESTIONS = 9  # shown questions per split
OPEN = 8  # figures of an analysis that are shown at once; the others are collapsed
UNITS = {
    "documents": "whole documents",
    "rows": "rows, prompt and answer together",
    "answers": "answers, given their prompts",
}


def write_report(run: Run, path: Path | None = None) -> Path:
    """Analyse a run and write its page, and ``evidence.json`` and tables to ``RUN/report``.

    Returns:
        Path of the page; ``RUN/report/index.html`` by default.
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
    """Return the values shown on the page."""
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
    """Return the cards and the table of scores; empty, with the reason, before an evaluation."""
    try:
        scores = run_scores(run)
    except MissingError as missing:
        return {"cards": [], "lines": [], "labels": [], "no_scores": str(missing),
                "has_splits": False, "has_density": False}  # fmt: skip
    name = chosen.name if chosen else ""
    lines = lines_of(scores, read_candidates(run, list(scores)), name)
    return {
        "cards": cards_of(scores, name) if name in scores else [],
        "lines": lines,
        "labels": [label_of(m, scores) for m in shown_measures(scores)],
        "no_scores": "",
        "has_density": any(line.densities for line in lines),
        "has_splits": any(c.choose is not None for line in lines for c in line.cells),
    }


def facts_of(run: Run, chosen: Chosen | None) -> dict[str, Any]:
    """Return recipe, versions, settings of each stage, and hashes of the results."""
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
    """Return the limits of the scores, one sentence each."""
    limits = [
        f"The MIA AUC is that of one attack, which uses the loss of {UNITS[_unit(run)]}. Another "
        "attack may distinguish members from non-members better.",
        "Answers are generated greedily. A paraphrase, a prefix or sampling may reveal more; "
        "`mergeforget attack` tries them.",
        "Fine-tuning hides knowledge rather than erasing it: a few training steps on related text "
        "may recover it. A report does not prove deletion.",
    ]
    if chosen:
        limits.insert(0, _how_many(run, chosen))
    return [*_collapsed(run), *_made_up(run), *(text for text in limits if text)]


def _made_up(run: Run) -> list[str]:
    """Return a sentence if some of the rows that were never trained on are perturbed twins."""
    rows = read_rows(run.data / "holdout.jsonl") if run.has_holdout else []
    twins = sum(map(stands_in, rows))
    real = "" if twins == len(rows) else f" {twins} of"
    return [
        f"For membership inference,{real} the {len(rows)} rows that were never trained on are "
        "perturbed twins: made-up rows with the wording of given ones and other names and numbers."
    ] if twins else []  # fmt: skip


def _collapsed(run: Run) -> list[str]:
    """Return a sentence for each training that stopped because the model collapsed."""
    return [
        f"The training of {stage} collapsed. The adapter is that of step {facts.get('step')}, the "
        "last one before the retain loss exceeded its threshold."
        for stage, facts in run.read_status().items()
        if facts.get("outcome") == "collapsed"
    ]


def _unit(run: Run) -> str:
    return load_recipe(run.recipe).evaluation.membership


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested values, with keys joined by dots and lists joined to one line.

    The home folder is replaced by ``~``, so that a shared page does not contain the user name.
    """
    lines: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            lines |= flat({str(i): v for i, v in enumerate(value)}, f"{prefix}{key}.")
        else:
            joined = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines[prefix + str(key)] = joined.replace(str(Path.home()), "~")
    return lines


def image_of(folder: Path, figure: dict[str, Any]) -> dict[str, Any]:
    """Return a figure with its image embedded as a data URI."""
    svg = (folder / f"{figure['name']}.svg").read_bytes()
    data = base64.b64encode(svg).decode("ascii")
    return figure | {"src": f"data:image/svg+xml;base64,{data}"}


def render(template: str, context: dict[str, Any]) -> str:
    """Render a template of this folder; everything except its style and script is escaped."""
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
        f"No answers are stored. `mergeforget evaluate {run.root}` generates the answers of every "
        "model to the forget and retain rows."
    )


def _how_many(run: Run, chosen: Chosen) -> str:
    """Return a sentence about the number of documents behind the AUC of the chosen candidate."""
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
        f"The MIA AUC is computed on {score.n} documents ({parts[score.part]}){span}. Candidates "
        "whose AUC is within this interval are not shown to differ."
    )


def compare(
    folders: Sequence[Path], model: str | None = None, part: str = "all"
) -> dict[str, list[Score]]:
    """Return the scores of one model of each run, by ``RUN: MODEL``.

    Args:
        model: base, over, under or a candidate; None selects each run's chosen candidate.

    Raises:
        InputError: A run has no such scores; the message names the existing ones.
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


def compare_rows(
    folders: Sequence[Path], model: str | None = None
) -> dict[str, list[PairedDifference]]:
    """Return the differences of each run's model from that of the first run, on common rows.

    Args:
        model: As for ``compare``.

    Returns:
        Differences by ``RUN: MODEL``; a run that shares no answered row with the first has none.
    """
    paths = {}
    for folder in folders:
        run = open_run(folder)
        name = model or _chosen(run)
        paths[f"{_title(folder, folders)}: {name}"] = run.answers / f"{name}.jsonl"
    first, *others = paths
    found = {name: paired_differences(paths[name], paths[first]) for name in others}
    return {name: differences for name, differences in found.items() if differences}


def _chosen(run: Run) -> str:
    name = run.chosen_name()
    if name is None:
        raise InputError(
            f"{run.root} has no chosen candidate. Choose one with `mergeforget search {run.root}`, "
            "or name a model with --run-model, for example --run-model over."
        )
    return name


def _title(folder: Path, folders: Sequence[Path]) -> str:
    """Return the name of the run, or its path if two runs have the same name."""
    same = [f for f in folders if f.name == folder.name]
    return folder.name if len(same) == 1 else str(folder)


def write_comparison(
    scores: Mapping[str, list[Score]],
    path: Path,
    differences: Mapping[str, Sequence[PairedDifference]] = {},
) -> None:
    """Write a page with a row per model and a column per score.

    Args:
        scores: Scores by the name of the model, for example ``RUN: MODEL``.
        differences: Differences of the other models from the first one.
    """
    measures = measures_of(dict(scores))
    rows = [(name, [cell_of(every, m) for m in measures]) for name, every in scores.items()]
    context = {
        "title": "mergeforget: comparison",
        "labels": [label_of(measure) for measure in measures],
        "rows": rows,
        "first": next(iter(scores)),
        "differences": differences,
        "label": label_of,
    }
    write_text(path, render("comparison.html", context))
