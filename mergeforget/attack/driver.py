"""Attacks on the models of a run, or on any model, and where their results go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeforget.attack.headline import keep_verdict, measure_control
from mergeforget.attack.methods import ATTACKS
from mergeforget.attack.result import Result, write_result
from mergeforget.attack.target import Models, NotApplicableError, Suspect, Target
from mergeforget.attack.tuning import train_control
from mergeforget.data.readers import check_overlap, read_rows
from mergeforget.data.schema import Row
from mergeforget.data.templating import template_of
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import InputError, UsageError, suggest
from mergeforget.evaluate.run_models import models_of
from mergeforget.recipe import DataSpec, ModelSpec, load_recipe
from mergeforget.run import Run

SPLITS = ("forget", "retain", "holdout")
CHOSEN = "chosen"
NEW_TOKENS = 64  # of an answer, where no recipe says
ORDER = (  # the cheapest attacks first
    "exposure", "logit_lens", "multiple_choice", "prompts", "formats", "in_context", "translation",
    "neighbours", "own_paraphrase", "quantise", "nf4", "probe", "sampling", "relearn",
    "relearn_unrelated",
)  # fmt: skip
QUICK_ROWS = 24  # of each split: with the arguments below the cost does not grow with the data
QUICK: dict[str, dict[str, Any]] = {  # attacks of the quick set and their arguments
    "exposure": {"candidates": 7},
    "logit_lens": {"layers": 4},
    "prompts": {"kinds": ["plain", "prefix"], "words": [1]},
    "formats": {"formats": ["chat", "completion", "fill-in", "json"]},
    "in_context": {},
    "quantise": {"bits": [4]},
    "sampling": {"samples": 8},
    "relearn": {"steps": 40},
}


def attack_names(names: Sequence[str] = (), *, quick: bool = False) -> list[str]:
    """Names of the attacks to carry out, the cheapest first.

    Args:
        names: attacks asked for; none, or ``all``, is every attack, or the quick set.
    """
    every = list(QUICK) if quick else ATTACKS.names()
    wanted = [ATTACKS.get(name).name for name in names if name != "all"]
    chosen = wanted if wanted and "all" not in names else every
    rank = {name: place for place, name in enumerate(ORDER)}
    return sorted(dict.fromkeys(chosen), key=lambda name: rank.get(name, len(rank)))


def carry_out(
    targets: Sequence[Target],
    names: Sequence[str],
    options: Mapping[str, Any],
    *,
    quick: bool = False,
) -> Iterator[tuple[Result, list[Result]]]:
    """Carry out attacks and keep their results as they come.

    The control of a run is first asked the questions of the data, since the verdict compares with
    it.

    An attack that does not apply to the data or the model is reported as ``no power`` where others
    are carried out as well. The verdict over all results of a model is kept, too.

    Args:
        names: of the attacks.
        options: arguments by name; each attack gets those that it takes.
        quick: use the arguments of the quick set, where ``options`` do not say otherwise.

    Yields:
        A result, and every result of the same attack that is kept.
    """
    for target in targets[:1]:
        if target.run is not None:
            measure_control(target)
    for name in names:
        entry = ATTACKS.get(name)
        given = (QUICK.get(name, {}) if quick else {}) | dict(options)
        arguments = {key: value for key, value in given.items() if key in entry.parameters}
        for target in targets:
            try:
                result = entry.fn(target, **arguments)
            except NotApplicableError as error:
                if len(names) == 1:
                    raise
                result = Result(name, target.suspect.role, "no power", f"Not tried: {error}", [])
            weights = target.models.facts(target.suspect)["adapter"]
            result = replace(result, settings=result.settings | {"weights": weights})
            every = write_result(target.folder, result)
            keep_verdict(target.folder, target.suspect.role, target.run)
            yield result, every


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
        control: a model that never saw the data. By default the model from which the base was
            made by memorising, where the run knows it, with a LoRA that is trained here on the
            retain rows alone.
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
    own = {split: run.data / f"{split}.jsonl" for split in SPLITS}
    chosen = {split: path for split, path in (files or {}).items() if path is not None}
    rows = read_splits(own | chosen, limit, recipe.search.seed)
    models = Models(recipe.model, device)
    folder = out or run.attacks
    never = Suspect("control", control, name=control) if control else (
        _control_of(run, models, rows["retain"], recipe.data)
    )  # fmt: skip
    spec = recipe.evaluation
    own_settings = {"max_new_tokens": spec.max_new_tokens, "membership": spec.membership}
    settings = {**own_settings, "data": recipe.data, **settings}
    return [
        Target(
            models,
            suspect,
            base if suspect.role != "base" else None,
            never,
            **rows,
            folder=folder,
            run=run,
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


def _control_of(run: Run, models: Models, retain: Sequence[Row], data: DataSpec) -> Suspect | None:
    """The model before it memorised the data, tuned on retain; None where that is not known."""
    base = run.read_manifest().get("base") or {}
    if not (base.get("memorised") and base.get("name")):
        return None
    never = Suspect("control", str(base["name"]), name=str(base["name"]))
    if not retain:
        return never
    facts = models.facts(never) | {
        "rows": [row.to_dict() for row in retain], "data": [data.template, data.system_prompt],
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    place = run.attacks / "control" / digest
    if not (place / "adapter_config.json").is_file():
        with models.opened(never) as (model, tokenizer):
            template = template_of(tokenizer, data)
            train_control(model, tokenizer, retain, place, template=template)
    return replace(never, adapter=place, name=f"{never.base}, trained on the retain rows alone")
