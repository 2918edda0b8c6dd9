"""Load and merge adapters: `merge_full` and `merge_models` write whole models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergeforget.api.results import AnyRun, UnlearningRun, as_run
from mergeforget.run import Run

if TYPE_CHECKING:
    from mergeforget.adapter import Adapter
    from mergeforget.candidate import Candidate
    from mergeforget.merge.activation_grams import Grams
    from mergeforget.merge.checkpoint.full import Written
    from mergeforget.merge.engine import Merged, MergeSettings

    Source = AnyRun | Sequence[str | Path | Adapter] | None

DEFAULTS: dict[str, Any] = {"method": "ties", "space": "factors", "seed": 0, "precision": "float32"}
SHARD_SIZE = 5 * 10**9  # bytes of one weights file
UNSHARED = ("slerp", "nuslerp")  # without a base their weights are no shares of a mean

ByModule = Mapping[str, Any] | Sequence[str]


def load_adapter(folder: str | Path, name: str = "") -> Adapter:
    """Read a LoRA adapter from a PEFT folder, without loading torch.

    Args:
        folder: Holds ``adapter_config.json`` and the weights.
        name: How messages call it; the folder's name when empty.

    Raises:
        InputError: A file is missing, truncated, or not a LoRA adapter.
    """
    from mergeforget.adapter import read_adapter

    return read_adapter(Path(folder), name)


def merge(
    source: Source = None,
    *,
    method: str | None = None,
    density: float | None = None,
    weights: Sequence[float] | None = None,
    density_by: ByModule = (),
    weights_by: ByModule = (),
    space: Literal["factors", "delta"] | None = None,
    rank: int | None = None,
    seed: int | None = None,
    precision: Literal["float32", "float64"] | None = None,
    arguments: Mapping[str, Any] | None = None,
    modules: Literal["same", "common", "all"] = "same",
    svd: Literal["fast", "exact"] = "fast",
    data: Sequence[str | Path] = (),
    compare: bool = False,
    base: str | Path | None = None,
    same_base: bool = False,
    threads: int = 0,
    out: str | Path | None = None,
) -> Merged:
    """Merge adapters of one base into one adapter. Neither torch nor the base is loaded.

    Args:
        source: Two or more adapters (folders, or adapters from :func:`load_adapter`), or a run,
            whose over and under are merged. None is the newest run under ``runs/``.
        method: Name of a merge method (``mergeforget list methods``), or PEFT's name for it. When
            omitted: what the run's recipe says, otherwise ``ties``.
        density: Fraction of entries kept, in (0, 1], for methods that take one.
        weights: One multiplier per adapter; 1 each when omitted.
        density_by: Densities of the modules whose name contains a filter, ``{"q_proj": 0.5}``.
        weights_by: Weights of such modules, ``{"q_proj": [1, 0.5]}``.
        space: ``factors`` merges A and B separately, ``delta`` merges the products ``B @ A``.
        rank: Rank of the result, in delta space; the largest input rank when omitted.
        seed: Random seed of methods that drop entries at random.
        precision: Of the computation, whatever dtype is stored.
        arguments: Further arguments of the method, ``{"sign": "count"}``.
        modules: Which modules to merge where the adapters change different ones.
        svd: How a delta is truncated to the rank.
        data: Files of rows for ``regmean``: one per adapter, or one for all.
        compare: Measure how far factor space is from delta space.
        base: The model that ``data`` is run through; the adapters' base when omitted.
        same_base: Merge although the adapters name bases with different content.
        threads: Number of threads; 0 is one per core. It does not change the result.
        out: Folder to write the result to, as a PEFT folder. A merge written here before is
            replaced.

    Returns:
        The merged adapter: ``merged.save(folder)`` writes it, ``merged.adapter`` holds it.

    Raises:
        UsageError: Unknown method or argument, or values that do not fit.
        InputError: An adapter is malformed, or they belong to different models.
        NumericError: An adapter contains NaN or Inf.
    """
    options = dict(locals())
    from mergeforget.merge.engine import merge_adapters

    folder = options.pop("out")
    asked = prepare(**options)
    if folder is not None:
        asked.check_out(Path(folder))
    merged = merge_adapters(asked.adapters, asked.candidate, asked.settings)
    if folder is not None:
        merged.save(folder)
    return merged


def merge_full(
    source: Source,
    out: str | Path,
    *,
    method: str | None = None,
    density: float | None = None,
    weights: Sequence[float] | None = None,
    density_by: ByModule = (),
    weights_by: ByModule = (),
    space: Literal["factors", "delta"] | None = None,
    rank: int | None = None,
    seed: int | None = None,
    precision: Literal["float32", "float64"] | None = None,
    arguments: Mapping[str, Any] | None = None,
    modules: Literal["same", "common", "all"] = "same",
    svd: Literal["fast", "exact"] = "fast",
    data: Sequence[str | Path] = (),
    base: str | Path | None = None,
    same_base: bool = False,
    threads: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    max_memory: int | None = None,
    shard_size: int = SHARD_SIZE,
    device: str = "cpu",
) -> Written:
    """Merge adapters and write their base with the merged change as a whole model.

    The base is streamed: only the tensors in work are in memory. An interrupted call continues
    when it is repeated.

    Args:
        source: As in :func:`merge`.
        out: Folder to write. A model merged here before is replaced.
        base: Name or folder of the base; the run's, or the one that the adapters name.
        dtype: Of the written weights; ``auto`` keeps the base's.
        max_memory: Bytes that the tensors in work may take together.
        shard_size: Bytes of one weights file.
        device: ``cpu`` or ``cuda``.
        method, density, weights, density_by, weights_by, space, rank, seed, precision, arguments,
            modules, svd, data, same_base, threads: As in :func:`merge`.

    Returns:
        Where the model is, and the relative error of rounding to ``dtype``.

    Raises:
        UsageError, InputError, NumericError: As :func:`merge`.
        InputError: ``out`` holds something else, or the base lacks a module.
    """
    options = dict(locals())
    for name in ("out", "dtype", "max_memory", "shard_size", "device"):
        options.pop(name)
    asked = prepare(**options, compare=False)
    output: dict[str, Any] = {
        "dtype": dtype,
        "shard_size": shard_size,
        "max_memory": max_memory,
        "device": device,
    }
    return write_full(asked, Path(out), base, **output)


def write_full(
    asked: MergeRequest,
    out: Path,
    base: str | Path | None,
    *,
    dtype: Any,
    shard_size: int,
    max_memory: int | None,
    device: str,
) -> Written:
    """Write the base with the merged change; the arguments are those of :func:`merge_full`.

    A base that is named vouches for the adapters: their own names of it are not compared.
    """
    from mergeforget.merge.checkpoint.full import fold_adapters
    from mergeforget.merge.checkpoint.tensor_jobs import Output
    from mergeforget.models import locate

    found = str(base or asked.base)
    asked.check_out(out, [found])
    how = replace(asked.settings, same_base=asked.settings.same_base or base is not None)
    threads = how.threads
    output = Output(
        dtype=dtype, shard_bytes=shard_size, threads=threads, device=device, max_memory=max_memory
    )
    return fold_adapters(locate(found), asked.adapters, asked.candidate, out, output, how)


def merge_models(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    base: str | Path | None = None,
    method: str = "ties",
    density: float | None = None,
    weights: Sequence[float] | None = None,
    density_by: ByModule = (),
    weights_by: ByModule = (),
    seed: int | None = None,
    precision: Literal["float32", "float64"] | None = None,
    arguments: Mapping[str, Any] | None = None,
    same_base: bool = False,
    threads: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    max_memory: int | None = None,
    shard_size: int = SHARD_SIZE,
    device: str = "cpu",
) -> Written:
    """Merge whole models tensor by tensor and write the result as a model folder.

    Args:
        models: Names or folders of the models.
        out: Folder to write. A model merged here before is replaced.
        base: The model that they were fine-tuned from. The method acts on the differences from it;
            without one, on the weights themselves.
        weights: One multiplier per model; 1 each when omitted, or the mean without a base.
        same_base: Merge although architectures or vocabularies differ.
        method, density, density_by, weights_by, seed, precision, arguments, threads: As in
            :func:`merge`.
        dtype, max_memory, shard_size, device: As in :func:`merge_full`.

    Raises:
        UsageError: The method needs a base, or values do not fit.
        InputError: The models have different tensors, architectures or vocabularies.
        NumericError: A model contains NaN or Inf, or the result overflows.
    """
    candidate = candidate_of_models(
        len(models), base=base, method=method, density=density, weights=weights,
        density_by=density_by, weights_by=weights_by, seed=seed, arguments=arguments,
    )  # fmt: skip
    return run_merge_models(
        models, out, base, candidate, dtype=dtype, precision=precision, same_base=same_base,
        threads=threads, device=device, max_memory=max_memory, shard_size=shard_size,
    )  # fmt: skip


def extract_lora(
    model: str | Path,
    *,
    base: str | Path,
    rank: int = 32,
    svd: Literal["fast", "exact"] = "fast",
    threads: int = 0,
    out: str | Path | None = None,
) -> Merged:
    """Extract a plain LoRA: the difference of a model from its base, truncated to a rank.

    Args:
        model: Folder of a fine-tuned model, or of an adapter of a kind that PEFT can fold.
        base: Name or folder of the model that it was trained from.
        rank: Largest rank of a module.
        svd: How a difference is truncated.
        threads: Number of threads; 0 is one per core.
        out: Folder to write the adapter to.

    Raises:
        InputError: The two have different tensors, or no difference that a LoRA can represent.
    """
    from mergeforget.merge.extract import extract_lora as extract
    from mergeforget.merge.inputs import check_free
    from mergeforget.models import locate

    if out is not None:
        check_free(Path(out), [Path(model), Path(base)])
    found = locate(str(base))
    merged = extract(Path(model), found, rank, svd=svd, threads=threads, named=str(base))
    if out is not None:
        merged.save(out)
    return merged


def candidate_of_models(
    n: int,
    *,
    base: Any,
    method: str,
    density: float | None,
    weights: Sequence[float] | None,
    density_by: ByModule,
    weights_by: ByModule,
    seed: int | None,
    arguments: Mapping[str, Any] | None,
) -> Candidate:
    """The candidate of a merge of n whole models."""
    from mergeforget.candidate import Candidate

    share = 1.0 if base or method in UNSHARED else 1 / n
    return Candidate(
        method,
        density,
        tuple(weights or (share,) * n),
        "delta",
        seed=seed or 0,
        arguments=dict(arguments or {}),
        by_module=_settings("density", density_by, 1) | _settings("weights", weights_by, n),
    )


def run_merge_models(
    models: Sequence[str | Path],
    out: str | Path,
    base: str | Path | None,
    candidate: Candidate,
    *,
    dtype: Any,
    precision: Any,
    same_base: bool,
    threads: int,
    device: str,
    max_memory: int | None,
    shard_size: int,
) -> Written:
    """Run a merge of whole models whose candidate is known."""
    from mergeforget.merge.checkpoint import full
    from mergeforget.merge.checkpoint.tensor_jobs import Output
    from mergeforget.merge.inputs import check_free
    from mergeforget.models import locate

    check_free(Path(out), [Path(one) for one in [*models, *([base] if base else [])]])
    output = Output(
        dtype=dtype, shard_bytes=shard_size, threads=threads, device=device, max_memory=max_memory
    )
    origin = locate(str(base)) if base else None
    found = [locate(str(model)) for model in models]
    precision = precision or DEFAULTS["precision"]
    return full.merge_models(
        found, origin, candidate, Path(out), output, precision, same_base=same_base
    )


@dataclass(frozen=True)
class MergeRequest:
    """A merge with every default filled in.

    Attributes:
        run: the run that the adapters belong to, or None.
        inputs: files and folders that are read, which the output must not replace.
    """

    adapters: list[Adapter]
    candidate: Candidate
    settings: MergeSettings
    run: Run | None
    inputs: list[Path]

    @property
    def base(self) -> str:
        """The model that the adapters were trained on."""
        return self.run.base() if self.run else self.adapters[0].base

    def check_out(self, out: Path, bases: Sequence[str] = ()) -> None:
        """Raise InputError where ``out`` is an input, or holds what no merge made."""
        from mergeforget.merge.inputs import check_free

        check_free(out, [*self.inputs, *(Path(b) for b in [*bases, self.base] if b)])


def prepare(
    source: Source,
    *,
    method: str | None,
    density: float | None,
    weights: Sequence[float] | None,
    density_by: ByModule,
    weights_by: ByModule,
    space: Any,
    rank: int | None,
    seed: int | None,
    precision: Any,
    arguments: Mapping[str, Any] | None,
    modules: Any,
    svd: Any,
    data: Sequence[str | Path],
    compare: bool,
    base: str | Path | None,
    threads: int,
    same_base: bool = False,
) -> MergeRequest:
    """Read the adapters and resolve every option of :func:`merge`."""
    from mergeforget.candidate import Candidate
    from mergeforget.merge.engine import MergeSettings

    adapters, run, inputs = _read(source)
    options: dict[str, Any] = {"method": method, "density": density, "space": space, "rank": rank,
                               "seed": seed, "precision": precision}  # fmt: skip
    given = dict(arguments or {})
    if run is not None and method is None:
        options, weights, given = _from_recipe(run, options, weights, given)
    if options["method"] == "purpose":
        if method is None:  # the recipe's, whose weights and density are defaults
            weights, options = None, dict.fromkeys(options)
        unused = {
            **{k: options[k] for k in ("density", "space", "rank", "seed")},
            "weights": weights,
            "density_by": density_by or None,
            "weights_by": weights_by or None,
        }
        candidate = _purpose(base, data, unused, given, adapters, run)
        settings = MergeSettings(
            modules, svd, precision or DEFAULTS["precision"], compare=compare, threads=threads,
            same_base=same_base,
        )  # fmt: skip
        return MergeRequest(adapters, candidate, settings, run, [*inputs, *map(Path, data)])
    chosen = {k: DEFAULTS[k] if v is None and k in DEFAULTS else v for k, v in options.items()}
    n = len(adapters)
    by_module = _settings("density", density_by, 1) | _settings("weights", weights_by, n)
    precision = chosen.pop("precision")
    candidate = Candidate(
        **chosen,
        weights=tuple(weights or (1.0,) * n),
        arguments=given,
        by_module=by_module,
    )
    grams = _grams(base, data, candidate, adapters, run)
    settings = MergeSettings(
        modules, svd, precision, compare=compare, threads=threads, grams=grams, same_base=same_base
    )
    return MergeRequest(adapters, candidate, settings, run, [*inputs, *map(Path, data)])


def _read(source: Source) -> tuple[list[Adapter], Run | None, list[Path]]:
    """The adapters, the run they belong to, and the folders they were read from."""
    from mergeforget.adapter import Adapter, read_adapter

    if source is None or isinstance(source, str | Path | Run | UnlearningRun):
        run = as_run(source)
        folders = [run.over, run.under]
        return [read_adapter(f, f.name) for f in folders], run, folders
    paths = [Path(one) for one in source if not isinstance(one, Adapter)]
    read = [one if isinstance(one, Adapter) else read_adapter(Path(one)) for one in source]
    return read, None, paths


def _from_recipe(
    run: Run,
    options: dict[str, Any],
    weights: Sequence[float] | None,
    arguments: dict[str, Any],
) -> tuple[dict[str, Any], Sequence[float] | None, dict[str, Any]]:
    """What is omitted, as the section ``merge`` of the run's recipe has it."""
    from mergeforget.recipe import load_recipe

    spec = load_recipe(run.recipe).merge.model_dump()
    theirs = spec.pop("arguments") | arguments
    weights = weights or tuple(spec.pop("weights"))
    return {k: spec[k] if v is None else v for k, v in options.items()}, weights, theirs


def _settings(key: str, by: ByModule, count: int) -> dict[str, Any]:
    """Settings by module: ``{"q_proj": 0.5}`` or ``["q_proj=0.5"]``, ``count`` values each."""
    from mergeforget.errors import UsageError
    from mergeforget.merge.by_module import parse

    if isinstance(by, Mapping):
        by = [f"{name}={_joined(value)}" for name, value in by.items()]
    rows = [parse(text) for text in by]
    for pattern, values in rows:
        if len(values) != count:
            raise UsageError(
                f"{key} of modules {pattern!r}: {len(values)} values are given, {count} are needed."
            )
    found = [[{"filter": p, "value": v[i]} for p, v in rows] for i in range(count)]
    return {key: found if key == "weights" else found[0]} if rows else {}


def _purpose(
    base: str | Path | None,
    data: Sequence[str | Path],
    unused: Mapping[str, Any],
    arguments: Mapping[str, Any],
    adapters: list[Adapter],
    run: Run | None,
) -> Candidate:
    """The candidate whose weights are chosen from gradients on forget and retain rows."""
    from mergeforget.console import say
    from mergeforget.data.readers import read_rows
    from mergeforget.errors import UsageError
    from mergeforget.merge.purpose import choose_weights
    from mergeforget.models import load_model

    unfit = sorted(name for name, value in unused.items() if value is not None)
    if unfit:
        raise UsageError(
            f"purpose chooses a weight for every module: leave {', '.join(unfit)} out."
        )
    known = {"target", "rows", "steps", "ridge"}
    if set(arguments) - known:
        raise UsageError(f"purpose takes the arguments {', '.join(sorted(known))}.")
    files = [Path(file) for file in data]
    if run is not None and not files:
        files = [run.data / "forget.jsonl", run.data / "retain.jsonl"]
    if len(files) != 2:
        raise UsageError("purpose needs two files: --data FORGET --data RETAIN.")
    loaded = load_model(str(base or (run.base() if run else adapters[0].base)))
    forget, retain = (read_rows(file) for file in files)
    found = choose_weights(
        loaded.model, loaded.tokenizer, adapters, forget, retain, **dict(arguments)
    )
    say(
        f"purpose: forget loss {found.forget[0]:.3f} -> {found.forget[-1]:.3f} (target "
        f"{found.target:.3f}), retain loss {found.retain[0]:.3f} -> {found.retain[-1]:.3f} nats "
        "per token"
    )
    return found.candidate()


def _joined(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _grams(
    base: str | Path | None,
    data: Sequence[str | Path],
    candidate: Candidate,
    adapters: list[Adapter],
    run: Run | None,
) -> Grams | None:
    """The Gram matrices of the layers' inputs, for methods that need them."""
    from mergeforget.merge.activation_grams import grams_of, looks_at_data

    files = [Path(file) for file in data]
    if run is not None and not files and looks_at_data(candidate):
        files = [run.data / "forget.jsonl", run.data / "retain.jsonl"]
    if not files:
        return None
    return grams_of(
        str(base or (run.base() if run else adapters[0].base)), adapters, files, candidate
    )
