"""The pair of a request: its data are read and checked, and its adapters trained or taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from mergeforget.api.data_checks import check_rows, repeated_twins_note
from mergeforget.api.earlier import REQUEST, earlier_rows, folded_base, warn_of_another_base
from mergeforget.api.options import Settings
from mergeforget.api.own_answers import own_answers
from mergeforget.api.training import assignments_of
from mergeforget.api.unlearn_data import Forget, read_request, renamed, turns_of
from mergeforget.api.unlearn_request import UnlearnRequest, check_sources, run_of

if TYPE_CHECKING:
    from pathlib import Path

    from mergeforget.api.job import Job
    from mergeforget.recipe import Recipe
    from mergeforget.run import Run


def trained(
    asked: UnlearnRequest,
    job: Job,
    *,
    attacks: Sequence[str] = (),
    approve: Callable[[list[Any]], bool] | None = None,
    make_pair: Callable[[Recipe, Run], None] | None = None,
) -> tuple[Recipe, list[str]]:
    """Read the data of a request and train its pair; return the recipe and notes.

    Args:
        attacks: Attacks whose time is included in the estimate.
        make_pair: Writes the pair in the first call instead of a training.
    """
    from mergeforget.train.pair import train_pair

    run, request = job.run, asked.facts
    with run.lock():  # of two calls on a new folder, one reads its data
        run_of(run.root, asked.sources[0], request)  # another call may have begun meanwhile
        fresh = not run.recipe.exists()
        with _withdrawn(run, fresh), job.stage("data"):
            chosen, notes = _read_data(asked, job, attacks, approve, train=make_pair is None)
    with _withdrawn(run, fresh), job.stage("pair"):
        if make_pair is not None:
            make_pair(chosen, run)
        else:
            if asked.pair:
                _take_adapters(chosen, run, asked.pair)
            memorise = bool(request["memorise"])
            train_pair(chosen, run, memorise_first=memorise, resume=run.recipe.exists())
        notes += [*_bracket_notes(run), *_repeated_twins(run)]
    return chosen, notes


def _read_data(
    asked: UnlearnRequest,
    job: Job,
    attacks: Sequence[str],
    approve: Callable[[list[Any]], bool] | None,
    *,
    train: bool,
) -> tuple[Recipe, list[str]]:
    """Read the data of a request and save the rows; return the recipe and notes.

    Args:
        train: Whether the pair is trained, not made from adapters.
    """
    from mergeforget.recipe import change
    from mergeforget.train.run_rows import prepare

    run, request = job.run, asked.facts
    request["base"] = folded_base(run, request)
    approval = _asking(job, approve)
    chosen, notes = _prepare(run, request, asked.recipe, asked.settings, asked.sources, approval)
    job.expected = _expected(run, attacks)
    if len(asked.pair) == 1 and chosen.pair is not None:
        chosen = change(chosen, pair={"trajectory": "separate"})
    elif asked.pair:
        job.expected.pop("pair", None)
    if train and not run.recipe.exists():
        prepare(chosen, run)
    if run.state("unlearn-pair") != "done":
        _announce(job)
    return chosen, notes


def _prepare(
    run: Run,
    request: dict[str, Any],
    recipe: str | Path | Recipe,
    settings: Settings,
    sources: tuple[Forget, Any, Any],
    approve: Callable[[list[Any]], bool],
) -> tuple[Recipe, list[str]]:
    """Read and complete the data in the first call, check the base, and return the recipe."""
    from mergeforget.errors import UsageError
    from mergeforget.files import read_json_object, reading, write_json, write_jsonl
    from mergeforget.recipe import Recipe, change, load_recipe

    notes_file = run.root / "notes.json"
    folder = run.root / "request"  # with the names of columns that mergeforget uses
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, assignments_of(settings))
    check_sources(chosen, dict(zip(("forget", "retain", "holdout"), sources, strict=True)))
    turns = turns_of(chosen)
    chosen = change(chosen, model={"name": request["base"]})
    if not notes_file.exists():
        ask = partial(own_answers, chosen)
        rows = read_request(*sources, ask, turns, chosen.data.columns, earlier_rows(request))
        if rows.generated and not approve(rows.generated):
            raise UsageError("The generated rows were not approved; nothing was trained.")
        facts = check_rows(chosen, rows, request)
        for split in ("forget", "retain", "holdout"):
            own, path = renamed(getattr(rows, split), split), folder / f"{split}.jsonl"
            path.unlink(missing_ok=True)  # of an earlier call that failed
            if own:
                write_jsonl(path, [row.to_dict() for row in own])
        write_json(run.root / REQUEST, request)
        write_json(notes_file, {"notes": rows.notes + facts.pop("notes"), **facts})
    stored_notes = read_json_object(notes_file)
    data: dict[str, Any] = {n: str(folder / f"{n}.jsonl") for n in ("forget", "retain", "holdout")
            if (folder / f"{n}.jsonl").exists()} | {"columns": {}}  # fmt: skip
    with reading(notes_file):
        new_tokens = min(chosen.evaluation.max_new_tokens, int(stored_notes["answer_tokens"]) + 8)
        notes = [str(note) for note in stored_notes["notes"]]
    chosen = change(chosen, data=data, evaluation={"max_new_tokens": new_tokens})
    return chosen, notes


@contextmanager
def _withdrawn(run: Run, fresh: bool) -> Iterator[None]:
    """Withdraw a request that is refused before anything is trained.

    The same folder then takes a corrected request.

    Args:
        fresh: Whether this call began the run.
    """
    import shutil

    from mergeforget.errors import InputError, RecipeError, UsageError

    try:
        yield
    except (InputError, RecipeError, UsageError):
        if fresh and not any(path.exists() for path in (run.history, run.over, run.under)):
            for path in (run.root / REQUEST, run.root / "notes.json", run.recipe):
                path.unlink(missing_ok=True)
            shutil.rmtree(run.data, ignore_errors=True)
        raise


def _take_adapters(recipe: Recipe, run: Run, pair: dict[str, Path]) -> None:
    """Copy existing adapters into a run, as sides of its pair that are trained already."""
    import shutil

    from mergeforget.adapter import adapter_folder, read_adapter
    from mergeforget.data.templating import template_of
    from mergeforget.files import read_json_object, replacing, write_json
    from mergeforget.models import load_tokenizer
    from mergeforget.train.run_rows import prepare, record_template

    missing = {side: folder for side, folder in pair.items() if run.state(side) != "done"}
    if not missing:
        return
    for side, folder in missing.items():
        warn_of_another_base(folder, recipe.model.name)
        read_adapter(folder, side)
    with run.lock():
        prepare(recipe, run, resume=run.recipe.exists())
        tokenizer = load_tokenizer(recipe.model)
        record_template(run, tokenizer, template_of(tokenizer, recipe.data))
        for side, folder in missing.items():
            with replacing(run.root / side) as temporary:
                temporary.mkdir(parents=True)
                for path in adapter_folder(folder).iterdir():
                    if path.is_file() and path.name.startswith("adapter_"):
                        shutil.copy2(path, temporary)
                config = temporary / "adapter_config.json"
                named = {"base_model_name_or_path": recipe.model.name}
                write_json(config, read_json_object(config) | named)
            run.record(side, base=recipe.model.name, taken_from=str(folder))
            run.set_state(side, "done")


def _asking(job: Job, approve: Callable[[list[Any]], bool] | None) -> Callable[[list[Any]], bool]:
    """Return a function that hides the display and asks for approval; by default it approves."""

    def ask(rows: list[Any]) -> bool:
        if approve is None:
            return True
        with job.paused():
            return approve(rows)

    return ask


def _expected(run: Run, attacks: Sequence[str]) -> dict[str, float]:
    """Return the seconds that each stage is expected to take, as estimated from the data."""
    from mergeforget.files import read_json_object, reading

    path = run.root / "notes.json"
    facts = read_json_object(path)
    with reading(path):
        seconds_by_stage = {
            str(name): float(seconds) for name, seconds in facts.get("expected", {}).items()
        }
    together = sum(seconds_by_stage.get(name, 0.0) for name in attacks)
    return {
        name: seconds_by_stage[name] for name in ("pair", "search") if name in seconds_by_stage
    } | ({"attacks": together} if seconds_by_stage else {})


def _announce(job: Job) -> None:
    """State the expected time, and warn if training alone exceeds the time limit."""
    from mergeforget.console import duration, say

    if total := sum(job.expected.values()) - job.seconds.get("pair", 0.0):
        attacks = "" if job.expected.get("attacks") else " without attacks"
        say(f"Estimate: about {duration(max(0.0, total))}{attacks}.")
    training = job.expected.get("pair", 0.0) - job.seconds.get("pair", 0.0)
    if job.limit is not None and training > job.limit:
        say(
            f"Warning: training the pair is expected to take about {duration(training)}, more than "
            f"--time {duration(job.limit)}. It is completed; little of the search and no attack "
            "will follow. Repeat the call with more time to resume."
        )


def _repeated_twins(run: Run) -> list[str]:
    """Record that twins are no substitute for a holdout if the base repeats many of them.

    A base that memorised sentences repeats them with the twin's name, so a model that still knows
    the forget rows has an AUC of 0.5 against their twins.
    """
    from mergeforget.data.readers import read_rows
    from mergeforget.data.twins import stands_in
    from mergeforget.files import read_json_object, reading, write_json
    from mergeforget.train.fit import REPEATED

    ends = [run.root / "until" / f"{side}.json" for side in ("over", "under")]
    ended, holdout = [path for path in ends if path.is_file()], run.data / "holdout.jsonl"
    notes_file = run.root / "notes.json"
    stored_notes = read_json_object(notes_file)
    if not run.has_holdout:
        return []
    repeated = 0.0
    for path in ended:
        facts = read_json_object(path)
        with reading(path):
            repeated = max(repeated, float(facts.get("repeated_twins", 0.0)))
    known = stored_notes.get("membership") == "not measurable"
    if known or repeated <= REPEATED or not all(map(stands_in, read_rows(holdout))):
        return []
    note = repeated_twins_note(repeated)
    stored_notes["membership"] = "not measurable"
    stored_notes["notes"] = [*stored_notes.get("notes", []), note]
    write_json(notes_file, stored_notes)
    return [note]


def _bracket_notes(run: Run) -> list[str]:
    from mergeforget.train.run_rows import end_of

    end = end_of(run, "over")
    if not end or end["outcome"] == "reached":
        return []
    said = {
        "max_steps": "did not reach its condition. To train longer, raise "
        "pair.over.until.max_steps with --set, in another --out",
        "collapsed": "collapsed",
    }[end["outcome"]]
    return [f"The training of the pair {said}. Step {end['step']} is used."]
