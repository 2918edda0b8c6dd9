"""Attacks on the models of a run, or on any model, and where their results go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeforget.attack.methods import ATTACKS
from mergeforget.attack.result import Result, write_result
from mergeforget.attack.target import Models, Suspect, Target
from mergeforget.data.limit import limit_rows
from mergeforget.data.readers import check_overlap, read_rows
from mergeforget.data.schema import Row
from mergeforget.errors import InputError, UsageError, suggest
from mergeforget.evaluate.run_models import models_of
from mergeforget.recipe import ModelSpec, load_recipe
from mergeforget.run import Run

SPLITS = ("forget", "retain", "holdout")
CHOSEN = "chosen"
NEW_TOKENS = 64  # of an answer, where no recipe says


def carry_out(
    targets: Sequence[Target], names: Sequence[str], options: Mapping[str, Any]
) -> Iterator[tuple[Result, list[Result]]]:
    """Carry out attacks and keep their results as they come.

    Args:
        names: of the attacks.
        options: arguments by name; each attack gets those that it takes.

    Yields:
        A result, and every result of the same attack that is kept.
    """
    for name in names:
        entry = ATTACKS.get(name)
        arguments = {key: value for key, value in options.items() if key in entry.parameters}
        for target in targets:
            result = entry.fn(target, **arguments)
            yield result, write_result(target.folder, result)


def targets_of_run(
    run: Run,
    names: Sequence[str] = (),
    *,
    control: str | None = None,
    files: Mapping[str, Path | None] | None = None,
    limit: int | None = None,
    device: str | None = None,
    out: Path | None = None,
    **settings: Any,
) -> list[Target]:
    """The models of a run that are named, each beside the base and the control.

    Args:
        names: base, over, under, chosen, or a candidate; by default the chosen one.
        control: a model that never saw the data; by default the one from which the base was made
            by memorising, where the run knows it.
        files: data files instead of the run's own, by split.
        limit: rows of each split at most, whole documents.
        out: where results go; by default into the run.
        settings: fields of Target.

    Raises:
        InputError: the run has no such model, or nothing was chosen.
    """
    recipe = load_recipe(run.recipe)
    base = Suspect("before", run.base(), name="the base")
    suspects = [_suspect(run, name) for name in names or [CHOSEN]]
    never = control or _never_trained(run)
    own = {split: run.data / f"{split}.jsonl" for split in SPLITS}
    chosen = {split: path for split, path in (files or {}).items() if path is not None}
    rows = read_splits(own | chosen, limit, recipe.search.seed)
    models = Models(recipe.model, device)
    spec = recipe.evaluation
    own_settings = {"max_new_tokens": spec.max_new_tokens, "membership": spec.membership}
    settings = {**own_settings, "data": recipe.data, **settings}
    return [
        Target(
            models,
            suspect,
            base if suspect.role != "base" else None,
            Suspect("control", never, name=never) if never else None,
            **rows,
            folder=out or run.attacks,
            **settings,
        )
        for suspect in suspects
    ]


def target_of_model(
    model: str,
    *,
    files: Mapping[str, Path | None],
    adapter: Path | None = None,
    before: str | None = None,
    control: str | None = None,
    limit: int | None = None,
    device: str | None = None,
    out: Path | None = None,
    **settings: Any,
) -> Target:
    """Any model, with an adapter or without, and data files.

    Args:
        before: the model before unlearning, where it is at hand.
        out: where results go; by default ``attacks`` in the working folder.

    Raises:
        UsageError: no forget rows are named.
    """
    if files.get("forget") is None:
        raise UsageError("--model needs --forget: the rows that were to be forgotten.")
    name = adapter.name if adapter else Path(model).name
    rows = read_splits(files, limit, settings.get("seed", 0))
    return Target(
        Models(ModelSpec(name=model), device),
        Suspect(name, model, adapter, name),
        Suspect("before", before, name=before) if before else None,
        Suspect("control", control, name=control) if control else None,
        **rows,
        folder=out or Path("attacks"),
        **{"max_new_tokens": NEW_TOKENS} | settings,
    )


def read_splits(files: Mapping[str, Path | None], limit: int | None, seed: int) -> dict[str, Any]:
    """Rows of each split; none where there is no file, or an empty one.

    Raises:
        InputError: there is nothing to forget, or holdout rows were trained on.
    """
    found: dict[str, list[Row]] = {}
    for split in SPLITS:
        path = files.get(split)
        there = path is not None and (not path.exists() or path.stat().st_size > 0)
        rows = read_rows(path, split=split) if path is not None and there else []
        found[split] = limit_rows(rows, limit, seed)[0] if rows else []
    check_overlap(found, files)
    return found


def _suspect(run: Run, name: str) -> Suspect:
    known = models_of(run)
    if name == CHOSEN:
        chosen = run.chosen_name()
        if chosen is None:
            raise InputError(
                f"{run.root} has no chosen candidate. Choose one with `mergeforget search "
                f"{run.root}`, or name a model with --run-model: {', '.join(known)}."
            )
        name = chosen
    if name not in known:
        raise InputError(
            f"{run.root} has no model {name!r}.{suggest(name, known)} It has: {', '.join(known)}."
        )
    return Suspect(name, run.base(), known[name], name)


def _never_trained(run: Run) -> str | None:
    """The model that the base was before it memorised the data, where that was done here."""
    base = run.read_manifest().get("base") or {}
    return str(base["name"]) if base.get("memorised") and base.get("name") else None
