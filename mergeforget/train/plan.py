"""Estimate batch, steps, memory and time of a training before any weight is loaded.

The model is built from its configuration on meta tensors and run once forward and backward. The
estimate counts the bytes that autograd saves and the matrix products, so it needs no formula per
architecture.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from mergeforget.console import quiet
from mergeforget.data.templating import template_of
from mergeforget.data.tokens import Encoded
from mergeforget.model_files import locate
from mergeforget.models import default_device, dtype_for, load_tokenizer
from mergeforget.recipe import ModelSpec, Recipe
from mergeforget.train.lora_targets import lora_config
from mergeforget.train.memory import (
    free_bytes,
    kept_by_autograd,
    lengths,
    logits_bytes,
    optimizer_bytes,
    rows_of_set,
    tokens_at_once,
)
from mergeforget.train.objective import any_needs, reads_of
from mergeforget.train.pair import choose_trained
from mergeforget.train.prompt_forms import other_forms
from mergeforget.train.run_rows import add_twins, read_data
from mergeforget.train.samplers import (
    AlternatingSampler,
    BySetSampler,
    ChunkedSampler,
    LayeredSampler,
)
from mergeforget.train.tokenize import encode_sets
from mergeforget.train_config import Reinforce, Training

FUSED = "mergeforget-fused"
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Plan:
    """Estimated cost of one training.

    Attributes:
        rows: Rows of each set, after the transforms.
        epoch_tokens: Tokens of the forget set without padding.
        effective_batch: Forget rows per optimiser step; with alternating batches, per step on
            forget rows.
        steps_per_epoch, steps, warmup_steps: Optimiser steps; with ``until`` at most.
        expected_steps: Steps that ``seconds`` refers to; with ``until`` those that trainings of
            small sets took.
        parameters, trained: Parameters of the model, and trained parameters.
        memory: Bytes by use, for the largest micro-batch; ``total`` is their sum.
        gradient_checkpointing: Whether layers are recomputed; with ``auto``, if the free memory
            would not suffice otherwise.
        seconds: Lower bound of the time, at the speed of one large matrix product.
        device: Device that memory and seconds refer to.
    """

    rows: dict[str, int]
    epoch_tokens: int
    effective_batch: int
    steps_per_epoch: int
    steps: int
    expected_steps: int
    warmup_steps: int
    parameters: int
    trained: int
    memory: dict[str, int]
    gradient_checkpointing: bool
    seconds: float
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Pass:
    """Cost of one micro-batch: matrix-product FLOPs and bytes kept for the backward pass."""

    forward_flops: int
    backward_flops: int
    kept_bytes: int


def plan(
    spec: ModelSpec, encoded: Mapping[str, Sequence[Encoded]], training: Training, flops: float
) -> Plan:
    """Estimate the cost of a training on tokenised sets.

    Args:
        encoded: The sets that the objective reads, ``forget`` first.
        flops: FLOPs per second of this machine, see ``matrix_speed``.
    """
    device = default_device()
    model = empty_model(spec, training, device)
    trained_weights = {p for p in model.parameters() if p.requires_grad}
    trained = sum(p.numel() for p in trained_weights)
    forget = len(encoded["forget"])
    sizes = {name: len(encoded[name]) for name in reads_of(training.objective)}
    folds = [one.fold for one in encoded["forget"]]
    steps = count_steps(training, {"forget": forget} | sizes, folds)
    tokens = tokens_at_once(encoded, training)
    checkpointing = training.gradient_checkpointing is True
    longest = one_pass(model, tokens, checkpointing)
    memory = _memory(model, trained_weights, spec, training, longest.kept_bytes)
    if training.gradient_checkpointing == "auto" and memory["total"] > free_bytes(device):
        checkpointing = True
        longest = one_pass(model, tokens, checkpointing)
        memory = _memory(model, trained_weights, spec, training, longest.kept_bytes)
    each_epoch = -(-forget // (training.batch_size * training.accumulation(forget)))
    if training.until is None:
        each_epoch = steps // training.epochs
    own = sum(one.form == 0 for one in encoded["forget"])
    expected = training.expected_steps(own) if training.until else steps
    return Plan(
        rows={name: len(rows) for name, rows in encoded.items()},
        epoch_tokens=sum(lengths(encoded["forget"])),
        effective_batch=min(forget, training.batch_size * training.accumulation(forget)),
        steps_per_epoch=each_epoch,
        steps=steps,
        expected_steps=expected,
        warmup_steps=round(training.warmup_epochs * each_epoch),
        parameters=sum(p.numel() for p in model.parameters()) - (0 if training.full else trained),
        trained=trained,
        memory=memory,
        gradient_checkpointing=checkpointing,
        seconds=_all_flops(model, encoded, training, expected, checkpointing) / flops,
        device=device,
    )


def count_steps(training: Training, sizes: Mapping[str, int], folds: Sequence[int] = ()) -> int:
    """Return the optimiser steps of a training, from the rows of each set that it reads.

    Args:
        folds: Fold of each forget row, in layered unlearning.
    """
    rows = sizes["forget"]
    parts = training.accumulation(rows)
    if training.until:
        return training.most_steps(rows)
    if training.folds:
        size = training.batch_size, parts
        return sum(LayeredSampler(folds, training.epochs, *size, training.seed).chunk_steps)
    if training.chunk_rows:
        size = training.batch_size, parts
        return sum(
            ChunkedSampler(
                rows, training.chunk_rows, training.epochs, *size, training.seed
            ).chunk_steps
        )
    if training.batches == "by_set":
        by_set = BySetSampler(sizes, training.batch_size, parts, training.seed)
        return training.epochs * len(by_set) // parts
    if training.batches == "alternating":
        order = AlternatingSampler(rows, training.batch_size, parts, training.seed)
        return training.epochs * len(order) // parts
    return training.epochs * -(-rows // (training.batch_size * parts))


def empty_model(spec: ModelSpec, training: Training, device: str) -> Any:
    """Build the model with its trained parameters on meta tensors, from ``config.json`` alone."""
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    path = locate(spec.name, trust_remote_code=spec.trust_remote_code)
    trust = spec.trust_remote_code
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust)
    ALL_ATTENTION_FUNCTIONS.register(FUSED, _fused_attention)
    with torch.device("meta"), quiet(), warnings.catch_warnings(action="ignore"):
        model: Any = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype_for(spec, device),
            trust_remote_code=trust,
            attn_implementation=FUSED,
        )
        if training.full:
            choose_trained(model, training.full)
        else:
            lora = training.lora.model_dump(exclude_none=True)
            model = get_peft_model(model, lora_config(model, **lora))
    return model.train()


def one_pass(model: Any, tokens: int, checkpointing: bool) -> Pass:
    """Count FLOPs and kept bytes of one forward and backward pass on meta tensors."""
    if checkpointing and not model.is_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    whole = torch.zeros(
        1, 1, tokens, tokens, dtype=model.dtype, device="meta"
    )  # attends everywhere
    counted = {
        _FLASH: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        _FLASH_BACKWARD: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v),
    }
    with (
        FlopCounterMode(display=False, custom_mapping=counted) as forward,
        kept_by_autograd(model) as kept,
    ):
        hidden = model(
            input_ids=ids, attention_mask=whole, use_cache=False, logits_to_keep=1
        ).logits
    with FlopCounterMode(display=False, custom_mapping=counted) as backward:
        hidden.sum().backward()
    return Pass(forward.get_total_flops(), backward.get_total_flops(), sum(kept.values()))


def _fused_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Use fused attention on meta tensors, which would otherwise materialise the score matrix."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    dropout, scale = more.get("dropout", 0.0), more.get("scaling")
    out = _FLASH(query, key, value, dropout, False, attn_mask=mask, scale=scale)[0]
    return out.transpose(1, 2).contiguous(), None


def matrix_speed(device: str, seconds: float = 0.3) -> float:
    """Measure the FLOPs per second of a large matrix product on this machine."""
    dtype = dtype_for(ModelSpec(), device)
    size = 4096 if device.startswith("cuda") else 768
    a = torch.ones(size, size, dtype=dtype, device=device)
    torch.mm(a, a)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product = torch.mm(a, a)
        product[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _all_flops(
    model: Any,
    encoded: Mapping[str, Sequence[Encoded]],
    training: Training,
    steps: int,
    checkpointing: bool,
) -> float:
    """Return the FLOPs of a training; cached reference outputs are computed once per set.

    With ``until`` the checks are included: each passes the sets once, and the forget rows again.
    """
    total = 0.0
    forget = len(encoded["forget"])
    seen = sum((training.folds or 1) - one.fold for one in encoded["forget"])  # by every stage
    for name, reads in reads_of(training.objective).items():
        sizes = lengths(encoded[name])
        row = one_pass(model, round(sum(sizes) / len(sizes)), checkpointing)
        each_epoch = seen * rows_of_set(name, training)
        runs = training.epochs * (len(sizes) if training.batches == "by_set" else each_epoch)
        if training.until:
            batch = training.batch_size * training.accumulation(forget)
            runs = steps * batch * rows_of_set(name, training)
            checks = steps // training.steps_between_checks(forget) + 1
            total += checks * len(sizes) * (2 if name == "forget" else 1) * row.forward_flops
        reference_runs = 0 if not reads.reference else len(sizes) if reads.kept else runs
        total += (
            runs * (row.forward_flops + row.backward_flops) + reference_runs * row.forward_flops
        )
        if name == "forget" and any_needs(training.objective, "reinforced"):
            more = forget * (training.reinforce or Reinforce()).epochs
            total += more * (row.forward_flops + row.backward_flops) + forget * row.forward_flops
    return total


def _memory(
    model: Any, trained_weights: set[Tensor], spec: ModelSpec, training: Training, kept: int
) -> dict[str, int]:
    """Return the bytes of memory by use."""
    weights = sum(
        p.numel() * (4 if p in trained_weights else p.element_size()) for p in model.parameters()
    )
    if spec.quantization:
        weights -= round(_saved_by_four_bits(model, trained_weights))
    float32_bytes = sum(4 * p.numel() for p in trained_weights)  # float32 for any dtype of the base
    vocabulary = model.get_output_embeddings().weight.shape[0]
    found = {
        "weights": weights,
        "gradients": float32_bytes,
        "optimizer": optimizer_bytes(training, list(trained_weights)),
        "activations": kept,
        "logits": logits_bytes(vocabulary),
    }
    return found | {"total": sum(found.values())}


def _saved_by_four_bits(model: Any, trained_weights: set[Tensor]) -> float:
    """Return the bytes saved by quantising the linear layers except the output layer to 4 bits.

    A weight takes 4.127 bits: an 8-bit scale per 64 weights, and a 32-bit scale per 256 scales.
    """
    head = model.get_output_embeddings()
    layers = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    frozen = (m.weight for m in layers if m.weight not in trained_weights)
    return sum(w.numel() * (w.element_size() - 4.127 / 8) for w in frozen)


def plan_recipe(recipe: Recipe, flops: float) -> dict[str, Plan]:
    """Estimate every training of a recipe with ``plan``, by its key in the recipe.

    Raises:
        RecipeError: The recipe names no data.
        InputError: A file or the model's configuration cannot be read.
    """
    tokenizer = load_tokenizer(recipe.model)
    rows = add_twins(read_data(recipe.data), recipe)
    template = template_of(tokenizer, recipe.data)
    trainings = recipe.trainings()
    if recipe.pair is not None and recipe.pair.trajectory == "shared":
        del trainings["pair.under"]  # a snapshot of over
    plans = {}
    for key, training in trainings.items():
        sets = {"forget": rows.forget, "retain": rows.retain}
        if "held" in reads_of(training.objective):
            sets["held"] = rows.held or rows.holdout  # without twins some of the holdout are held
        encoded = encode_sets(tokenizer, sets, training, template)
        other_forms(tokenizer, sets, training, template, encoded)
        plans[key] = plan(recipe.model, encoded, training, flops)
    return plans
