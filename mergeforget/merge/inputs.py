"""Check that adapters can be merged and that the output folder may be written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mergeforget.adapter import PREFIX, Adapter
from mergeforget.console import say
from mergeforget.errors import InputError, NumericError, UsageError
from mergeforget.expert_factors import expert_of
from mergeforget.model_files import HUB_ID, stored_template
from mergeforget.tensors import all_finite

Modules = Literal["same", "common", "all"]

BASE_LAYER = ".base_layer."  # PEFT's name of the module that LoRA wraps

CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
NEEDS_THE_BASE = {  # changes that can be merged exactly into the base, see ``changes``
    "use_dora": "DoRA rescales the base weight by its row norms",
    "lora_bias": "the biases of lora_B are not part of B @ A",
    "modules_to_save": "whole modules were trained, without B @ A",
}
NOT_PLAIN = {
    "trainable_token_indices": "token embeddings were trained, without B @ A",
    "layer_replication": "layers of the base are replicated",
    "use_qalora": "QALoRA pools its inputs",
    "alora_invocation_tokens": "aLoRA applies to some tokens only",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "kasa_config": "KaSA trains singular values",
    "monteclora_config": "MonteCLoRA has random factors",
    "arrow_config": "Arrow routes between adapters",
}
NO_PLAIN_LORA = ("alora_invocation_tokens", "layer_replication", "arrow_config")  # of NOT_PLAIN


def shared_tokenizer(adapters: Sequence[Adapter]) -> Path | None:
    """Return the folder with the tokenizer and chat template of the adapters, if they have one.

    None, with a warning, if their chat templates differ: a merge has one template.
    """
    folders = [a.tokenizer for a in adapters if a.tokenizer and stored_template(a.tokenizer)]
    different = [f for f in folders if stored_template(f) != stored_template(folders[0])]
    if different:
        say(
            f"Warning: the chat templates of {folders[0]} and {different[0]} differ, so the result "
            "has none of them. Copy the right chat_template.jinja into its folder."
        )
        return None
    return folders[0] if folders else None


def check_adapters(
    adapters: Sequence[Adapter], *, with_base: bool = False, same_base: bool = False
) -> None:
    """Raise an error for adapters that cannot be merged exactly.

    Args:
        with_base: The result is a whole model, so changes of the base other than
            ``scaling * B @ A`` are merged, too; see ``changes``.
        same_base: Assume that the adapters belong to one base, whatever names they record.

    Raises:
        InputError: The bases differ, or trained parts are not ``scaling * B @ A``.
        NumericError: A tensor contains NaN or Inf; the message names it.
    """
    if not adapters:
        raise UsageError("There is nothing to merge: name at least one adapter with --adapter.")
    for adapter in adapters:
        check_plain(adapter, with_base=with_base)
        check_finite(adapter)
    check_same_base(adapters, trusted=same_base)


def check_layers_only(adapters: Sequence[Adapter], method: str) -> None:
    """Raise UsageError for ``target_parameters``: experts have no module with inputs of its own."""
    for adapter in adapters:
        for name in adapter.deltas:
            if expert_of(name) or adapter.adapts_parameter(name):
                raise UsageError(
                    f"{method} measures the inputs or gradients of layers, and {adapter.name!r} "
                    f"adapts the parameter of {name} (target_parameters). Merge with a method that "
                    "needs no --data, for example ties."
                )


def check_same_base(adapters: Sequence[Adapter], *, trusted: bool = False) -> None:
    """Raise InputError if any two adapters belong to different bases.

    Two names are the same base if they differ only in case, if one is a quantised copy
    (``-bnb-4bit``), also of another organisation, or if both are folders with the same weights; see
    ``same_content``. Two revisions are two bases.

    Args:
        trusted: Compare only shapes.
    """
    by_base = {named_base(adapter): adapter for adapter in reversed(adapters) if adapter.base}
    for first, other in combinations(reversed(by_base.values()), 2):
        revisions = {str(one.config.get("revision") or "") for one in (first, other)} - {""}
        if not trusted and (len(revisions) > 1 or not _one_base(first.base, other.base)):
            raise InputError(
                f"{first.name!r} was trained on {named_base(first)} and {other.name!r} on "
                f"{named_base(other)}. A merge of adapters of different models is meaningless; "
                "train both on one base with `mergeforget train-pair`. If both names refer to the "
                "same model, add --same-base."
            )
    owners: dict[str, Adapter] = {}  # the first adapter of each module
    for other in adapters:
        for module, delta in other.deltas.items():
            first = owners.setdefault(module, other)
            if first.adapts_parameter(module) != other.adapts_parameter(module):
                one, two = (first, other) if first.adapts_parameter(module) else (other, first)
                raise InputError(
                    f"{one.name!r} adapts the parameter of {module} (target_parameters) and "
                    f"{two.name!r} the module, whose factors have another layout in models such as "
                    f"GPT-2. Convert {one.name!r} with `mergeforget extract-lora` first."
                )
            shape = first.deltas[module].shape
            if shape != delta.shape:
                raise InputError(
                    f"{module} is {shape} in {first.name!r} and {delta.shape} in {other.name!r}: "
                    "they were trained on different base models."
                )


def named_base(adapter: Adapter) -> str:
    """Return the name of an adapter's base, with its revision if the config has one."""
    revision = adapter.config.get("revision")
    return f"{adapter.base} (revision {revision})" if revision else adapter.base


def _one_base(one: str, other: str) -> bool:
    """Return whether two different names belong to one base."""
    folders = [Path(name) for name in (one, other)]
    if all(folder.is_dir() for folder in folders):
        from mergeforget.merge.checkpoint.compatible import same_content
        from mergeforget.merge.checkpoint.reader import open_checkpoint

        if folders[0].resolve() == folders[1].resolve():
            return True
        with open_checkpoint(folders[0]) as first, open_checkpoint(folders[1]) as second:
            return same_content(first, second)
    names = [_hub_name(folder) for folder in folders]
    plain = [QUANTISED.sub("", name) for name in names]
    if names == plain or not any(map(HUB_ID.fullmatch, names)):
        return plain[0] == plain[1]
    # one is a quantised copy, which is often published by another organisation
    return plain[0].rpartition("/")[2] == plain[1].rpartition("/")[2]


def _hub_name(folder: Path) -> str:
    """Return the name of a base in lower case; a folder of the hub's cache is named as on the hub.

    >>> _hub_name(Path("/cache/models--Meta--Llama/snapshots/1f3a"))
    'meta/llama'
    """
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1).lower()
    return folder.as_posix().lower()


QUANTISED = re.compile(r"([-_.](unsloth|bnb|dynamic|[48]bit|int[48]|awq|gptq|nf4|fp8|quantized))+$")


def check_plain(adapter: Adapter, *, with_base: bool = False, done: str = "merged") -> None:
    """Raise InputError if an adapter cannot be merged exactly; see ``check_adapters``.

    The frozen weight that PEFT stores with LoRA on an output layer is the base's, not a change.

    Args:
        done: The operation that is not possible, for the message.
    """
    config = adapter.config
    faults = [f"{key} is set: {reason}" for key, reason in NOT_PLAIN.items() if config.get(key)]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        faults.append(f"init_lora_weights is {start!r}, which changes the base's weights")
    never = bool(faults)
    if not with_base:
        faults += [
            f"{key} is set: {reason}" for key, reason in NEEDS_THE_BASE.items() if config.get(key)
        ]
        if config.get("bias") not in (None, "none"):
            faults.append(f"bias is {config['bias']!r}: biases of the base were trained")
        odd = [key for key in adapter.extras if not _is_frozen(adapter, key)]
        if odd and not faults:
            faults.append(f"it contains tensors other than lora_A and lora_B: {first_names(odd)}")
    if faults:
        alternative = (
            "No plain LoRA is equivalent, so `mergeforget extract-lora` cannot convert it."
            if any(config.get(key) for key in NO_PLAIN_LORA)
            else "Or convert it to a plain LoRA with `mergeforget extract-lora ADAPTER --base BASE "
            "--rank 32 --out OUT`."
            if never
            else "Merge into a whole model with --full, where it is folded exactly."
        )
        raise InputError(
            f"{adapter.name!r} cannot be {done} exactly: {'; '.join(faults)}. Train plain LoRA "
            f"adapters with `mergeforget train-pair`. {alternative}"
        )


def _is_frozen(adapter: Adapter, key: str) -> bool:
    """Return whether a tensor is the base weight of a module with lora_A and lora_B."""
    module, base_layer, _ = key.removeprefix(PREFIX).partition(BASE_LAYER)
    return bool(base_layer) and module in adapter.deltas


DIVERGED = (
    "The training diverged: use an earlier snapshot, or train again with a lower learning rate."
)


def check_finite(adapter: Adapter, cause: str = DIVERGED) -> None:
    """Raise NumericError for NaN or Inf, with the names of adapter and tensor.

    Args:
        cause: Likely cause and remedy, for the message.
    """
    tensors = dict(adapter.extras)
    for module, delta in adapter.deltas.items():
        tensors |= {f"{module}.lora_A": delta.a, f"{module}.lora_B": delta.b}
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            value = "NaN" if np.isnan(tensor).any() else "Inf"
            raise NumericError(f"{adapter.name!r} contains {value} in {name}. {cause}")


def modules_to_merge(adapters: Sequence[Adapter], modules: Modules) -> list[str]:
    """Return the sorted names of the modules to merge.

    Args:
        modules: ``same`` requires equal sets, ``common`` selects those that every adapter has,
            ``all`` merges each module from the adapters that have it, as PEFT does.

    Raises:
        InputError: The sets differ (``same``), or have nothing in common.
    """
    return shared([(adapter.name, adapter.deltas) for adapter in adapters], modules)


def shared(owners: Sequence[tuple[str, Mapping[str, Any]]], modules: Modules) -> list[str]:
    """Compute ``modules_to_merge`` for any (name, mapping) pairs, by module or by tensor."""
    all_names = set().union(*(names for _, names in owners))
    common = all_names.intersection(*(names for _, names in owners))
    if modules == "all" or common == all_names:
        return sorted(all_names)
    if modules == "same":
        lacking, names = next(one for one in owners if one[1].keys() != all_names)
        missing = sorted(all_names - names.keys())
        owner = next(name for name, other_names in owners if missing[0] in other_names)
        common_option = f"the {len(common)} they share with --modules common, or " if common else ""
        raise InputError(
            f"Cannot merge: {len(missing)} modules of {owner!r} are missing from {lacking!r}, for "
            f"example {missing[0]}. The adapters were trained with different target_modules. Train "
            "both from one recipe with `mergeforget train-pair`, or merge "
            f"{common_option}each from the adapters that have it with --modules all."
        )
    if not common:
        raise InputError("The adapters have no module in common.")
    return sorted(common)


def merged_config(adapters: Sequence[Adapter], modules: Sequence[str]) -> dict[str, Any]:
    """Return the config of the result: that of the first adapter, with the merged modules."""
    config = dict(adapters[0].config)
    config["base_model_name_or_path"] = next((a.base for a in adapters if a.base), None)
    experts = any(expert_of(module) is not None for module in modules)
    tied = any(adapter.config.get("ensure_weight_tying") for adapter in adapters)
    if (
        tied
        or set(modules) != set(adapters[0].deltas)
        or any(a.deltas.keys() != adapters[0].deltas.keys() for a in adapters)
    ):
        plain = sorted(module for module in modules if expert_of(module) is None)
        parameters = [m for m in plain if any(a.adapts_parameter(m) for a in adapters)]
        # whole names, so no other module matches
        config["target_modules"] = [module for module in plain if module not in parameters]
        config["exclude_modules"] = config["layers_to_transform"] = config["layers_pattern"] = None
        config["target_parameters"] = [f"{module}.weight" for module in parameters] or None
    if tied:  # PEFT would load the output layer's factors into the embedding
        config["ensure_weight_tying"] = False
    if experts:
        config["target_parameters"] = _target_parameters(adapters)
    config["init_lora_weights"] = True
    return config


def _target_parameters(adapters: Sequence[Adapter]) -> list[str]:
    """Return the common ``target_parameters``, which determine how PEFT nests its wrappers."""
    parameter_lists = [
        sorted(adapter.config.get("target_parameters") or []) for adapter in adapters
    ]
    for adapter, parameters in zip(adapters[1:], parameter_lists[1:], strict=True):
        if parameters != parameter_lists[0]:
            raise InputError(
                f"{adapters[0].name!r} was trained on the parameters {parameter_lists[0]} and "
                f"{adapter.name!r} on {parameters}. PEFT needs one list of target_parameters. "
                "Train both with the same, or merge into a whole model with --full."
            )
    return parameter_lists[0]


def first_names(names: Iterable[str], limit: int = 3) -> str:
    """Return the first few names, and the number of further ones."""
    listed = sorted(names)
    ending = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + ending


MADE = "candidate.json"  # file of a folder that a merge wrote and may replace


def check_not_an_input(out: Path, inputs: Iterable[Path]) -> None:
    """Raise InputError if ``out`` is an input, or contains one."""
    target = out.resolve()
    for path in inputs:
        source = path.resolve()
        if target in (source, *source.parents) and source.exists():
            relation = "is read" if target == source else f"contains {path}, which is read"
            raise InputError(
                f"{out} {relation}, and the output would replace it. Choose another folder with "
                "--out."
            )


def check_free(out: Path, inputs: Iterable[Path], mark: str = MADE, step: str = "merge") -> None:
    """Raise InputError if ``out`` contains an input, or files that no merge wrote.

    Args:
        mark: File that identifies an earlier result, which may be replaced.
        step: Step that writes such a result, for the message.
    """
    check_not_an_input(out, inputs)
    if out.is_file():
        raise InputError(f"{out} is a file. Choose another path with --out.")
    file_names = [path.name for path in out.iterdir()] if out.is_dir() else []
    if file_names and mark not in file_names:
        raise InputError(
            f"{out} contains files that no {step} wrote: {first_names(file_names)}. Choose another "
            "folder with --out, or an empty one."
        )
