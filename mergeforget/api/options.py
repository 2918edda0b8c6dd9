"""Options of the API functions, defined once; commands use the same names.

A function with ``**options: Unpack[MergeOptions]`` is decorated with ``@takes(MergeOptions)``. Its
signature then lists the options with their defaults, and it always receives all of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypedDict, TypeVar, cast, get_args, get_origin, get_type_hints

F = TypeVar("F", bound=Callable[..., Any])
SHARD_SIZE = 5 * 10**9  # maximum size of a weights file in bytes

ByModule = Mapping[str, Any] | Sequence[str]
Settings = Mapping[str, Any] | Iterable[str]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class MethodOptions(TypedDict, total=False):
    """Options of a merge of n tensors into one, for adapters and for whole models.

    Attributes:
        method: Name of a merge method (``mergeforget list methods``), or PEFT's name for it.
        density: Fraction of entries kept, in (0, 1]; 0.8 for methods that need one.
        weights: One multiplier per input.
        density_by: Densities of the modules whose name contains a filter, ``{"q_proj": 0.5}``.
        weights_by: Weights of such modules, ``{"q_proj": [1, 0.5]}``.
        seed: Random seed of methods that drop entries at random.
        precision: Precision of the computation, for any stored dtype.
        arguments: Further arguments of the method, ``{"sign": "count"}``.
        same_base: Merge even if the inputs name or contain different base models.
        threads: Number of threads; 0 is one per core. It does not change the result.
        device: Device of the computation: ``cpu`` (numpy), or a torch device such as ``cuda``.
    """

    method: str | None
    density: float | None
    weights: Sequence[float] | None
    density_by: ByModule
    weights_by: ByModule
    seed: int | None
    precision: Literal["float32", "float64"] | None
    arguments: Mapping[str, Any] | None
    same_base: bool
    threads: int
    device: str


class MergeOptions(MethodOptions, total=False):
    """Options of a merge of adapters.

    Attributes:
        space: ``factors`` merges A and B separately, ``delta`` merges the products ``B @ A``.
        rank: Rank of the result, in delta space; the largest input rank when omitted.
        modules: Modules to merge if the adapters have different ones.
        svd: How a delta is truncated to the rank; ``fast`` when omitted.
        data: Files of rows, for methods that use data.
        base: Model that runs on ``data``, and base of a whole model.
    """

    space: Literal["factors", "delta"] | None
    rank: int | None
    modules: Literal["same", "common", "all"]
    svd: Literal["fast", "exact"] | None
    data: Sequence[str | Path]
    base: str | Path | None


class OutputOptions(TypedDict, total=False):
    """Options for writing a whole model.

    Attributes:
        dtype: Dtype of the written weights; ``auto`` keeps the base's.
        max_memory: Maximum memory of the tensors being merged, in bytes; None is no limit.
        shard_size: Maximum size of a weights file, in bytes.
    """

    dtype: Dtype
    max_memory: int | None
    shard_size: int


class FullMergeOptions(MergeOptions, OutputOptions, total=False):
    """Options of a merge of adapters into a whole model."""


class ModelMergeOptions(MethodOptions, OutputOptions, total=False):
    """Options of a merge of whole models."""


class TrainingOptions(TypedDict, total=False):
    """Data and output of a training.

    Attributes:
        forget: Rows to forget: a file, a folder or a data set on the Hub; see docs/data.md.
        retain: Rows to keep.
        holdout: Rows of the same kind, never trained on: the non-members.
        limit: Maximum number of rows of each set, by whole documents.
        template: How prompts are rendered: raw (``none``), with the tokenizer's chat template, or
            ``auto`` (chat if there is a template); the recipe's when omitted.
        system_prompt: System message of a chat.
        turns: Assistant turns of a conversation that become rows; the recipe's when omitted.
        out: Run folder; ``runs/RECIPE-TIME`` when omitted.
        resume: Resume an interrupted run.
        settings: Recipe keys to change: ``{"pair.over.epochs": 3}`` or ``["pair.over.epochs=3"]``.
    """

    forget: str | Path | None
    retain: str | Path | None
    holdout: str | Path | None
    limit: int | None
    template: Literal["auto", "none", "chat"] | None
    system_prompt: str | None
    turns: Literal["last", "every"] | None
    out: str | Path | None
    resume: bool
    settings: Settings


DEFAULTS: dict[str, Any] = {  # defaults other than None
    "density_by": (),
    "weights_by": (),
    "same_base": False,
    "threads": 0,
    "modules": "same",
    "data": (),
    "dtype": "auto",
    "shard_size": SHARD_SIZE,
    "device": "cpu",
    "resume": False,
    "settings": (),
}


def names_of(table: type) -> list[str]:
    """Return the options of a table in order."""
    bases = [base for base in getattr(table, "__orig_bases__", ()) if base is not TypedDict]
    own_names = [n for n in table.__annotations__ if all(n not in b.__annotations__ for b in bases)]
    return [*dict.fromkeys(name for base in bases for name in names_of(base)), *own_names]


def accepts(table: type) -> Callable[[F], F]:
    """Pass every option of a table, including defaults, to a function with ``**options``.

    A name that is not in the table raises TypeError; a value that an option does not have,
    UsageError.
    """
    names = names_of(table)
    defaults = {name: DEFAULTS.get(name) for name in names}
    hints = get_type_hints(table)
    choices = {name: _choices(hints[name]) for name in names if _choices(hints[name])}

    def decorate(function: F) -> F:
        plain = inspect.signature(function)
        own_parameters = [p for p in plain.parameters.values() if p.kind is not p.VAR_KEYWORD]
        listed = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name],
                annotation=_text(table.__annotations__[name]),
            )
            for name in names
        ]  # fmt: skip
        known = {*names, *(p.name for p in own_parameters)}

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            for name in given.keys() - known:
                from mergeforget.errors import suggest

                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}."
                    f"{suggest(name, sorted(known))}"
                )
            for name, allowed in choices.items():
                check_choice(name, given.get(name, defaults[name]), allowed)
            return function(*args, **{**defaults, **given})

        signature = plain.replace(parameters=[*own_parameters, *listed])
        call.__signature__ = signature  # type: ignore[attr-defined]
        return cast("F", call)

    return decorate


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise UsageError if the value of an option is none of those allowed."""
    from mergeforget.errors import UsageError, suggest

    if not any(value is one or (isinstance(value, str) and value == one) for one in allowed):
        words = [one for one in allowed if one is not None]
        hint = suggest(value, words) if isinstance(value, str) else ""
        raise UsageError(f"{name} must be {' or '.join(words)}, not {value!r}.{hint}")


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return the values of a ``Literal``, and None if it is optional; empty for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = [_choices(part) for part in get_args(hint) if part is not NoneType]
    return (*parts[0], None) if len(parts) == 1 and len(get_args(hint)) == 2 and parts[0] else ()


def _text(annotation: Any) -> str:
    return str(getattr(annotation, "__forward_arg__", annotation))
