"""Select the target modules of a LoRA: linear layers that can be trained and merged."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from mergeforget.console import quiet, say
from mergeforget.errors import RecipeError

ALL_LINEAR = "all-linear"
UNUSABLE = {  # by model type; their layers bypass the module's forward: PEFT refuses most of them
    name: {"out_proj", "conv1d"}
    for name in ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
} | {name: {"correction_coefs"} for name in ("gemma3n", "gemma3n_text")}  # in training only


def lora_config(model: Any, **settings: Any) -> Any:
    """Return a PEFT ``LoraConfig`` whose targets fit the model.

    ``all-linear`` selects every linear layer except the output layer, as in PEFT. Experts that
    transformers stores in one parameter are trained only if ``target_parameters`` names them; a
    message reports those that are not. PEFT cannot apply dropout to a parameter, so
    ``lora_dropout`` is set to 0 with ``target_parameters``.

    Args:
        model: The bare causal language model.
        settings: Arguments of ``LoraConfig``; ``target_modules`` names modules or is
            ``all-linear``.

    Raises:
        RecipeError: ``target_modules`` names such experts, no linear layer is left, or the model
            has no parameter that ``target_parameters`` names.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> tiny = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                    num_attention_heads=2, vocab_size=16)
        >>> config = lora_config(LlamaForCausalLM(tiny), target_modules="all-linear", r=4)
        >>> sorted(name.rsplit(".", 1)[-1] for name in config.target_modules)
        ['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj']
    """
    from peft import LoraConfig

    targets = settings.pop("target_modules", ALL_LINEAR)
    experts = _expert_names(model)
    parameters = settings.get("target_parameters") or []
    if parameters:
        _check_parameters(model, parameters)
        if settings.get("lora_dropout"):
            say(
                f"lora_dropout {settings['lora_dropout']:g} is set to 0, since PEFT cannot apply "
                f"dropout to parameters ({', '.join(parameters)})."
            )
            settings["lora_dropout"] = 0.0
    else:
        settings["target_parameters"] = None
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        left_out = experts | UNUSABLE.get(str(getattr(model.config, "model_type", "")), set())
        layers = settings.pop("layers_to_transform", None)  # PEFT ignores it for whole names
        targets = _linear_layers(model, left_out, layers)
        not_reloaded = _not_reloaded(model, LoraConfig(target_modules=targets, **settings))
        targets = [name for name in targets if name not in not_reloaded]
        _say_what_stays(model, targets, parameters)
        if not_reloaded:
            say(f"{type(model).__name__}: {_lost(not_reloaded)} They are not trained.")
    else:
        _check_named(model, [targets] if isinstance(targets, str) else targets, experts)
        if not_reloaded := _not_reloaded(model, LoraConfig(target_modules=targets, **settings)):
            raise RecipeError(
                f"{type(model).__name__}: {_lost(not_reloaded)} Leave them out of "
                f"lora.target_modules, or write {ALL_LINEAR}, which does so."
            )
    return LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **settings)


def _not_reloaded(model: Any, config: Any) -> set[str]:
    """Return the targeted modules that PEFT renames when it loads an adapter.

    PEFT passes the names in an adapter's file through transformers' renaming of old checkpoints.
    Where a pattern of it matches a current name too, PEFT cannot load what it has saved.
    """
    import torch
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.transformers_weight_conversion import (
        convert_peft_adapter_state_dict_for_transformers as convert,
    )

    named = [name for name, _ in model.named_modules() if check_target_module_exists(config, name)]
    saved = {f"base_model.model.{name}.lora_A.weight": torch.full((1, 1), float(i), device="cpu")
             for i, name in enumerate(named)}  # fmt: skip
    with quiet():
        try:
            loaded = convert(model, config, dict(saved))
        except Exception:  # for example tensors of other shapes; the export compares logits
            return set()
    return {
        name for name, (key, value) in zip(named, saved.items(), strict=True)
        if key not in loaded or not torch.equal(loaded[key], value)
    }  # fmt: skip


def _lost(names: Collection[str]) -> str:
    kinds = sorted({".".join(name.rsplit(".", 2)[-2:]) for name in names})
    return (
        f"PEFT renames {', '.join(kinds)} when it loads an adapter, so that an adapter on them "
        "would not be loaded."
    )


def _linear_layers(model: Any, left_out: set[str], layers: Sequence[int] | None) -> list[str]:
    """Return the names of the linear layers except the output layer.

    Args:
        layers: Indices of the decoder layers; None selects every layer.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    layers_found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and "Router" not in type(module).__name__  # Llama 4's returns more than a product
        and module is not head
        and name.rpartition(".")[2] not in left_out
        and (layers is None or _layer_of(name) in layers)
    ]
    if not layers_found:
        raise RecipeError(
            f"{type(model).__name__} has no linear layer that LoRA can adapt. Train weights "
            "of the model itself, with `full` in the recipe."
        )
    return layers_found


def _layer_of(name: str) -> int | None:
    """Return the first number in a module's name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _say_what_stays(model: Any, targets: Sequence[str], parameters: Sequence[str]) -> None:
    """Report experts in one fused parameter, which ``all-linear`` does not include."""
    every = {".".join(name.rsplit(".", 2)[-2:]) for name in _expert_parameters(model)}
    experts = sorted(e for e in every if not any(f".{e}".endswith(f".{p}") for p in parameters))
    if experts:
        trained = sorted({name.rpartition(".")[2] for name in targets} | set(parameters))
        say(
            f"{type(model).__name__} keeps its experts in one parameter each. They are not trained "
            f"unless the recipe has lora.target_parameters: [{', '.join(experts)}]. Trained: "
            f"{', '.join(trained)}."
        )


def _expert_parameters(model: Any) -> list[str]:
    """Return the names of the parameters that hold one matrix per expert."""
    return [n for n, p in model.named_parameters()
            if p.ndim == 3 and min(p.shape) > 1 and "conv" not in n]  # fmt: skip


def _check_parameters(model: Any, parameters: Sequence[str]) -> None:
    matrices = [name for name, p in model.named_parameters() if p.ndim in (2, 3)]
    unknown = [p for p in parameters if not any(f".{name}".endswith(f".{p}") for name in matrices)]
    if unknown:
        known = sorted({".".join(n.rsplit(".", 2)[-2:]) for n in _expert_parameters(model)})
        raise RecipeError(
            f"lora.target_parameters names {', '.join(unknown)}, and {type(model).__name__} has no "
            f"such matrix. Its experts in one parameter: {', '.join(known) or 'none'}."
        )


def _check_named(model: Any, targets: Sequence[str], experts: set[str]) -> None:
    named = sorted({name for name in targets if name.rpartition(".")[2] in experts})
    if named:
        raise RecipeError(
            f"lora.target_modules names {', '.join(named)}, which {type(model).__name__} keeps as "
            "experts in one parameter. Name them in lora.target_parameters, for example "
            f"[experts.gate_up_proj, experts.down_proj], or write {ALL_LINEAR}, which leaves them "
            "out."
        )


def _expert_names(model: Any) -> set[str]:
    """Return the module names that PEFT redirects to the expert parameters of this model type."""
    from peft.utils import transformers_weight_conversion as conversion

    kinds: dict[str, str] = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    names: dict[str, dict[str, str]] = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    kind = kinds.get(str(getattr(model.config, "model_type", "")), "")
    mapping = names.get(kind, {})
    return set(mapping) | set(mapping.values()) if _has_experts(model) else set()


def _has_experts(model: Any) -> bool:
    return any(p.ndim == 3 and ".experts." in n for n, p in model.named_parameters())
