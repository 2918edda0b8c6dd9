"""Choose weights for each module from the gradients of the forget and retain losses.

A density applies to all modules. This merge instead gives each module m and adapter i a weight
w_mi, starting from equal weights, such that the forget rows reach a target loss at the least cost
to the retain rows. With a = dL_forget/dw, r = dL_retain/dw and H the mean of the outer products of
the retain rows' gradients, each step solves

    minimise  r.d + d.(H + ridge D) d / 2   subject to  a.d = target - L_forget

in closed form: ``d = K^-1 (mu a - r)`` with ``K = H + ridge D``, D the mean of H's diagonal times
the identity and ``mu = (target - L_forget + a.K^-1 r) / a.K^-1 a``. The losses are not linear in w,
so several steps of limited length are taken, and the point closest to the target is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter
from mergeforget.candidate import Candidate
from mergeforget.console import progress
from mergeforget.errors import NumericError, UsageError
from mergeforget.merge.inputs import (
    Modules,
    check_adapters,
    check_layers_only,
    modules_to_merge,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mergeforget.data.schema import Row
    from mergeforget.data.templating import PromptTemplate

Floats = NDArray[np.float64]
MAX_LENGTH = 1024  # maximum number of tokens per row
LONGEST_STEP = 0.3  # largest change of one weight in one step


@dataclass(frozen=True)
class PurposeMerge:
    """Weights that reach a forget loss at the least cost to the retain loss.

    Attributes:
        weights: One weight per adapter, by module.
        target: Target of the forget loss, in nats per token.
        forget: Forget loss after each step up to the chosen one, starting with equal weights.
        retain: Retain loss after each of these steps.
    """

    weights: dict[str, tuple[float, ...]]
    target: float
    forget: list[float] = field(default_factory=list)
    retain: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        return (
            f"PurposeMerge({len(self.weights)} modules, forget loss {self.forget[-1]:.3f} (target "
            f"{self.target:.3f}), retain loss {self.retain[-1]:.3f})"
        )

    def candidate(self) -> Candidate:
        """Return the exact weighted sum as a candidate, with the sum of the adapters' ranks."""
        n = len(next(iter(self.weights.values())))
        # the first filter that matches applies, so that of `gate_proj` precedes that of `gate`
        longest_first = sorted(self.weights.items(), key=lambda one: -len(one[0]))
        settings = [
            [{"filter": name, "value": round(w[i], 6)} for name, w in longest_first]
            for i in range(n)
        ]
        return Candidate("cat", None, (1 / n,) * n, "delta", by_module={"weights": settings})


def choose_weights(
    model: nn.Module,
    tokenizer: Any,
    adapters: Sequence[Adapter],
    forget: Sequence[Row],
    retain: Sequence[Row],
    *,
    target: float | None = None,
    rows: int = 16,
    steps: int = 8,
    ridge: float = 0.1,
    template: PromptTemplate | None = None,
    modules: Modules = "same",
    same_base: bool = False,
) -> PurposeMerge:
    """Choose a weight for every module and adapter; see the module docstring.

    Args:
        model: The base, in evaluation mode.
        adapters: Over and under, or any adapters of the base.
        target: Forget loss to reach, in nats per token. None is the mean of the losses of the
            adapters: For a pair, halfway between forgetting too much and too little.
        rows: Maximum number of forget rows and of retain rows.
        steps: Number of steps; the losses are measured before each, and the weights whose
            forget loss is closest to the target are returned.
        ridge: Damping of a step; larger values keep the weights of the modules more similar.
        template: How rows are rendered, as in the training of the adapters; None is raw.
        modules: Modules to merge, see ``inputs.modules_to_merge``; others do not change.
        same_base: Assume that the adapters belong to one base, whatever names they record.

    Raises:
        UsageError: There are no rows, or arguments are outside their range.
        InputError: The adapters cannot be merged.
        NumericError: A loss is NaN or Inf.
    """
    import torch

    if not forget or not retain or rows < 1 or steps < 1 or ridge <= 0:
        raise UsageError("purpose needs forget and retain rows, rows and steps >= 1 and ridge > 0.")
    check_adapters(adapters, same_base=same_base)
    check_layers_only(adapters, "purpose")
    names = modules_to_merge(adapters, modules)
    examples = {
        kind: encode_answers(model, tokenizer, list(chosen_arguments)[:rows], template)
        for kind, chosen_arguments in (("forget", forget), ("retain", retain))
    }
    n = len(adapters)
    weights = torch.full((len(names), n), 1 / n, dtype=torch.float32, requires_grad=True)
    found_forget, found_retain, visited = [], [], []
    with weighted(model, adapters, names, weights):
        if target is None:
            with torch.no_grad():
                alone = []
                for i in range(n):
                    weights.zero_()
                    weights[:, i] = 1
                    alone.append(
                        float(np.mean([mean_answer_loss(model, e) for e in examples["forget"]]))
                    )
                weights.fill_(1 / n)
            target = sum(alone) / n
        with progress("Choosing weights", steps + 1) as bar:
            for step in range(steps + 1):
                loss_f, grads_f = _gradients(model, weights, examples["forget"], step == steps)
                loss_r, grads_r = _gradients(model, weights, examples["retain"], step == steps)
                found_forget.append(loss_f)
                found_retain.append(loss_r)
                visited.append(weights.detach().cpu().numpy().astype(float))
                bar.advance()
                if step == steps:
                    break
                change = best_step(grads_f.mean(0), grads_r, target - loss_f, ridge)
                with torch.no_grad():
                    weights += torch.from_numpy(change.reshape(weights.shape)).to(weights)
    best = int(np.argmin(np.abs(np.array(found_forget) - target)))
    chosen = visited[best]
    table = {
        name: tuple(
            float(w) if name in adapter.deltas else 0.0
            for w, adapter in zip(row, adapters, strict=True)
        )
        for name, row in zip(names, chosen, strict=True)
    }
    return PurposeMerge(table, target, found_forget[: best + 1], found_retain[: best + 1])


def best_step(gain: Floats, costs: Floats, wanted: float, ridge: float) -> Floats:
    """Return the step d that changes the forget loss by ``wanted`` at the least retain cost.

    Args:
        gain: Gradient of the forget loss, (k,).
        costs: Gradient of each retain row's loss, (rows, k).
        wanted: Change of the forget loss, to first order.
        ridge: Damping, as a share of the mean curvature.

    Returns:
        (k,), scaled down if an entry would exceed ``LONGEST_STEP``.
    """
    curvature = costs.T @ costs / len(costs)
    level = float(np.trace(curvature)) / len(gain) or 1.0
    damped = curvature + ridge * level * np.eye(len(gain))
    mean = costs.mean(0)
    along_gain, along_cost = np.linalg.solve(damped, np.stack([gain, mean], 1)).T
    reach = float(gain @ along_gain)
    mu = (wanted + float(gain @ along_cost)) / reach if reach > 0 else 0.0
    step: Floats = mu * along_gain - along_cost
    return step * min(1.0, LONGEST_STEP / max(float(np.abs(step).max()), 1e-12))


def encode_answers(
    model: nn.Module, tokenizer: Any, rows: Sequence[Row], template: PromptTemplate | None = None
) -> list[tuple[list[int], list[bool]]]:
    """Return the token ids of each row and a mask of the answer; raw prompts without a template.

    Prompts that are too long for the model are truncated at the beginning.
    """
    from mergeforget.data.templating import RAW
    from mergeforget.data.tokens import encode_rows, fitting_length
    from mergeforget.outputs import ANSWER

    longest = fitting_length(model, MAX_LENGTH)
    encoded = encode_rows(tokenizer, rows, max_length=longest, template=template or RAW)
    return [(one.ids, [kind == ANSWER for kind in one.kinds]) for one in encoded]


def mean_answer_loss(model: nn.Module, example: tuple[list[int], list[bool]]) -> torch.Tensor:
    """Return the mean negative log-likelihood of a row's answer, in nats per token."""
    import torch

    ids = torch.tensor([example[0]], device=next(model.parameters()).device)
    answer = torch.tensor(example[1][1:], device=ids.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return losses[answer].mean()


def _gradients(
    model: nn.Module,
    weights: torch.Tensor,
    examples: Sequence[tuple[list[int], list[bool]]],
    losses_only: bool,
) -> tuple[float, Floats]:
    """Return the mean loss, and the gradient of each row's loss, (rows, modules * n)."""
    import torch

    losses, gradients = [], []
    for example in examples:
        with torch.set_grad_enabled(not losses_only):
            loss = mean_answer_loss(model, example)
        losses.append(float(loss.detach()))
        if not losses_only:
            (gradient,) = torch.autograd.grad(loss, weights)
            gradients.append(gradient.detach().double().cpu().numpy().ravel())
    if not np.isfinite(losses).all():
        raise NumericError("A loss is NaN or Inf while the merge weights are chosen.")
    return float(np.mean(losses)), np.array(gradients)


@contextmanager
def weighted(
    model: nn.Module, adapters: Sequence[Adapter], names: Sequence[str], weights: torch.Tensor
) -> Iterator[None]:
    """Add the weighted delta of every adapter to the outputs of the modules inside the block."""
    import torch

    from mergeforget.merge.apply import weight_of

    hooks = []
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for place, name in enumerate(names):
            factors = []
            for i, adapter in enumerate(adapters):
                delta = adapter.deltas.get(name)
                if delta is None:
                    continue
                if name in adapter.embeddings:
                    raise UsageError(f"purpose does not support LoRA on an embedding ({name}).")
                like = weight_of(model, name, delta)
                a = torch.from_numpy(np.ascontiguousarray(delta.a)).to(like)
                b = torch.from_numpy(np.ascontiguousarray(delta.b * delta.scaling)).to(like)
                factors.append((i, a, b))

            hook = _adding(weights, place, factors)
            hooks.append(model.get_submodule(name).register_forward_hook(hook))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)


def _adding(weights: torch.Tensor, place: int, factors: Sequence[Any]) -> Any:
    """Return a forward hook that adds ``w_i * x A_i^T B_i^T`` of one module for every adapter."""

    def add(_: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for i, a, b in factors:
            output = output + weights[place, i].to(output.dtype) * (given[0] @ a.T @ b.T)
        return output

    return add
