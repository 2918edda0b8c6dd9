"""LoRA on experts that a model keeps in one parameter (PEFT's ``target_parameters``).

PEFT stores the factors of all experts of a parameter in one pair: ``lora_A`` (experts * rank, in),
expert after expert, and ``lora_B`` (out, rank * experts), where the expert varies fastest. Here
each expert has factors of its own, under the name of PEFT's wrapper and the expert's number:
``model.layers.0.mlp.experts[2]``. Where several parameters of one module are adapted, PEFT nests
the wrappers: ``model.layers.0.mlp.experts.base_layer[2]`` is expert 2 of the inner one. Which
parameter a wrapper adapts follows from the order in which the model defines them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.errors import InputError

Array = NDArray[Any]
NESTED = ".base_layer"
EXPERT = re.compile(r"(?P<wrapper>.+)\[(?P<number>\d+)\]")


def expert_of(name: str) -> tuple[str, int] | None:
    """Return PEFT's wrapper and the number of the expert; None for a plain module.

    >>> expert_of("model.layers.0.mlp.experts.base_layer[2]")
    ('model.layers.0.mlp.experts.base_layer', 2)
    >>> expert_of("model.layers.0.mlp.up_proj")
    """
    match = EXPERT.fullmatch(name)
    return None if match is None else (match["wrapper"], int(match["number"]))


def module_of(wrapper: str) -> str:
    """Return the name of the module that holds a wrapper's parameter."""
    while wrapper.endswith(NESTED):
        wrapper = wrapper.removesuffix(NESTED)
    return wrapper


def targeted(wrapper: str, targets: Iterable[str]) -> list[str]:
    """Return the entries of ``target_parameters`` that may be parameters of a wrapper's module.

    >>> targeted("model.layers.0.mlp.experts", ["mlp.experts.down_proj", "self_attn.q_proj.weight"])
    ['mlp.experts.down_proj']
    """
    module = f".{module_of(wrapper)}"
    return sorted(t for t in targets if module.endswith(f".{t.rpartition('.')[0]}") or "." not in t)


def parameter_key(module: str, targets: Iterable[str]) -> str | None:
    """Return the full name of the matrix that PEFT adapts as a parameter of a module.

    ``rank_pattern`` and ``alpha_pattern`` match this name. None means LoRA on the module itself.

    >>> parameter_key("model.layers.0.mlp.gate", ["gate.weight", "experts.down_proj"])
    'model.layers.0.mlp.gate.weight'
    >>> parameter_key("model.layers.0.self_attn.q_proj", ["down_proj"])  # of any module
    """
    named = (t for t in targeted(module, targets) if "." in t or t == "weight")
    return next((f"{module}.{t.rpartition('.')[2]}" for t in named), None)


def is_wrapper(module: str, rows: int, rank: int, targets: Sequence[str]) -> bool:
    """Return whether PEFT wrapped a parameter of a module that holds several matrices.

    Args:
        rows: Rows of ``lora_A``.
        rank: Rank that the config states for the module or its weight.
    """
    named = targeted(module, targets)
    if module.endswith(NESTED) or not named:
        return bool(named)
    only_weight = all(t.rpartition(".")[2] == "weight" for t in named)
    return rows != rank or (not only_weight and any("." in t for t in named))


def split_factors(a: Array, b: Array, rank: int) -> list[tuple[Array, Array]]:
    """Return (rank, in) and (out, rank) of each expert, from PEFT's factors of all of them.

    >>> a, b = np.arange(6.0).reshape(6, 1), np.arange(6.0).reshape(1, 6)  # 3 experts, rank 2
    >>> [(x.ravel().tolist(), y.ravel().tolist()) for x, y in split_factors(a, b, 2)]
    [([0.0, 1.0], [0.0, 3.0]), ([2.0, 3.0], [1.0, 4.0]), ([4.0, 5.0], [2.0, 5.0])]
    """
    count = a.shape[0] // rank
    each_a = a.reshape(count, rank, a.shape[1])
    each_b = b.reshape(b.shape[0], rank, count)
    return [(each_a[i], np.ascontiguousarray(each_b[:, :, i])) for i in range(count)]


def join_factors(factors: Sequence[tuple[Array, Array]], rank: int) -> tuple[Array, Array]:
    """Return PEFT's factors of all experts; factors of a smaller rank are padded with zeros.

    >>> a, b = np.ones((6, 4)), np.ones((5, 6))
    >>> [x.shape for x in join_factors(split_factors(a, b, 2), 3)]
    [(9, 4), (5, 9)]
    """
    each_a = [np.pad(a, ((0, rank - len(a)), (0, 0))) for a, _ in factors]
    each_b = [np.pad(b, ((0, 0), (0, rank - b.shape[1]))) for _, b in factors]
    stacked = np.stack(each_b, axis=2)  # (out, rank, experts)
    return np.concatenate(each_a), stacked.reshape(len(stacked), -1)


def parameter_of(wrapper: str, held: Sequence[str], targets: Sequence[str]) -> str:
    """Return the short name of the parameter that a wrapper adapts.

    Args:
        held: Names of the module's own parameters, in the order of their definition. PEFT wraps
            them in that order, so the last one is in the outermost wrapper.
        targets: ``target_parameters`` of the adapter.

    Raises:
        InputError: The model has no such parameter.

    >>> held = ["gate_up_proj", "down_proj"]
    >>> parameter_of("mlp.experts.base_layer", held, ["experts.gate_up_proj", "experts.down_proj"])
    'gate_up_proj'
    """
    module = module_of(wrapper)
    depth = (len(wrapper) - len(module)) // len(NESTED)
    full = [f".{module}.{name}" for name in held]
    adapted = [n for n in full if any(n.endswith(f".{t}") for t in targets)]
    if depth >= len(adapted):
        raise InputError(
            f"The model has no parameter for {wrapper}: of {', '.join(targets)} its module has "
            f"{', '.join(n.rpartition('.')[2] for n in adapted) or 'none'}. The adapter was "
            "trained on another model."
        )
    return adapted[-1 - depth].rpartition(".")[2]


def by_wrapper(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of experts by wrapper, in the order of their numbers.

    Raises:
        InputError: An expert of a wrapper is missing.
    """
    wrappers: dict[str, dict[int, str]] = {}
    for name in names:
        if (place := expert_of(name)) is not None:
            wrappers.setdefault(place[0], {})[place[1]] = name
    for wrapper, experts in wrappers.items():
        if sorted(experts) != list(range(len(experts))):
            raise InputError(
                f"Only the experts {sorted(experts)} of {wrapper} are present. PEFT stores the "
                "factors of all experts of a parameter together, so none may be left out."
            )
    return {wrapper: [experts[i] for i in sorted(experts)] for wrapper, experts in wrappers.items()}
