"""Learn the coefficients of a weighted sum from rows without labels; see ``methods.adamerging``.

The merged model is ``W + sum_i w_i s_mi x_mi`` with a coefficient s of each module m and input i.
A bad mixture of tasks has uncertain predictions, so the mean entropy of the next-token
distributions replaces a loss with labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter
from mergeforget.candidate import Candidate
from mergeforget.console import progress, say
from mergeforget.errors import NumericError, UsageError
from mergeforget.merge.inputs import check_adapters
from mergeforget.merge.methods import MERGE_METHODS
from mergeforget.merge.purpose import encode_answers, weighted
from mergeforget.merge.request import at_module, depth_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mergeforget.data.schema import Row
    from mergeforget.data.templating import PromptTemplate

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LearnedShares:
    """Coefficients that minimise the entropy of the merged model's predictions.

    Attributes:
        shares: One coefficient per adapter by module, (n,); 0 if the adapter lacks the module.
        entropy: Mean entropy before each step and after the last, in nats per token.
    """

    shares: dict[str, Floats]
    entropy: list[float]

    def __repr__(self) -> str:
        return (
            f"LearnedShares({len(self.shares)} modules, entropy {self.entropy[0]:.3f} -> "
            f"{self.entropy[-1]:.3f} nats)"
        )


def learn_shares(
    model: nn.Module,
    tokenizer: Any,
    adapters: Sequence[Adapter],
    files: Sequence[Sequence[Row]],
    candidate: Candidate,
    template: PromptTemplate | None = None,
) -> LearnedShares:
    """Minimise the entropy over the rows with Adam, starting from equal coefficients.

    Args:
        model: The base, in evaluation mode. Its weights do not change.
        adapters: Adapters with the modules that are merged, and no others.
        files: The rows of each file; all files have the same weight.
        candidate: Its weights multiply the coefficients; its arguments are those of
            ``adamerging``.
        template: How rows are rendered, as in the training of the adapters; None is raw.

    Raises:
        UsageError: There are no rows, or arguments are outside their range.
        NumericError: The entropy is NaN or Inf.
    """
    import torch

    takes = MERGE_METHODS.get(candidate.method).parameters
    arguments = {k: candidate.arguments.get(k, takes[k].default) for k in ARGUMENTS}
    steps, rate, initial, rows = (arguments[k] for k in ARGUMENTS)
    if not all(files) or steps < 1 or rate <= 0 or rows < 1:
        raise UsageError(
            f"{candidate.method} needs rows in every file, steps and rows >= 1 and rate > 0."
        )
    check_adapters(adapters, same_base=True)  # the merge compares the bases
    names = sorted(set().union(*(adapter.deltas for adapter in adapters)))
    depth = depth_of(names)
    fixed = torch.tensor([at_module(candidate, name, depth[name]).weights for name in names])
    shares = torch.full((len(names), len(adapters)), float(initial), requires_grad=True)
    examples = [encode_answers(model, tokenizer, list(one)[:rows], template) for one in files]
    optimiser = torch.optim.Adam([shares], lr=float(rate))
    entropies = []
    with progress("Learning merge weights", steps + 1) as bar:
        for step in range(steps + 1):
            optimiser.zero_grad()
            products = shares * fixed
            leaf = products.detach().requires_grad_(True)
            with weighted(model, adapters, names, leaf):
                entropies.append(_entropy(model, examples, backward=step < steps))
            if not np.isfinite(entropies[-1]):
                raise NumericError("The entropy is NaN or Inf while merge weights are learned.")
            bar.advance()
            if step < steps:
                products.backward(leaf.grad)
                optimiser.step()
    say(f"{candidate.method}: entropy {entropies[0]:.3f} -> {entropies[-1]:.3f} nats per token")
    learned = shares.detach().double().numpy()
    table = {
        name: np.array([s if name in a.deltas else 0.0 for s, a in zip(row, adapters, strict=True)])
        for name, row in zip(names, learned, strict=True)
    }
    return LearnedShares(table, entropies)


ARGUMENTS = ("steps", "rate", "initial", "rows")


def _entropy(model: nn.Module, files: Sequence[Sequence[Any]], *, backward: bool) -> float:
    """Return the mean entropy at the answer tokens, averaged over files; add its gradient."""
    import torch

    total = 0.0
    for examples in files:
        for example in examples:
            with torch.set_grad_enabled(backward):
                part = answer_entropy(model, example) / (len(examples) * len(files))
            if backward:
                part.backward()
            total += float(part.detach())
    return total


def answer_entropy(model: nn.Module, example: tuple[list[int], list[bool]]) -> torch.Tensor:
    """Return the mean entropy of the predictions of a row's answer, in nats per token."""
    import torch

    ids = torch.tensor([example[0]], device=next(model.parameters()).device)
    answer = torch.tensor(example[1][1:], device=ids.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1][answer].float()
    logps = logits.log_softmax(-1)
    entropy: torch.Tensor = -(logps.exp() * logps).sum(-1).mean()
    return entropy
