"""Load and merge adapters and whole models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from mergeforget.api.options import (
    ByModule,
    Dtype,
    FullMergeOptions,
    MergeOptions,
    ModelMergeOptions,
    OutputOptions,
    accepts,
    check_choice,
    names_of,
)

if TYPE_CHECKING:
    from mergeforget.adapter import Adapter
    from mergeforget.api.merge_request import Source
    from mergeforget.candidate import Candidate
    from mergeforget.merge.checkpoint.full import Written
    from mergeforget.merge.checkpoint.tensor_jobs import Output
    from mergeforget.merge.engine import Merged

SET_BY_CONFIG = (
    "model", "base", "method", "weights", "density", "density_by", "weights_by", "arguments",
    "dtype",
)  # fmt: skip
RUNTIME = ("threads", "device", "max_memory", "shard_size", "seed", "precision", "same_base")


def load_adapter(folder: str | Path, name: str = "") -> Adapter:
    """Read a LoRA adapter from a PEFT folder, without loading torch.

    Args:
        folder: Folder with ``adapter_config.json`` and the weights.
        name: Name of the adapter in messages; the folder's name when empty.

    Raises:
        InputError: A file is missing, truncated, or not a LoRA adapter.
    """
    from mergeforget.adapter import read_adapter

    return read_adapter(Path(folder), name)


@accepts(MergeOptions)
def merge(
    source: Source = None,
    *,
    compare: bool = False,
    out: str | Path | None = None,
    **options: Unpack[MergeOptions],
) -> Merged:
    """Merge adapters of one base into one adapter. Neither torch nor the base is loaded.

    Without options, a run is merged as its recipe says, other adapters by ``ties`` at density 0.8,
    and a single adapter by ``linear`` in delta space (to truncate it to a ``rank``).

    Args:
        source: Two or more adapters (folders, or adapters from :func:`load_adapter`), or a run,
            whose over and under are merged. None is the newest run under ``runs/``.
        compare: Measure how far factor space is from delta space.
        out: Folder to write the result to, as a PEFT folder. A merge written here before is
            replaced.
        method: Name of a merge method (``mergeforget list methods``), or PEFT's name for it.
        density: Fraction of entries kept, in (0, 1]; 0.8 for methods that need one.
        weights: One multiplier per adapter; 1 each when omitted.
        density_by: Densities of the modules whose name contains a filter, ``{"q_proj": 0.5}``.
        weights_by: Weights of such modules, ``{"q_proj": [1, 0.5]}``.
        seed: Random seed of methods that drop entries at random.
        precision: Precision of the computation, for any stored dtype.
        arguments: Further arguments of the method, ``{"sign": "count"}``.
        same_base: Merge even if the adapters name bases with different content.
        threads: Number of threads; 0 is one per core. It does not change the result.
        device: ``cpu`` uses numpy; ``cuda`` or another torch device uses torch.
        space: ``factors`` merges A and B separately, ``delta`` merges the products ``B @ A``.
        rank: Rank of the result, in delta space; the largest input rank when omitted.
        modules: Modules to merge if the adapters have different ones.
        svd: How a delta is truncated to the rank; ``fast`` when omitted.
        data: Files of rows for methods that use data: one per adapter, or one for all.
        base: Model that runs on ``data``; the adapters' base when omitted.

    Returns:
        The merged adapter as ``merged.adapter``; ``merged.save(folder)`` writes it.

    Raises:
        UsageError: A method or argument is unknown, an option is not used by the merge, or a value
            does not apply.
        InputError: An adapter is malformed, or the adapters belong to different models.
        NumericError: An adapter contains NaN or Inf.
    """
    from mergeforget.api.merge_request import prepare
    from mergeforget.merge.engine import merge_adapters

    request = prepare(source, options, compare=compare)
    if out is not None:
        request.check_out(Path(out))
    merged = merge_adapters(request.adapters, request.candidate, request.settings)
    if out is not None:
        merged.save(out)
    return merged


@accepts(FullMergeOptions)
def merge_full(source: Source, out: str | Path, **options: Unpack[FullMergeOptions]) -> Written:
    """Merge adapters into their base and write a whole model.

    The base is streamed: only the tensors being merged are in memory. An interrupted call resumes
    when it is repeated.

    Args:
        source: As in :func:`merge`.
        out: Folder to write. An earlier merge there is replaced.
        base: Name or folder of the base; when omitted, that of the run or of the adapters. If it is
            given, the names of the base in the adapters are not compared.
        dtype: Dtype of the written weights; ``auto`` keeps the base's.
        max_memory: Maximum memory of the tensors being merged, in bytes; None is no limit.
        shard_size: Maximum size of a weights file, in bytes.
        method, density, weights, density_by, weights_by, space, rank, seed, precision, arguments,
            modules, svd, data, same_base, threads, device: As in :func:`merge`.

    Returns:
        Where the model is, and the relative error of rounding to ``dtype``.

    Raises:
        UsageError, InputError, NumericError: As in :func:`merge`.
        InputError: ``out`` contains files that no merge wrote, or the base lacks a module.
    """
    from mergeforget.api.merge_request import prepare
    from mergeforget.errors import InputError
    from mergeforget.merge.checkpoint.full import fold_adapters
    from mergeforget.model_files import locate

    request = prepare(source, options, full=True)
    base = options["base"]
    base_name = str(base or request.base)
    if not base_name:  # PEFT writes "" or null for a base that was built in memory
        raise InputError(
            f"{request.adapters[0].name} does not name its base model. Name it with --base."
        )
    request.check_out(Path(out), [base_name])
    how = replace(request.settings, same_base=request.settings.same_base or base is not None)
    output = _output(options)
    return fold_adapters(
        locate(base_name), request.adapters, request.candidate, Path(out), output, how
    )


@accepts(ModelMergeOptions)
def merge_models(
    models: Sequence[str | Path] = (),
    out: str | Path | None = None,
    *,
    base: str | Path | None = None,
    config: str | Path | None = None,
    **options: Unpack[ModelMergeOptions],
) -> Written:
    """Merge whole models tensor by tensor and write the result as a model folder.

    Args:
        models: Names or folders of the models.
        out: Folder to write. An earlier merge there is replaced.
        base: Model that they were fine-tuned from. The method merges the differences from it;
            without one, on the weights themselves.
        config: Configuration of mergekit to run instead of ``models``. It is run by this engine
            where it knows the method and the options, and by mergekit otherwise.
        weights: One multiplier per model; 1 each when omitted, or the mean without a base.
        same_base: Merge even if architectures or vocabularies differ.
        method, density, density_by, weights_by, seed, precision, arguments, threads, device: As in
            :func:`merge`.
        dtype, max_memory, shard_size: As in :func:`merge_full`.

    Returns:
        Where the model is, how it was merged, and the relative error of rounding to ``dtype``.

    Raises:
        UsageError: The method needs a base, or a value or an option does not apply.
        InputError: The models have different tensors, architectures or vocabularies.
        NumericError: A model contains NaN or Inf, or the result overflows.
    """
    from mergeforget.api.merge_request import candidate_of_models, note_repeats, refuse_given
    from mergeforget.errors import UsageError

    note_repeats(models)
    if config is not None:
        given = {**options, "model": models, "base": base}
        refuse_given(given, SET_BY_CONFIG, "together with --config, which sets it")
    candidate = None if config else candidate_of_models(len(models), base, options)
    if out is None:
        raise UsageError("Name the folder to write with --out.")
    if candidate is None:
        return _run_config(Path(str(config)), Path(out), options)
    return _run_merge_models(models, out, base, candidate, options)


def mergekit_config(
    models: Sequence[str | Path],
    *,
    base: str | Path | None = None,
    method: str | None = None,
    density: float | None = None,
    weights: Sequence[float] | None = None,
    density_by: ByModule = (),
    weights_by: ByModule = (),
    arguments: Mapping[str, Any] | None = None,
    dtype: Dtype = "auto",
) -> dict[str, Any]:
    """Return the mergekit configuration that merges whole models as :func:`merge_models` does.

    Args:
        models, base, method, density, weights, density_by, weights_by, arguments, dtype: As in
            :func:`merge_models`.

    Raises:
        UsageError: mergekit has no such method, or the method has other arguments there.

    Examples:
        >>> import mergeforget as mf
        >>> config = mf.mergekit_config(["a", "b"], method="linear", weights=[0.5, 0.5])
        >>> config["merge_method"], [row["parameters"] for row in config["models"]]
        ('linear', [{'weight': 0.5}, {'weight': 0.5}])
    """
    from mergeforget.api.merge_request import candidate_of_models
    from mergeforget.merge.mergekit_config import to_config

    check_choice("dtype", dtype, get_args(Dtype))
    options: ModelMergeOptions = {
        "method": method, "density": density, "weights": weights, "density_by": density_by,
        "weights_by": weights_by, "arguments": arguments, "seed": None,
    }  # fmt: skip
    candidate = candidate_of_models(len(models), base, options)
    origin = None if base is None else str(base)
    return to_config(candidate, [str(model) for model in models], origin, dtype)


def _run_config(config: Path, out: Path, options: ModelMergeOptions) -> Written:
    """Run a configuration of mergekit, with this engine where possible."""
    from mergeforget.api.merge_request import refuse_given, refuse_unused
    from mergeforget.merge.checkpoint.full import Written
    from mergeforget.merge.inputs import check_free
    from mergeforget.merge.mergekit_bridge import THEIR_MARK, run_mergekit
    from mergeforget.merge.mergekit_config import read_config

    request = read_config(config)
    if isinstance(request, str):
        reason = f"to mergekit, which runs this configuration because {request}"
        refuse_given(options, RUNTIME, reason)
        check_free(out, [config], THEIR_MARK)
        run_mergekit(config, out, request)
        return Written(out, None, None)
    candidate = replace(request.candidate, seed=options["seed"] or 0)
    refuse_unused(candidate, {"seed": options["seed"]}, full=True)
    check_free(out, [config])
    how: Any = options | {"dtype": request.dtype}
    return _run_merge_models(request.models, out, request.base, candidate, how, strict=False)


def _run_merge_models(
    models: Sequence[str | Path],
    out: str | Path,
    base: str | Path | None,
    candidate: Candidate,
    options: ModelMergeOptions,
    strict: bool = True,
) -> Written:
    """Merge whole models with the settings of a candidate; ``options`` set how it is run."""
    from mergeforget.merge.checkpoint import full
    from mergeforget.merge.engine import MergeSettings
    from mergeforget.merge.inputs import check_free
    from mergeforget.model_files import locate

    check_free(Path(out), [Path(one) for one in [*models, *([base] if base else [])]])
    origin = locate(str(base)) if base else None
    folders = [locate(str(model)) for model in models]
    precision: Any = options["precision"] or MergeSettings.precision
    output = _output(options)
    same_base = options["same_base"]
    return full.merge_models(
        folders, origin, candidate, Path(out), output, precision, same_base=same_base, strict=strict
    )


def _output(options: FullMergeOptions | ModelMergeOptions) -> Output:
    from mergeforget.merge.checkpoint.tensor_jobs import Output as Writing

    settings: dict[str, Any] = {
        name: value for name, value in options.items() if name in names_of(OutputOptions)
    }
    settings |= {"threads": options["threads"], "device": options["device"]}
    return Writing(shard_bytes=settings.pop("shard_size"), **settings)


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
        model: Name or folder of a fine-tuned model, or folder of any adapter that PEFT can merge.
        base: Name or folder of the model that it was fine-tuned from.
        rank: Maximum rank of a module.
        svd: How differences are truncated.
        threads: Number of threads; 0 is one per core.
        out: Folder to write the adapter to.

    Raises:
        UsageError: The rank is not positive, or ``svd`` is unknown.
        InputError: The models have different tensors, or no difference that LoRA can represent.
    """
    from mergeforget.errors import UsageError
    from mergeforget.merge.extract import extract_lora as extract
    from mergeforget.merge.inputs import check_free
    from mergeforget.model_files import locate

    check_choice("svd", svd, ("fast", "exact"))
    if rank < 1:
        raise UsageError(f"The rank must be a positive integer, not {rank!r}.")
    if out is not None:
        check_free(Path(out), [Path(model), Path(base)])
    base_folder = locate(str(base))
    source = Path(model) if Path(model).is_dir() else locate(str(model))
    merged = extract(source, base_folder, rank, svd=svd, threads=threads, named=str(base))
    if out is not None:
        merged.save(out)
    return merged
