"""Measure the memory of a training step, and fit its passes into the free memory.

The recipe sets the number of rows per optimiser step. Their division into passes through the
model does not change the result, so it depends on the memory of the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergeforget.chunked_logprobs import CHUNK
from mergeforget.console import say
from mergeforget.data.tokens import Encoded
from mergeforget.distributed import gather
from mergeforget.train.objective import reads_of
from mergeforget.train.precision import autocast
from mergeforget.train_config import Training

CPU_TOKENS = 512  # matrix products of a core are at full speed; a longer pass costs only memory
MOST_TOKENS = {"flash": 32768, "flex": 16384}  # by prefix of the attention implementation
MASKED_TOKENS = 4096  # the cost of attention with a dense mask is quadratic in the pass
SHARE = 0.7  # share of the free memory for activations; kernels need workspace


@dataclass(frozen=True)
class Passes:
    """Settings for the passes of a training.

    Attributes:
        tokens: Maximum number of tokens of a pass over several micro-batches.
        checkpointing: Whether layers are recomputed in the backward pass.
    """

    tokens: int
    checkpointing: bool


def fit_passes(
    model: Any,
    encoded: Mapping[str, Sequence[Encoded]],
    training: Training,
    stage: str = "",
    *,
    trainings: int = 1,
) -> Passes:
    """Choose the size of a pass and gradient checkpointing by the free memory.

    Gradient checkpointing follows the recipe; with ``auto`` it is enabled if the largest
    micro-batch would not fit without it. All ranks make the same choice.

    Args:
        model: The model with its trained weights, on its device.
        encoded: The sets that the objective reads.
        stage: Name of the training, for the message.
        trainings: Number of trainings whose passes are joined and share the memory.
    """
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    largest = tokens_at_once(encoded, training)
    checkpointing = training.gradient_checkpointing
    room = SHARE * (free_bytes(device) - reserved_bytes(model, training) * trainings) / trainings
    if checkpointing == "auto" and not on_gpu and largest * _roughly(model) < room:
        checkpointing = False  # a small model needs no measurement
    if checkpointing == "auto":
        needed = largest * bytes_per_token(model, checkpointing=False)
        checkpointing = any(gather(needed > room))
        if checkpointing:
            say(
                f"{stage}: gradient checkpointing is on: the largest micro-batch ({largest} "
                f"tokens) would keep {needed / 1e9:.1f} GB, and {max(room, 0) / 1e9:.1f} GB are "
                "free."
            )
    if training.tokens_per_pass != "auto":
        return Passes(training.tokens_per_pass, checkpointing)
    if not on_gpu:
        return Passes(CPU_TOKENS, checkpointing)
    fitting = int(room / bytes_per_token(model, checkpointing=checkpointing))
    attention = str(model.config._attn_implementation)
    most = next((n for k, n in MOST_TOKENS.items() if attention.startswith(k)), MASKED_TOKENS)
    return Passes(max(1, min(gather(min(fitting, most // trainings)))), checkpointing)


def free_bytes(device: torch.device | str) -> int:
    """Return the free memory of the GPU, or of the machine, in bytes."""
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + cached)
    import psutil

    return int(psutil.virtual_memory().available)


def reserved_bytes(model: Any, training: Training) -> int:
    """Return the bytes of gradients, optimiser state and one chunk of logits."""
    trained = [p for p in model.parameters() if p.requires_grad]
    moving: int = 4 * sum(p.numel() for p in trained)  # float32 for any dtype of the base
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    return moving + optimizer_bytes(training, trained) + logits_bytes(vocabulary)


def optimizer_bytes(training: Training, trained: Sequence[Tensor]) -> int:
    """Return the bytes of the optimiser state: two numbers per weight with AdamW."""
    each = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 0, "sgd": 0}[training.optimizer]
    return each * sum(p.numel() for p in trained)


def logits_bytes(vocabulary: int) -> int:
    """Return the bytes of the logits of policy, reference and target for one chunk."""
    return 3 * CHUNK * vocabulary * 4


def bytes_per_token(model: Any, *, checkpointing: bool, tokens: int = 64) -> float:
    """Return the activation bytes per token, measured in a short forward pass.

    The state of the random number generators is restored. With ``checkpointing``, the inputs of all
    layers and all activations of the largest layer count.
    """
    device = next(model.parameters()).device
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    was_training = model.training
    model.train()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), autocast(model), kept_by_autograd(model) as kept:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    model.train(was_training)
    every = sum(kept.values()) / tokens
    if not checkpointing:
        return every
    config = model.config.get_text_config()
    inputs = config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
    return float(inputs + every / config.num_hidden_layers)


@contextmanager
def kept_by_autograd(model: Any) -> Iterator[dict[int, int]]:
    """Count the bytes that autograd saves inside the block, by storage; weights are excluded."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # so that no later storage gets the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def tokens_at_once(encoded: Mapping[str, Sequence[Encoded]], training: Training) -> int:
    """Return the tokens of the largest micro-batch."""
    sizes = [
        sum(lengths(encoded[name])[-training.batch_size * rows_of_set(name, training) :])
        for name in reads_of(training.objective)
    ]
    separate_passes = training.batches != "together" or training.direction != "sum"
    return max(sizes) if separate_passes else sum(sizes)


def lengths(rows: Sequence[Encoded]) -> list[int]:
    """Return the number of tokens of each row, sorted."""
    return sorted(len(row) for row in rows)


def rows_of_set(name: str, training: Training) -> int:
    """Return the number of rows of a set per forget row."""
    return training.retain_per_forget if name == "retain" else 1


def _roughly(model: Any) -> float:
    """Return an upper bound of the activation bytes per token, from the configuration alone."""
    config = model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    inner = max(inner) if isinstance(inner, list | tuple) else inner
    return float(4 * config.num_hidden_layers * (100 * config.hidden_size + 20 * inner))
