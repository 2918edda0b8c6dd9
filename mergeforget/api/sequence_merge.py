"""The merge at the end of a sequence of requests: trainings without a search, and their sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeforget.api.earlier import REQUEST, revealed
from mergeforget.api.job import Job
from mergeforget.api.unlearn_pair import trained
from mergeforget.api.unlearn_request import request_of, run_of

if TYPE_CHECKING:
    from mergeforget.data.schema import Row
    from mergeforget.evaluate.verdict_figures import EarlierAnswers
    from mergeforget.recipe import Recipe
    from mergeforget.run import Run

SOURCES = ("forget", "retain", "holdout")


def train_only(
    model: str | Path,
    runs: Sequence[Path],
    place: int,
    sources: dict[str, Any],
    start: dict[str, Any],
    common: dict[str, Any],
) -> dict[Path, EarlierAnswers]:
    """Train the pair of a request from the mean of the earlier pairs.

    Returns:
        The answers of this and of earlier requests that the mean of its pair reveals.
    """
    from mergeforget.api.merging import merge_full
    from mergeforget.attack.headline import read_earlier
    from mergeforget.files import write_json
    from mergeforget.models import load_model
    from mergeforget.recipe import load_recipe
    from mergeforget.run import Run

    root = runs[place]
    if place:
        model, start = runs[place - 1] / "mean", {"adapter": None, "after": None}
    asked = request_of(model, **sources, memorise=False, **start, **common)
    run = run_of(root, sources["forget"], asked.facts)
    job = Job(run, None)
    with job.shown():
        chosen, _ = trained(asked, job)
    mean, path = root / "mean", root / "revealed.json"
    if not (mean / "config.json").is_file():
        merge_full([run.over, run.under], mean, method="linear", weights=[0.5, 0.5], space="delta",
                   base=run.base())  # fmt: skip
    if not path.is_file():
        loaded = load_model(load_recipe(run.recipe).model.model_copy(update={"name": str(mean)}))
        found = {str(r): revealed(loaded, chosen, Run(r)) for r in runs[: place + 1]}
        write_json(path, {name: one.to_dict() for name, one in found.items()})
    return {Path(name): one for name, one in (read_earlier(path) or {}).items()}


def combine(
    model: str | Path,
    root: Path,
    runs: Sequence[Path],
    files: Sequence[dict[str, Path]],
    first: dict[str, Any],
    common: dict[str, Any],
) -> dict[str, Any]:
    """Write the run of the merge at the end: summed adapters, and the rows of all requests.

    Returns:
        The sources of the run.
    """
    from mergeforget.data.readers import read_rows
    from mergeforget.files import write_jsonl

    folder, sources = root / "requests", dict[str, Any]()
    for split in SOURCES:
        paths = [one[split] for one in files if split in one]
        sources[split] = folder / f"merged.{split}.jsonl" if paths else None
        if paths and not sources[split].exists():
            row_sets = [read_rows(path, split=split) for path in paths]
            write_jsonl(sources[split], [row.to_dict() for row in joined(row_sets)])
    asked = request_of(model, **sources, memorise=False, **first, **common)
    run = run_of(root / "merged", sources["forget"], asked.facts)
    if run.state("under") != "done":
        trained(asked, Job(run, None), make_pair=lambda recipe, into: _sum(recipe, into, runs))
    return sources


def joined(sets: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the rows of several sets, each document once, with distinct ids.

    If two sets use one id for different rows, ids and subjects get the number of the set.
    """
    by_id: dict[str, Row] = {}
    clash = False
    for rows in sets:
        for row in rows:
            known = by_id.setdefault(row.id, row)
            clash = clash or known.document != row.document
    if not clash:
        return list(by_id.values())
    distinct: dict[str, Row] = {}
    for place, rows in enumerate(sets, 1):
        for row in rows:
            new = replace(row, id=f"{place}-{row.id}", subject=f"{place}-{row.subject}")
            distinct.setdefault(row.document, new)
    return list(distinct.values())


def _sum(recipe: Recipe, run: Run, runs: Sequence[Path]) -> None:
    """Write the pair of the merge at the end: the sums of the adapters of each side."""
    from mergeforget.api.merging import merge
    from mergeforget.data.templating import template_of
    from mergeforget.files import read_json_object, write_json
    from mergeforget.models import load_tokenizer
    from mergeforget.run import PAIR
    from mergeforget.train.run_rows import prepare, record_template

    prepare(recipe, run)
    request = read_json_object(run.root / REQUEST)
    write_json(run.root / REQUEST, request | {"parts": [str(one) for one in runs]})
    tokenizer = load_tokenizer(recipe.model)
    record_template(run, tokenizer, template_of(tokenizer, recipe.data))
    for side in PAIR:
        merge([one / side for one in runs], method="cat", same_base=True, out=run.root / side)
        run.record(side, base=recipe.model.name, sum_of=[str(one) for one in runs])
        run.set_state(side, "done")
