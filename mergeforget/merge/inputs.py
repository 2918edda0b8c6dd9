"""Checks before a merge: the adapters fit each other, and the output folder may be written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mergeforget.adapter import PREFIX, Adapter
from mergeforget.errors import InputError, NumericError, UsageError
from mergeforget.expert_factors import expert_of
from mergeforget.tensors import all_finite

Modules = Literal["same", "common", "all"]

BASE_LAYER = ".base_layer."  # in PEFT's names: the module that LoRA is beside

CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
NEEDS_THE_BASE = {  # exact changes of the base's tensors, see ``changes``
    "use_dora": "DoRA rescales the base weight by its row norms",
    "lora_bias": "the biases of lora_B are no part of B @ A",
    "modules_to_save": "whole modules were trained, which have no B @ A",
}
NOT_PLAIN = {
    "trainable_token_indices": "token embeddings were trained, which have no B @ A",
    "layer_replication": "layers of the base are replicated",
    "use_qalora": "QALoRA pools its inputs",
    "alora_invocation_tokens": "aLoRA acts on some tokens only",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "kasa_config": "KaSA has singular values of its own",
    "monteclora_config": "MonteCLoRA has random factors of its own",
    "arrow_config": "Arrow routes between adapters",
    "velora_config": "VeLoRA compresses its inputs",
}
NO_PLAIN_LORA = ("alora_invocation_tokens", "layer_replication", "arrow_config")  # of NOT_PLAIN


def check_adapters(
    adapters: Sequence[Adapter], *, with_base: bool = False, same_base: bool = False
) -> None:
    """Raise for adapters that cannot be merged exactly.

    Args:
        with_base: the result is a whole model, so that what changes the base otherwise than by
            ``scaling * B @ A`` may be folded, see ``changes``.
        same_base: Trust that the adapters belong to one base, whatever they name.

    Raises:
        InputError: another base, or trained parts that are not ``scaling * B @ A``.
        NumericError: NaN or Inf, with adapter and tensor.
    """
    if not adapters:
        raise UsageError("There is nothing to merge: name at least one adapter with --adapter.")
    for adapter in adapters:
        check_plain(adapter, with_base=with_base)
        check_finite(adapter)
    check_same_base(adapters, trusted=same_base)


def check_no_experts(adapters: Sequence[Adapter], method: str) -> None:
    """Raise UsageError for experts in one parameter: no module has their inputs or outputs."""
    experts = [name for adapter in adapters for name in adapter.deltas if expert_of(name)]
    if experts:
        raise UsageError(
            f"{method} measures the inputs or gradients of layers, and {experts[0]} is an expert "
            "in a parameter that holds all experts. Merge with a method that needs no --data, for "
            "example ties."
        )


def check_same_base(adapters: Sequence[Adapter], *, trusted: bool = False) -> None:
    """Raise InputError where adapters belong to different bases.

    Two names mean the same base where they differ in case, or where one is a quantised copy
    (``-bnb-4bit``), or where both are folders with the same weights, see ``same_content``.

    Args:
        trusted: Compare shapes only.
    """
    first = adapters[0]
    for other in adapters[1:]:
        if not trusted and first.base and other.base and not _one_base(first.base, other.base):
            raise InputError(
                f"{first.name!r} was trained on {first.base} and {other.name!r} on {other.base}. "
                "Merging adapters of different models has no meaning; train both on one base with "
                "`mergeforget train-pair`. If both names mean the same model, add --same-base."
            )
        for module in first.deltas.keys() & other.deltas.keys():
            here, there = first.deltas[module].shape, other.deltas[module].shape
            if here != there:
                raise InputError(
                    f"{module} is {here} in {first.name!r} and {there} in {other.name!r}: they "
                    "were trained on different base models."
                )


def _one_base(one: str, other: str) -> bool:
    if one == other:
        return True
    folders = [Path(name) for name in (one, other)]
    if all(folder.is_dir() for folder in folders):
        from mergeforget.merge.checkpoint.compatible import same_content
        from mergeforget.merge.checkpoint.reader import open_checkpoint

        if folders[0].resolve() == folders[1].resolve():
            return True
        with open_checkpoint(folders[0]) as first, open_checkpoint(folders[1]) as second:
            return same_content(first, second)
    names = [QUANTISED.sub("", folder.name.lower()) for folder in folders]
    return names[0] == names[1]


QUANTISED = re.compile(r"([-_.](unsloth|bnb|dynamic|[48]bit|int[48]|awq|gptq|nf4|fp8|quantized))+$")


def check_plain(adapter: Adapter, *, with_base: bool = False, done: str = "merged") -> None:
    """Raise InputError where an adapter cannot be merged exactly, see ``check_adapters``.

    The frozen weight that PEFT stores beside LoRA on an output layer is the base's, and no change.

    Args:
        done: what cannot be done with it, for the message.
    """
    config = adapter.config
    faults = [f"{key} is set: {why}" for key, why in NOT_PLAIN.items() if config.get(key)]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        faults.append(f"init_lora_weights is {start!r}, which changes the base's weights")
    never = bool(faults)
    if not with_base:
        faults += [f"{key} is set: {why}" for key, why in NEEDS_THE_BASE.items() if config.get(key)]
        if config.get("bias") not in (None, "none"):
            faults.append(f"bias is {config['bias']!r}: biases of the base were trained")
        odd = [key for key in adapter.extras if not _is_frozen(adapter, key)]
        if odd and not faults:
            faults.append(f"it holds tensors that are no lora_A or lora_B: {some(odd)}")
    if faults:
        way = (
            "No plain LoRA does the same, so `mergeforget extract-lora` cannot convert it."
            if any(config.get(key) for key in NO_PLAIN_LORA)
            else "Or convert it to a plain LoRA with `mergeforget extract-lora ADAPTER --base BASE "
            "--rank 32 --out OUT`."
            if never
            else "Merge into a whole model with --full, where it is folded exactly."
        )
        raise InputError(
            f"{adapter.name!r} cannot be {done} exactly: {'; '.join(faults)}. Train plain LoRA "
            f"adapters with `mergeforget train-pair`. {way}"
        )


def _is_frozen(adapter: Adapter, key: str) -> bool:
    """Whether a tensor is the base's own of a module that has lora_A and lora_B."""
    module, base_layer, _ = key.removeprefix(PREFIX).partition(BASE_LAYER)
    return bool(base_layer) and module in adapter.deltas


DIVERGED = (
    "The training diverged: take an earlier snapshot, or train again at a lower learning rate."
)


def check_finite(adapter: Adapter, cause: str = DIVERGED) -> None:
    """Raise NumericError for NaN or Inf, naming adapter and tensor.

    Args:
        cause: Why it may be so and what to do, for the message.
    """
    tensors = dict(adapter.extras)
    for module, delta in adapter.deltas.items():
        tensors |= {f"{module}.lora_A": delta.a, f"{module}.lora_B": delta.b}
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            what = "NaN" if np.isnan(tensor).any() else "Inf"
            raise NumericError(f"{adapter.name!r} holds {what} in {name}. {cause}")


def modules_to_merge(adapters: Sequence[Adapter], modules: Modules) -> list[str]:
    """Names of the modules to merge, sorted.

    Args:
        modules: ``same`` wants equal sets, ``common`` takes those that every adapter has, ``all``
            merges each module from the adapters that have it, as PEFT does.

    Raises:
        InputError: the sets differ (``same``), or nothing is common.
    """
    return shared([(adapter.name, adapter.deltas) for adapter in adapters], modules)


def shared(owners: Sequence[tuple[str, Mapping[str, Any]]], modules: Modules) -> list[str]:
    """``modules_to_merge`` for any (name, mapping) pairs, by module or by tensor."""
    every = set().union(*(held for _, held in owners))
    common = every.intersection(*(held for _, held in owners))
    if modules == "all" or common == every:
        return sorted(every)
    if modules == "same":
        lacking, held = next(one for one in owners if one[1].keys() != every)
        missing = sorted(every - held.keys())
        owner = next(name for name, theirs in owners if missing[0] in theirs)
        rest = f"the {len(common)} they share with --modules common, or " if common else ""
        raise InputError(
            f"Cannot merge: {len(missing)} modules of {owner!r} are missing from {lacking!r}, for "
            f"example {missing[0]}. The adapters were trained with different target_modules. Train "
            "both from one recipe with `mergeforget train-pair`, or merge "
            f"{rest}each from the adapters that have it with --modules all."
        )
    if not common:
        raise InputError("The adapters have no module in common.")
    return sorted(common)


def merged_config(adapters: Sequence[Adapter], modules: Sequence[str]) -> dict[str, Any]:
    """The config of the result: the first adapter's, with the modules that were merged."""
    config = dict(adapters[0].config)
    experts = any(expert_of(module) is not None for module in modules)
    if set(modules) != set(adapters[0].deltas) or any(
        a.deltas.keys() != adapters[0].deltas.keys() for a in adapters
    ):
        named = [module for module in modules if expert_of(module) is None]
        config["target_modules"] = sorted(named)  # names match whole, so nothing else is hit
        config["exclude_modules"] = config["layers_to_transform"] = config["layers_pattern"] = None
        config["target_parameters"] = None
    if experts:
        config["target_parameters"] = _target_parameters(adapters)
    config["init_lora_weights"] = True
    return config


def _target_parameters(adapters: Sequence[Adapter]) -> list[str]:
    """The one set of ``target_parameters``, from which PEFT derives how wrappers are nested."""
    every = [sorted(adapter.config.get("target_parameters") or []) for adapter in adapters]
    for adapter, own in zip(adapters[1:], every[1:], strict=True):
        if own != every[0]:
            raise InputError(
                f"{adapters[0].name!r} was trained on the parameters {every[0]} and "
                f"{adapter.name!r} on {own}. PEFT needs one list of target_parameters. Train both "
                "with the same, or merge into a whole model with --full."
            )
    return every[0]


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


MADE = "candidate.json"  # a folder that has it was merged here, and may be merged again


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Raise InputError where ``out`` is an input, or contains one."""
    place = out.resolve()
    for path in inputs:
        read = path.resolve()
        if place in (read, *read.parents) and read.exists():
            what = "is read" if place == read else f"holds {path}, which is read"
            raise InputError(
                f"{out} {what}, and the output would replace it. Choose another place with --out."
            )


def check_free(
    out: Path, inputs: Iterable[Path], mark: str = MADE, made: str = "merged here"
) -> None:
    """Raise InputError where ``out`` contains an input, or files from elsewhere.

    Args:
        mark: the file by which an earlier result is known, which may be replaced.
        made: how such a result came to be, for the message.
    """
    check_apart(out, inputs)
    if out.is_file():
        raise InputError(f"{out} is a file. Choose another place with --out.")
    held = [path.name for path in out.iterdir()] if out.is_dir() else []
    if held and mark not in held:
        raise InputError(
            f"{out} holds something that was not {made}: {some(held)}. Choose another place with "
            "--out, or an empty one."
        )
