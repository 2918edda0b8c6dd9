"""Forward passes of the policy and the reference that return the inputs of the losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import masking_utils

from mergeforget.chunked_logprobs import Projection, rows_of
from mergeforget.data.batches import Batch, join, share_prefix, split
from mergeforget.distributed import in_any, sharded
from mergeforget.errors import RecipeError, ResourceError, first_line
from mergeforget.fsdp import full_weight, unsharded_class
from mergeforget.outputs import TokenOutputs
from mergeforget.train.packing_check import can_share, rows_leak
from mergeforget.train.precision import autocast

LAST = -1  # in place of a layer: the input of the output layer, after the final norm
TOGETHER = (
    1024  # tokens; in longer passes, masked attention between rows costs more than packing saves
)


def predict(
    model: Any,
    batch: Batch,
    *,
    head: Tensor | None = None,
    layers: Sequence[int] = (),
    row_total: float | None = None,
    token_total: Mapping[int, float] | None = None,
    prefixes: bool = True,
) -> TokenOutputs:
    """Run the model on a batch; logits are computed only if a loss reads them.

    If the model mixes packed rows, each row gets a separate pass.

    Args:
        model: A causal language model, with or without an adapter, possibly wrapped for several
            devices.
        head: The output matrix. If given, no logits are computed here; see ``output_matrix``.
        layers: Layers, counted from 0, whose hidden states are returned; see also ``LAST``.
        row_total: Rows of the whole optimiser step; see ``TokenOutputs``.
        token_total: Kept positions of the whole optimiser step, by kind.
        prefixes: Whether packed rows may share a common prefix.
    """
    inner = unwrapped(model)
    row_by_row = batch.attention_mask is None and rows_leak(inner)
    with ExitStack() as stack:
        stack.enter_context(autocast(inner))
        if head is not None:
            stack.enter_context(_without_head(inner))
        seen = stack.enter_context(_captured(inner, layers))
        passes = split(batch) if row_by_row else [batch]
        parts = [_kept(model, part, seen, prefixes) for part in passes]
    kept = _joined([part[0] for part in parts])
    return TokenOutputs(
        kept if head is None else Projection(kept.to(head.dtype), head),
        batch.labels,
        batch.row,
        batch.rows,
        batch.kind,
        hidden={n: _joined([part[1][n] for part in parts]) for n in seen} or None,
        row_total=row_total,
        token_total=token_total,
        weights=batch.weights,
        own_total=(batch.total, batch.count()),
        parts=batch.parts,
    )


def _kept(
    model: Any, batch: Batch, seen: Mapping[int, Tensor], prefixes: bool
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run one pass: return the output and the hidden states in ``seen`` at the kept positions.

    On a CPU, a prefix that all packed rows share is computed once.
    """
    packed, ids, keep = batch.attention_mask is None, batch.input_ids, batch.keep
    inputs: dict[str, Any] = {"attention_mask": batch.attention_mask}
    if packed:
        inputs = {"position_ids": batch.position_ids}
        once = share_prefix(batch) if prefixes and _shares_prefixes(model, batch) else None
        if once is not None:
            ids, keep = once.input_ids, once.keep
            inputs = {"position_ids": once.position_ids, "attention_mask": once.mask}
        elif str(unwrapped(model).config._attn_implementation).startswith("flash"):
            inputs |= _row_limits(batch)
        inputs["logits_to_keep"] = keep
    with _packing(batch) if packed else nullcontext():
        output = model(input_ids=ids, use_cache=False, **inputs).logits

    def kept(states: Tensor) -> Tensor:
        if packed and states.shape[1] == len(keep):
            return states[0]
        return states.flatten(0, 1)[keep]  # not packed, or a model that ignores logits_to_keep

    return kept(output), {
        n: kept(h) if n == LAST else h.flatten(0, 1)[keep] for n, h in seen.items()
    }


def _shares_prefixes(model: Any, batch: Batch) -> bool:
    """Return whether packed rows may share a prefix: on a CPU, with SDPA, and without dropout.

    Dropout would drop the same entries for every row. On a GPU, attention without an explicit mask
    is faster.
    """
    inner = unwrapped(model)
    if batch.rows < 2 or batch.input_ids.device.type != "cpu" or not can_share(inner):
        return False
    dropping = (m for m in inner.modules() if isinstance(m, nn.Dropout) and m.p and m.training)
    return not any(True for _ in dropping)


def _row_limits(batch: Batch) -> dict[str, Any]:
    """Return the starts of packed rows for flash attention, without a device synchronisation."""
    cuts = torch.tensor([0, *accumulate(batch.lengths)], dtype=torch.int32)
    cuts = cuts.to(batch.input_ids.device, non_blocking=True)
    longest = max(batch.lengths)
    return {"cu_seq_lens_q": cuts, "cu_seq_lens_k": cuts,
            "max_length_q": longest, "max_length_k": longest}  # fmt: skip


@contextmanager
def _packing(batch: Batch) -> Iterator[None]:
    """Let transformers build the block-diagonal mask without a device synchronisation.

    By default it reads a value of every pass to detect packed rows, which the batch knows.
    """
    find_indices = getattr(masking_utils, "find_packed_sequence_indices", None)
    if find_indices is None:  # another version of transformers
        yield
        return

    def indices(position_ids: Tensor) -> Tensor | None:
        if len(batch.lengths) == 1:
            return None
        first = position_ids[:, :1] - 1
        return (torch.diff(position_ids, prepend=first, dim=-1) != 1).cumsum(-1)

    masking_utils.find_packed_sequence_indices = indices
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find_indices


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def predict_sets(
    model: Any,
    batches: Mapping[str, Batch],
    totals: Mapping[str, Mapping[str, Any]],
    *,
    head: Tensor | None = None,
    layers: Sequence[int] = (),
    together: int = TOGETHER,
    prefixes: bool = True,
) -> dict[str, TokenOutputs]:
    """Run ``predict`` for several sets; short packed sets share one pass.

    With a sharded model, sets share a pass only if they are short on every rank.

    Args:
        totals: ``row_total`` and ``token_total`` of each set.
        together: Maximum number of tokens of a joint pass.
        prefixes: Whether packed rows may share a common prefix.
    """
    packed = len(batches) > 1 and all(b.attention_mask is None for b in batches.values())
    long = sum(b.tokens for b in batches.values()) > together
    if not packed or (in_any(long) if sharded() else long):
        return {n: predict(model, b, head=head, layers=layers, prefixes=prefixes, **totals[n])
                for n, b in batches.items()}  # fmt: skip
    joined_batch = join(list(batches.values()))
    joined_outputs = predict(model, joined_batch, head=head, layers=layers, prefixes=prefixes)
    outputs, start = {}, 0
    for name, batch in batches.items():
        part = slice(start, start + len(batch.keep))
        outputs[name] = _part(joined_outputs, part, batch, totals[name])
        start = part.stop
    return outputs


def _part(
    outputs: TokenOutputs, part: slice, batch: Batch, totals: Mapping[str, Any]
) -> TokenOutputs:
    """Return the outputs of one batch, a slice of the joint outputs of several."""
    source = rows_of(outputs.source, part)
    hidden = {n: h[part] for n, h in (outputs.hidden or {}).items()} or None
    kept = batch.labels, batch.row, batch.rows, batch.kind
    outputs = TokenOutputs(source, *kept, hidden=hidden, weights=batch.weights, **totals)
    outputs.own_total, outputs.parts = (batch.total, batch.count()), batch.parts
    return outputs


def output_matrix(model: Any) -> Tensor | None:
    """Return the output matrix if logits are exactly ``hidden @ matrix.T``, else None.

    With a bias, a cap or a scale of the logits, or an adapter on the output layer, the model must
    compute its logits. The check runs the model on two tokens, so it covers any architecture.
    """
    head = model.get_output_embeddings()
    if unsharded_class(head) is not nn.Linear or head.bias is not None:
        return None
    weight = full_weight(model, head)
    ids = torch.tensor([[0, 1]], device=weight.device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), autocast(model):
        logits = model(input_ids=ids, use_cache=False).logits
        with _without_head(model):
            hidden = model(input_ids=ids, use_cache=False).logits
        fits = hidden.shape[-1] == weight.shape[1]
        matrix = weight if fits and torch.equal(F.linear(hidden, weight), logits) else None
    model.train(was_training)
    return matrix


def unwrapped(model: Any) -> Any:
    """Return the model inside a wrapper for several devices."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the list of transformer layers."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise RecipeError(f"{type(model).__name__} has no list of its {count} layers; use a LoRA.")


@contextmanager
def compiled_layers(model: Any, backend: str = "inductor") -> Iterator[None]:
    """Compile the layers of a model with ``torch.compile`` inside the block.

    One layer is compiled and reused for all layers of the same kind. Only the passes of the policy
    run compiled: those of the reference and of measurements have other inputs, and few of them
    cannot pay for a compilation of their own.

    Args:
        model: A model in training mode; in evaluation mode its layers run uncompiled.
        backend: Backend of ``torch.compile``.

    Raises:
        ResourceError: ``torch.compile`` does not work on this machine.
    """
    inner = unwrapped(model)
    device = next(inner.parameters()).device
    try:
        torch.compile(_double, backend=backend)(torch.ones(2, device=device))
    except Exception as error:
        raise ResourceError(
            "compile: true needs a working torch.compile: a C++ compiler, and Triton on a GPU. It "
            f"failed with: {first_line(error)[:200]}. Install a compiler, or leave out compile."
        ) from error
    layers = list(decoder_layers(inner))
    for layer in layers:
        plain = layer.forward
        layer.forward = _in_training(
            layer, torch.compile(plain, backend=backend, dynamic=True), plain
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
        torch.compiler.reset()


def _double(x: Tensor) -> Tensor:
    return x * 2


def _in_training(layer: nn.Module, compiled: Any, plain: Any) -> Any:
    def forward(*inputs: Any, **more: Any) -> Any:
        return (compiled if layer.training else plain)(*inputs, **more)

    return forward


@contextmanager
def as_reference(model: Any, before: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Turn the model into the reference, without gradients and without a second copy in memory.

    Args:
        before: Initial values of the trained weights, by name, where the model itself is trained.
            If None, the adapter is disabled, which gives exactly the base model.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter() if before is None else _put(model, before):
            yield
    finally:
        model.train(was_training)


@contextmanager
def _put(model: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Temporarily replace some weights of the model."""
    parameters = {n: p for n, p in model.named_parameters() if n in weights}
    replaced = {name: p.data for name, p in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = replaced[name]


@contextmanager
def _without_head(model: Any) -> Iterator[None]:
    """Make the model return the input of its output layer instead of logits."""
    head = model.get_output_embeddings()
    head.forward = (
        torch.clone if sharded() else lambda hidden: hidden
    )  # a copy, because FSDP does not accept a view
    try:
        yield
    finally:
        del head.forward


@contextmanager
def _captured(model: Any, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Record hidden states after some layers during the forward pass inside the block."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep_input(module: nn.Module, inputs: Any) -> None:
        seen[LAST] = inputs[0]

    numbered = [layer for layer in layers if layer != LAST]
    every = decoder_layers(model) if numbered else nn.ModuleList()
    for layer in numbered:
        if not 0 <= layer < len(every):
            raise RecipeError(
                f"There is no layer {layer}: the model has {len(every)}, counted from 0. Set "
                f"`layer` in the objective, for example to {max(1, len(every) // 2)}."
            )
    hooks = [every[layer].register_forward_hook(keep(layer)) for layer in numbered]
    if LAST in layers:
        hooks.append(model.get_output_embeddings().register_forward_pre_hook(keep_input))
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()
