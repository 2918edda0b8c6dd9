"""Token likelihoods of whole texts, computed in batches for all likelihood metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergeforget.data.tokens import check_token_ids, cut_to_positions
from mergeforget.evaluate.batching import alike, forget_lengths, in_batches, token_budget
from mergeforget.evaluate.decoding import full_pass, pad_right, takes
from mergeforget.evaluate.self_check import safe_modes

CHUNK = 2**26  # logits converted to float32 at once: 256 MB


@dataclass(frozen=True)
class TokenLikelihoods:
    """Likelihoods of one text's tokens from index ``start`` on (0 is the first token).

    Attributes:
        logps: Log-probability of each token given the tokens before it, in nats.
        greedy: Whether the token is the most likely one.
        mean: Expected log-probability at each position, under the model's own distribution.
        deviation: Standard deviation of the log-probability at each position.
        start: Index of the first scored token; at least 1, because token 0 has no context.
    """

    logps: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    start: int = 1

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, in nats; 0 for a text of one token."""
        return float(-self.logps.mean()) if len(self.logps) else 0.0

    def after(self, tokens: int) -> TokenLikelihoods:
        """Return the likelihoods from token index ``tokens`` on (0 is the first token)."""
        first = max(0, tokens - self.start)
        return TokenLikelihoods(
            self.logps[first:],
            self.greedy[first:],
            self.mean[first:],
            self.deviation[first:],
            self.start + first,
        )


def likelihoods(
    model: Any,
    texts: Sequence[list[int]],
    *,
    starts: Sequence[int] | None = None,
    batch_tokens: int | None = None,
    label: str = "Likelihood",
    on_done: Callable[[int, TokenLikelihoods], None] | None = None,
) -> list[TokenLikelihoods]:
    """Compute the token likelihoods of each text.

    A text with more tokens than the model has positions is truncated at its beginning, with a
    message; token indices still refer to the whole text.

    Args:
        texts: Token ids; a text of fewer than two tokens has no predicted token.
        starts: Index of the first token to score in each text; 1 by default. Earlier tokens skip
            the output layer.
        batch_tokens: Maximum number of tokens per batch; as many as fit into memory by default.
        on_done: Called with the index and the likelihoods of each text when its batch is done.
    """
    wanted = [1] * len(texts) if starts is None else [max(1, start) for start in starts]
    together = safe_modes(model).scored_together
    check_token_ids(model, texts)
    fitting, cuts = cut_to_positions(model, texts)

    def work(places: list[int]) -> list[TokenLikelihoods]:
        found: dict[int, TokenLikelihoods] = {}
        for group in alike(model, [len(fitting[i]) for i in places]):
            own = [places[j] for j in group]
            forget_lengths(model)
            starts = [max(1, wanted[i] - cuts[i]) for i in own]
            found |= zip(
                own, token_likelihoods(model, [fitting[i] for i in own], starts), strict=True
            )
        return [replace(found[i], start=found[i].start + cuts[i]) for i in places]

    return in_batches(
        model,
        [len(t) for t in fitting],
        work,
        budget=(batch_tokens or token_budget(model, logits=True)) if together else 1,
        similar=True,
        label=label,
        on_done=on_done,
    )


@torch.inference_mode()
def token_likelihoods(
    model: Any, texts: Sequence[list[int]], starts: Sequence[int]
) -> list[TokenLikelihoods]:
    """Compute the token likelihoods of one batch, each text from its start index on."""
    ids, attention = pad_right(texts, model.device)
    longest = ids.shape[1]
    lengths, begins = torch.tensor([[len(t) for t in texts], list(starts)]).to(model.device)
    places = torch.arange(longest, device=model.device)
    mask = places < lengths[:, None]
    wanted = mask & (places >= begins[:, None])
    if not wanted.any():
        nothing = np.zeros(0)
        return [TokenLikelihoods(nothing, nothing > 0, nothing, nothing, s) for s in starts]
    first = min(starts) - 1 if takes(model, "logits_to_keep") else 0  # it predicts the next one
    more: dict[str, Any] = {"logits_to_keep": longest - first} if first else {}
    if takes(model, "attention_mask"):
        more["attention_mask"] = attention
    logits = full_pass(model, ids, **more)
    logits, real = logits[:, :-1], wanted[:, 1 + first :]
    labels = ids[:, 1 + first :][real]
    packed = _describe(logits[real], labels)  # (4, tokens)
    return [
        TokenLikelihoods(p[0].numpy(), p[1].numpy().astype(bool), p[2].numpy(), p[3].numpy(), start)
        for p, start in zip(packed.split(wanted.sum(1).tolist(), dim=1), starts, strict=True)
    ]


def _describe(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log-probability, greedy flag, mean and deviation per token; (4, tokens), float64."""
    statistics = []
    step = max(1, CHUNK // logits.shape[1])
    for start in range(0, len(labels), step):
        logps = logits[start : start + step].float().log_softmax(-1)  # (tokens, vocabulary)
        chosen = labels[start : start + step]
        probabilities = logps.exp()
        weighted = probabilities.mul_(logps.clamp(min=-1e4))  # 0 * -inf is not a number
        mean = weighted.sum(-1)
        square = weighted.mul_(logps.clamp(min=-1e4)).sum(-1)
        statistics.append(
            torch.stack(
                [
                    logps.gather(1, chosen[:, None]).squeeze(1),
                    (logps.argmax(-1) == chosen).float(),
                    mean,
                    (square - mean.square()).clamp(min=0).sqrt(),
                ]
            )
        )
    return torch.cat(statistics, 1).double().cpu()
