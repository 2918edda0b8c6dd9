"""Read the adapters of a merge, and resolve its options and defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeforget.api.options import DEFAULTS, ByModule, MergeOptions, ModelMergeOptions
from mergeforget.api.results import AnyRun, UnlearningRun, as_run
from mergeforget.candidate import DEFAULT, Candidate
from mergeforget.run import Run

if TYPE_CHECKING:
    from mergeforget.adapter import Adapter
    from mergeforget.merge.activation_grams import Grams
    from mergeforget.merge.engine import MergeSettings
    from mergeforget.recipe import DataSpec

    Source = AnyRun | Sequence[str | Path | Adapter] | None

UNSHARED = ("slerp", "nuslerp")  # methods whose weights need not add up to 1 without a base
HOW = ("density", "weights", "space", "rank", "seed", "precision")


@dataclass(frozen=True)
class MergeRequest:
    """A merge with every default resolved.

    Attributes:
        run: The run that the adapters belong to, or None.
        inputs: Files and folders that are read, which the output must not replace.
    """

    adapters: list[Adapter]
    candidate: Candidate
    settings: MergeSettings
    run: Run | None
    inputs: list[Path]

    @property
    def base(self) -> str:
        """The model that the adapters were trained on."""
        return _base_of(self.adapters, self.run)

    def check_out(self, out: Path, bases: Sequence[str] = ()) -> None:
        """Raise InputError if ``out`` is an input, or contains files that no merge wrote."""
        from mergeforget.merge.inputs import check_free

        check_free(out, [*self.inputs, *(Path(b) for b in [*bases, self.base] if b)])


def prepare(
    source: Source, options: MergeOptions, *, compare: bool = False, full: bool = False
) -> MergeRequest:
    """Read the adapters and resolve the options of a merge.

    An omitted option is taken from the section ``merge`` of the run's recipe, if no method is
    given either, and otherwise from ``candidate.DEFAULT``.

    Args:
        source: As in ``merge``.
        options: All options; None if omitted.
        compare: Measure how far factor space is from delta space.
        full: The result is written as a whole model.

    Raises:
        UsageError: An option does not apply to this merge.
    """
    from mergeforget.merge.engine import MergeSettings, check_rank

    adapters, run, inputs = _read(source)
    method, base, data = options["method"], options["base"], options["data"]
    overrides = {name: options.get(name) for name in HOW if options.get(name) is not None}
    arguments = dict(options["arguments"] or {})
    chosen: dict[str, Any] = {"method": method or DEFAULT.method}
    if method is None and run is not None:
        chosen = _recipe_options(run)
        arguments = chosen.pop("arguments") | arguments
    elif len(adapters) == 1:
        chosen = {"method": method or "linear", "space": "delta"}
    if chosen["method"] == "purpose":
        _refuse_with_purpose(overrides, options)
        candidate = _purpose(base, data, arguments, adapters, run, options)
        precision, grams = (chosen | overrides).get("precision"), None
    else:
        chosen |= overrides
        precision = chosen.pop("precision", None)
        _check_some_weight(options["weights"], options["weights_by"])
        weights = tuple(chosen.pop("weights", None) or (1.0,) * len(adapters))
        by_module = _by_module(options, len(adapters))
        candidate = Candidate(**chosen, weights=weights, arguments=arguments, by_module=by_module)
        candidate = _with_task_by_module(with_density(candidate), adapters, options)
        grams = _grams(base, data, candidate, adapters, run, options, full=full)
        if base is not None and not full and grams is None:
            raise refused("base", "without --full or --data")
    refuse_unused(candidate, options, compare=compare, full=full)
    if options["rank"] is not None:
        check_rank(candidate, adapters, options["rank"])
    settings = MergeSettings(
        options["modules"],
        options["svd"] or MergeSettings.svd,
        precision or MergeSettings.precision,
        compare=compare,
        threads=options["threads"],
        grams=grams,
        same_base=options["same_base"],
        device=options["device"],
    )
    return MergeRequest(adapters, candidate, settings, run, [*inputs, *map(Path, data)])


def candidate_of_models(n: int, base: object, options: ModelMergeOptions) -> Candidate:
    """Return the candidate of a merge of n whole models.

    Raises:
        UsageError: There are no models, or an option does not apply to the method.
    """
    from mergeforget.errors import UsageError

    if n == 0:
        raise UsageError("There is nothing to merge: name models with --model, or a --config.")
    method = options["method"] or DEFAULT.method
    if method == "purpose":
        raise UsageError(
            "purpose merges adapters: use `mergeforget merge`, with --full for a model."
        )
    _check_some_weight(options["weights"], options["weights_by"])
    share = 1.0 if base or method in UNSHARED else 1 / n
    candidate = Candidate(
        method,
        options["density"],
        tuple(options["weights"] or (share,) * n),
        "delta",
        seed=options["seed"] or DEFAULT.seed,
        arguments=dict(options["arguments"] or {}),
        by_module=_by_module(options, n),
    )
    refuse_unused(candidate, options, full=True)
    return with_density(candidate)


def with_density(candidate: Candidate) -> Candidate:
    """Return the candidate with the default density if its method needs one and it has none."""
    from mergeforget.merge.request import needs_density

    if candidate.density is None and needs_density(candidate):
        return replace(candidate, density=DEFAULT.density)
    return candidate


def refuse_unused(
    candidate: Candidate, options: Mapping[str, Any], *, compare: bool = False, full: bool = False
) -> None:
    """Raise UsageError for a given option that the merge does not use."""
    from mergeforget.merge.engine import is_dense
    from mergeforget.merge.methods import MERGE_METHODS
    from mergeforget.merge.request import canonical

    known = canonical(candidate)
    entry = MERGE_METHODS.get(known.method)
    given = {name for name, value in options.items() if value is not None}
    if "seed" in given and "generator" not in entry.parameters:
        raise refused("seed", f"to {entry.name}, which is not random")
    if full and "svd" in given and known.rank is None:
        raise refused("svd", "to --full without --rank, because nothing is truncated")
    if not full and "svd" in given and not is_dense(known):
        reason = f"to {entry.name} in {known.space} space, because no delta is truncated"
        raise refused("svd", reason)
    if options.get("space") == "factors" and known.space == "delta":
        raise refused(
            "space factors",
            f"to {candidate.method}, which merges deltas: use --space delta, or omit it",
        )
    if compare and known.space == "delta":
        raise refused("compare", "in delta space: it compares factor space with delta space")


def refuse_given(options: Mapping[str, Any], names: Sequence[str], why: str) -> None:
    """Raise UsageError for options that differ from their defaults and do not apply.

    Args:
        names: The options to check.
        why: Completes the sentence "--name does not apply ...".
    """
    from mergeforget.errors import UsageError

    unset: tuple[Any, ...] = (None, [], (), {})
    unfit = [n for n in names if (x := options.get(n)) != DEFAULTS.get(n) and x not in unset]
    if unfit:
        verb = "does" if len(unfit) == 1 else "do"
        raise UsageError(f"{', '.join(map(_option, unfit))} {verb} not apply {why}.")


def note_repeats(paths: Sequence[str | Path]) -> None:
    """Print a warning if an input of a merge is given twice."""
    from mergeforget.console import say

    names = [str(path) for path in paths]
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        say(f"Warning: {name} is given {names.count(name)} times and is merged as often.")


def refused(name: str, reason: str) -> Exception:
    """Return the error for an option that does not apply."""
    from mergeforget.errors import UsageError

    return UsageError(f"{_option(name)} does not apply {reason}.")


def _option(name: str) -> str:
    return "--set" if name == "arguments" else f"--{name.replace('_', '-')}"


def _read(source: Source) -> tuple[list[Adapter], Run | None, list[Path]]:
    """Return the adapters, their run, and the folders that were read."""
    from mergeforget.adapter import Adapter, read_adapter

    if source is None or isinstance(source, str | Path | Run | UnlearningRun):
        run = as_run(source)
        folders = [run.over, run.under]
        return [read_adapter(f, f.name) for f in folders], run, folders
    paths = [Path(one) for one in source if not isinstance(one, Adapter)]
    note_repeats(paths)
    read = [one if isinstance(one, Adapter) else read_adapter(Path(one)) for one in source]
    return read, None, paths


def _check_some_weight(weights: Sequence[float] | None, by: ByModule) -> None:
    """Raise UsageError if every weight is 0, so that nothing is merged."""
    from mergeforget.errors import UsageError

    if weights and not any(weights) and not by:
        raise UsageError("Every weight is 0, so the result would change nothing.")


def _recipe_options(run: Run) -> dict[str, Any]:
    """Return the section ``merge`` of the run's recipe.

    The default density does not apply to a method without density.
    """
    from mergeforget.merge.request import takes_density
    from mergeforget.recipe import load_recipe

    options = load_recipe(run.recipe).merge.model_dump()
    known = options["method"] != "purpose"
    if known and options["density"] == DEFAULT.density and not takes_density(options["method"]):
        options["density"] = None
    return options


def _by_module(options: MergeOptions | ModelMergeOptions, n: int) -> dict[str, Any]:
    """Return the settings by module for n inputs."""
    density = _settings("density", options["density_by"], 1)
    return density | _settings("weights", options["weights_by"], n)


def _settings(key: str, by: ByModule, count: int) -> dict[str, Any]:
    """Parse settings by module, ``{"q_proj": 0.5}`` or ``["q_proj=0.5"]``, of ``count`` values."""
    from mergeforget.errors import UsageError
    from mergeforget.merge.request import parse

    if isinstance(by, Mapping):
        by = [f"{name}={_joined(value)}" for name, value in by.items()]
    rows = [parse(text) for text in by]
    for pattern, values in rows:
        if len(values) != count:
            raise UsageError(
                f"{key} of modules {pattern!r}: {len(values)} values are given, {count} are needed."
            )
    per_adapter = [[{"filter": p, "value": v[i]} for p, v in rows] for i in range(count)]
    return {key: per_adapter if key == "weights" else per_adapter[0]} if rows else {}


def _refuse_with_purpose(given: Mapping[str, Any], options: MergeOptions) -> None:
    from mergeforget.errors import UsageError

    chosen = {*given, *(name for name in ("density_by", "weights_by") if options.get(name))}
    if unfit := sorted(chosen - {"precision"}):
        raise UsageError(
            f"purpose chooses a weight for every module: leave {', '.join(unfit)} out."
        )


def _purpose(
    base: str | Path | None,
    data: Sequence[str | Path],
    arguments: Mapping[str, Any],
    adapters: list[Adapter],
    run: Run | None,
    options: MergeOptions,
) -> Candidate:
    """Return the candidate with weights from gradients on forget and retain rows."""
    from mergeforget.console import say
    from mergeforget.data.readers import read_rows
    from mergeforget.data.templating import template_of
    from mergeforget.errors import UsageError
    from mergeforget.merge.purpose import choose_weights
    from mergeforget.models import load_model

    known = {"target", "rows", "steps", "ridge"}
    if set(arguments) - known:
        raise UsageError(f"purpose takes the arguments {', '.join(sorted(known))}.")
    files = [Path(file) for file in data]
    if run is not None and not files:
        files = [run.data / "forget.jsonl", run.data / "retain.jsonl"]
    if len(files) != 2:
        raise UsageError("purpose needs two files: --data FORGET --data RETAIN.")
    loaded = load_model(str(base or _base_of(adapters, run)))
    forget, retain = (read_rows(file) for file in files)
    template = template_of(loaded.tokenizer, _data_spec(run))
    chosen = choose_weights(
        loaded.model, loaded.tokenizer, adapters, forget, retain, template=template,
        modules=options["modules"], same_base=options["same_base"], **dict(arguments),
    )  # fmt: skip
    say(
        f"purpose: forget loss {chosen.forget[0]:.3f} -> {chosen.forget[-1]:.3f} (target "
        f"{chosen.target:.3f}), retain loss {chosen.retain[0]:.3f} -> {chosen.retain[-1]:.3f} nats "
        "per token"
    )
    return chosen.candidate()


def _base_of(adapters: Sequence[Adapter], run: Run | None) -> str:
    """Return the base of a run, or that of the first adapter that records one."""
    return run.base() if run else next((one.base for one in adapters if one.base), "")


def _joined(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _grams(
    base: str | Path | None,
    data: Sequence[str | Path],
    candidate: Candidate,
    adapters: list[Adapter],
    run: Run | None,
    options: MergeOptions,
    *,
    full: bool,
) -> Grams | None:
    """Return the statistics for methods that need them, after a check of the adapters.

    Statistics of the merged model are measured with the merged modules only.
    """
    from mergeforget.merge.inputs import check_adapters, modules_to_merge
    from mergeforget.merge.methods import traits
    from mergeforget.merge.request import canonical, looks_at_data

    files = [Path(file) for file in data]
    if run is not None and not files and looks_at_data(candidate):
        files = [run.data / "forget.jsonl", run.data / "retain.jsonl"]
    if not files:
        return None
    from mergeforget.merge.activation_grams import grams_of

    if looks_at_data(candidate):  # otherwise, `grams_of` refuses the data
        check_adapters(adapters, with_base=full, same_base=options["same_base"])
        modules = set(modules_to_merge(adapters, options["modules"]))
        known = traits(canonical(candidate).method)
        if known.layerwise or known.coefficients:
            adapters = [_only(adapter, modules) for adapter in adapters]
    name = str(base or _base_of(adapters, run))
    return grams_of(name, adapters, files, candidate, _data_spec(run))


def _only(adapter: Adapter, modules: set[str]) -> Adapter:
    deltas = {name: delta for name, delta in adapter.deltas.items() if name in modules}
    return replace(adapter, deltas=deltas, embeddings=adapter.embeddings & modules)


def _with_task_by_module(
    candidate: Candidate, adapters: Sequence[Adapter], options: MergeOptions
) -> Candidate:
    """Return the candidate with the argument ``task`` of ``emr`` by module if it has to differ.

    ``task`` is the index of an adapter, and a method gets only the adapters that have the module.
    """
    from mergeforget.errors import UsageError
    from mergeforget.merge.inputs import modules_to_merge
    from mergeforget.merge.methods.emr import ABSENT

    task = candidate.arguments.get("task")
    if candidate.method != "emr" or task is None:
        return candidate
    if not isinstance(task, int) or not 0 <= task < len(adapters):
        raise UsageError(f"task is {task}; it is the index of one of {len(adapters)} inputs.")
    places = {}
    for name in sorted(modules_to_merge(adapters, options["modules"]), key=len, reverse=True):
        present = [i for i, adapter in enumerate(adapters) if name in adapter.deltas]
        places[name] = present.index(task) if task in present else ABSENT
    if set(places.values()) == {task}:
        return candidate
    filters = [{"filter": name, "value": place} for name, place in places.items()]
    return replace(candidate, by_module=candidate.by_module | {"task": filters})


def _data_spec(run: Run | None) -> DataSpec:
    """Return how rows are rendered: as in the run's recipe, or with the chat template, if any."""
    from mergeforget.recipe import DataSpec, load_recipe

    return DataSpec() if run is None else load_recipe(run.recipe).data
