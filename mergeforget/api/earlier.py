"""Earlier results: the base that a request starts from, and the rows that it tests again."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeforget.api.results import UnlearningRun

if TYPE_CHECKING:
    from mergeforget.data.schema import Answer, Row
    from mergeforget.evaluate.verdict_figures import EarlierAnswers
    from mergeforget.metrics._patterns import Patterns
    from mergeforget.recipe import Recipe
    from mergeforget.run import Run

REQUEST = "request.json"  # file of the run folder with the request


def folded_base(run: Run, request: dict[str, Any]) -> str:
    """Return the model to unlearn from, after merging an adapter or an earlier result into it."""
    from mergeforget.api.merging import merge_full
    from mergeforget.errors import UsageError
    from mergeforget.run import open_run

    adapter, after = request["adapter"], request["after"]
    if adapter is None and after is None:
        return str(request["model"])
    if adapter is not None and after is not None:
        raise UsageError("Give --adapter or --after, not both.")
    base, source = request["model"], adapter
    if after is not None:
        earlier = open_run(Path(after))
        _check_model(str(request["model"]), earlier)
        base, source = earlier.base(), str(_chosen_of(earlier))
    else:
        warn_of_another_base(Path(adapter), str(base))
    folder = run.root / "base"
    if not (folder / "config.json").is_file():
        merge_full([source], folder, method="linear", weights=[1.0], space="delta", base=base)
    return str(folder)


def start_of(adapter: str | Path | None, after: str | Path | None) -> str | None:
    """Return a hash of what is merged into the model first; None if nothing is.

    It changes if the adapter is replaced, or if a search of the earlier run chooses another merge.
    """
    from mergeforget.model_files import content_of
    from mergeforget.run import open_run

    if adapter is not None and after is None and Path(adapter).is_dir():
        return content_of(Path(adapter))
    return content_of(_chosen_of(open_run(Path(after)))) if after is not None else None


def _chosen_of(earlier: Run) -> Path:
    """Return the folder of the merge that an earlier run chose."""
    from mergeforget.errors import InputError

    chosen = UnlearningRun(earlier).chosen
    if chosen is None:
        raise InputError(f"{earlier.root} has no chosen merge. Finish that run first.")
    return earlier.candidates / chosen


def _check_model(model: str, earlier: Run) -> None:
    """Raise InputError if an earlier run unlearned from another model than the one that is named.

    The result would be that of the earlier run's model under the name of the other one.
    """
    from mergeforget.errors import InputError
    from mergeforget.files import read_json_object

    path = earlier.root / REQUEST
    request = read_json_object(path) if path.exists() else {}
    manifest = earlier.read_manifest().get("base") or {}
    known = [str(n) for n in (request.get("model"), manifest.get("name"), earlier.base()) if n]
    if model not in known and not any(_same_folder(model, name) for name in known):
        raise InputError(
            f"{earlier.root} unlearned from {known[0]}, not from {model}. Its result is the model "
            f"to start from: name {known[0]}."
        )


def _same_folder(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other)


def warn_of_another_base(adapter: Path, base: str) -> None:
    """Warn if an adapter names another base than the model that it is merged into."""
    from mergeforget.console import say
    from mergeforget.files import read_json_object

    path = adapter / "adapter_config.json"
    named = (
        str(read_json_object(path).get("base_model_name_or_path") or "") if path.exists() else ""
    )
    if named and Path(named).name != Path(base).name:
        say(
            f"Warning: the adapter {adapter} was trained on {named}, and is merged into {base}. If "
            "these are not the same model, the result is not what was trained."
        )


def recheck(run: Run, recipe: Recipe, chosen: str) -> dict[str, EarlierAnswers]:
    """Test a result again on the forget rows of all earlier requests.

    The answers are written to ``earlier.json``, which the verdict reads, and reused as long as the
    chosen merge stays the same.

    Returns:
        The revealed answers of each earlier request, by its run folder; see :func:`revealed`.
    """
    from mergeforget.adapter import read_adapter
    from mergeforget.attack.headline import EARLIER, read_earlier
    from mergeforget.files import write_json
    from mergeforget.merge.apply import applied
    from mergeforget.model_files import content_of
    from mergeforget.models import load_model

    earlier, path = earlier_runs(run), run.root / EARLIER
    weights = content_of(run.candidates / chosen)
    if run.read_status().get("recheck", {}).get("weights") == weights:
        if (stored := read_earlier(path)) is not None:
            return stored
    answers: dict[str, EarlierAnswers] = {}
    if earlier:
        loaded = load_model(recipe.model.model_copy(update={"name": run.base()}))
        with applied(loaded.model, read_adapter(run.candidates / chosen, chosen)):
            answers = {str(one.root): revealed(loaded, recipe, one) for one in earlier}
    write_json(path, {name: one.to_dict() for name, one in answers.items()})
    run.set_state("recheck", "done", weights=weights)
    return answers


def earlier_runs(run: Run) -> list[Run]:
    """Return the runs whose results a run started from, the latest first.

    Raises:
        InputError: ``request.json`` names no run.
    """
    from mergeforget.files import read_json_object

    path = run.root / REQUEST
    return _runs_before(read_json_object(path), path)


def earlier_rows(request: dict[str, Any]) -> list[Row]:
    """Return the forget rows of the runs whose results a request starts from."""
    from mergeforget.data.readers import read_rows

    paths = (one.data / "forget.jsonl" for one in _runs_before(request, Path(REQUEST)))
    return [row for path in paths if path.is_file() for row in read_rows(path, split="forget")]


def _runs_before(request: dict[str, Any], path: Path) -> list[Run]:
    """Return the runs that a request names, and those that these started from."""
    from mergeforget.errors import InputError
    from mergeforget.files import read_json_object

    named: list[Any] = list(request.get("parts") or ())
    folders = [_earlier_folder(str(part), path) for part in named]
    before = request.get("after")
    while before is not None:
        if not isinstance(before, str) or len(folders) > 1000:
            raise InputError(f"{path}: `after` does not name an earlier run.")
        folders.append(_earlier_folder(before, path))
        path = folders[-1].root / REQUEST
        before = read_json_object(path).get("after") if path.exists() else None
    return folders


def _earlier_folder(name: str, path: Path) -> Run:
    """Return the run folder that a request names.

    A relative name refers to the working directory of the call that wrote the request, which is
    usually a parent of its run folder.

    Args:
        path: ``request.json`` of the request.

    Raises:
        InputError: The folder is missing, so its forget rows cannot be tested again.
    """
    from mergeforget.errors import InputError
    from mergeforget.run import Run

    places = (Path(), *path.absolute().parent.parents)
    found = next((place / name for place in places if (place / name).is_dir()), None)
    if found is None:
        raise InputError(
            f"{path} starts from the earlier run {name}, which was not found. Its forget rows are "
            "needed, to test them again and to exclude them from retain and holdout. Restore the "
            "folder, or repeat the command in the working directory where that run was made."
        )
    return Run(found)


def revealed(loaded: Any, recipe: Recipe, earlier: Run) -> EarlierAnswers:
    """Return the forget answers of an earlier request that a model reveals.

    An answer is revealed if a completion contains it (``leak_rate``), or if greedy decoding would
    repeat it, with any prompt variant.

    Args:
        loaded: Model and tokenizer.
        recipe: How prompts are rendered and asked.
    """
    from mergeforget.data.overlap import distinct_rows
    from mergeforget.data.prompt_variants import variants_to_ask
    from mergeforget.data.readers import read_rows
    from mergeforget.evaluate.measure import measure
    from mergeforget.evaluate.worst_case import worst_case
    from mergeforget.metrics.leak_rate import patterns_of
    from mergeforget.recipe import load_recipe

    spec = load_recipe(earlier.recipe).evaluation if earlier.recipe.exists() else recipe.evaluation
    path = earlier.data / "forget.jsonl"
    rows = distinct_rows(read_rows(path, split="forget"), path)
    systems = () if all(row.window for row in rows) else recipe.evaluation.system_prompts
    variants = variants_to_ask(loaded.tokenizer, recipe.data, rows, recipe.evaluation.ask, systems)
    kept = earlier.data / "retain.jsonl"
    patterns = patterns_of(read_rows(kept, split="retain") if kept.is_file() else [])
    worst = worst_case({
        variant.name: measure(loaded.model, loaded.tokenizer, forget=rows, retain=[], members=[],
                          nonmembers=[], max_new_tokens=spec.max_new_tokens, template=variant,
                          label=earlier.name)
        for variant in variants
    }, patterns=patterns)  # fmt: skip
    repeated = {one.row.id for one in worst.likelihoods if one.greedy == 1}
    return share_of(worst.answers, repeated, patterns)


def share_of(
    answers: Iterable[Answer], repeated: Collection[str], patterns: Patterns
) -> EarlierAnswers:
    """Return how many answers to forget rows are revealed.

    Args:
        repeated: Ids of the rows that greedy decoding would repeat word for word.
        patterns: Patterns of the retain rows, which reveal nothing.
    """
    from mergeforget.evaluate.verdict_figures import RARE, EarlierAnswers, at_least
    from mergeforget.metrics.leak_rate import can_leak, chance_of, is_leaked

    asked = [one for one in answers if can_leak(one.row, patterns)]
    if not asked:
        return EarlierAnswers(0.0, 0, beyond=False)
    leaks = sum(is_leaked(one, patterns) or one.row.id in repeated for one in asked)
    beyond = at_least(leaks, len(asked), chance_of(asked, patterns)) < RARE
    return EarlierAnswers(leaks / len(asked), len(asked), beyond)
