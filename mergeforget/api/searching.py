"""Search the merges of a pair for the balanced one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergeforget.api.results import AnyRun, SearchResult, UnlearningRun, as_run, optional_path

if TYPE_CHECKING:
    from mergeforget.recipe import SearchSpec
    from mergeforget.run import Run
    from mergeforget.search.driver import Options


def search(
    run: AnyRun | None = None,
    *,
    methods: Sequence[str] | None = None,
    densities: str | Sequence[float] | None = None,
    weights: Sequence[Sequence[float]] | None = None,
    spaces: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    objective: str | None = None,
    strategy: Literal["grid", "refine", "tpe", "nsga2"] | None = None,
    groups: int | None = None,
    finalists: int | None = None,
    together: int | None = None,
    budget: int | str | None = None,
    seed: int | None = None,
    holdout: str | Path | None = None,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
    first: float | None = None,
    storage: str | None = None,
    resume: bool = False,
    again: bool = False,
    device: str | None = None,
) -> SearchResult:
    """Merge the pair of a run in many ways, evaluate each, and choose the balanced one.

    The selection split chooses the candidate and the report split reports its scores. Results are
    saved as they are measured; a repeated call resumes. Omitted options are taken from the recipe.

    Args:
        run: Run folder with a trained pair; None is the newest under ``runs/``.
        methods: Merge methods to try.
        densities: Fractions of entries kept: ``"0.1:1.0:0.1"`` or a list.
        weights: Weights of over and under to try, for example ``[[1, 1], [1, 0.5]]``.
        spaces: ``factors``, ``delta``, or both.
        ranks: Ranks of the result, in delta space.
        objective: Expression to maximise, for example ``mia`` or ``0.7*mia + 0.3*retain``.
        strategy: ``grid``, ``refine``, ``tpe`` or ``nsga2``; the last two need optuna.
        groups: Number of layer groups with separate densities.
        finalists: Number of candidates that generate answers; the others are scored by likelihood.
        together: Number of candidates that answer in one batch.
        budget: Maximum number of candidates, or a time such as ``"10m"``.
        seed: Random seed of the split, and of methods and strategies that sample.
        holdout: Rows that were never trained on: the non-members.
        template, system_prompt: How prompts are rendered; as in the run's recipe when omitted.
        first: First density to try.
        storage: Database URL or journal file that several workers share.
        resume: Resume a search; an error if there is none.
        again: Discard the cached measurements.
        device: ``cpu``, ``cuda``, ...; the GPU where there is one.

    Raises:
        InputError: The run has no pair, or no non-members are known.
        UsageError: A candidate, the objective or a combination of options is invalid.
        NumericError: No candidate has finite scores.
    """
    given = dict(locals())
    from mergeforget.search.driver import search as find_best

    here = as_run(run)
    _check(here, given)
    choice = find_best(here, _spec(here, given), _options(given))
    return SearchResult(UnlearningRun(here), choice)


def work(run: AnyRun | None = None, **options: Any) -> int:
    """Explore candidates for another search on the same ``storage``.

    Args:
        options: As in :func:`search`.

    Returns:
        The number of candidates that all workers have explored.
    """
    from mergeforget.search.driver import work as explore

    here = as_run(run)
    _check(here, options)
    return explore(here, _spec(here, options), _options(options))


def _check(run: Run, given: dict[str, Any]) -> None:
    from mergeforget.errors import InputError, UsageError

    if given.get("resume") and given.get("again"):
        raise UsageError("--resume keeps what was measured and --again discards it; give one.")
    if given.get("resume") and not run.search.is_dir():
        raise InputError(f"{run.root} has no search to resume. Start one without --resume.")


PLAIN = ("densities", "groups", "objective", "strategy", "finalists", "together", "seed")


def _spec(run: Run, given: dict[str, Any]) -> SearchSpec:
    """Return the section ``search`` of the run's recipe with the given options."""
    from mergeforget.recipe import change, load_recipe

    changes = {key: given.get(key) for key in (*PLAIN, "methods", "spaces", "ranks", "weights")}
    lists = {k: v if isinstance(v, str) else list(v) if isinstance(v, Sequence) else v
             for k, v in changes.items() if v is not None and v != []}  # fmt: skip
    spec = change(load_recipe(run.recipe), search=lists).search
    _refuse_unused(spec, lists)
    return spec


def _refuse_unused(spec: SearchSpec, given: dict[str, Any]) -> None:
    """Raise UsageError for an option that no candidate of the search uses."""
    from mergeforget.errors import UsageError
    from mergeforget.search.grid import grid

    candidates = grid(spec)
    methods = ", ".join(spec.methods)
    if given.get("densities") and all(c.density is None for c in candidates):
        raise UsageError(f"--densities does not apply to {methods}, which keep every entry.")
    if given.get("groups", 1) > 1 and all(c.density is None for c in candidates):
        raise UsageError(f"--groups sets densities, and {methods} has none: it keeps every entry.")
    if given.get("ranks") and all(c.space == "factors" for c in candidates):
        raise UsageError(
            "--ranks does not apply in factor space, where the result has the rank of the "
            "adapters: add --spaces delta."
        )
    fixed = {c.method for c in candidates if c.space == "delta"}
    if given.get("spaces") and "delta" not in spec.spaces and fixed:
        raise UsageError(
            f"--spaces factors does not apply to {', '.join(sorted(fixed))}, which merges deltas: "
            "add delta, for example --spaces factors,delta."
        )


def _options(given: dict[str, Any]) -> Options:
    from mergeforget.search.budget import parse_budget
    from mergeforget.search.driver import Options

    budget = given.get("budget")
    return Options(
        parse_budget(None if budget is None else str(budget)),
        holdout=optional_path(given.get("holdout")),
        again=bool(given.get("again")),
        device=given.get("device"),
        storage=given.get("storage"),
        first=given.get("first"),
        template=given.get("template"),
        system_prompt=given.get("system_prompt"),
    )
