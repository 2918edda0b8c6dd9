"""Token likelihoods of whole texts, in batches: one pass that every likelihood metric reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergeforget.data.tokens import check_token_ids, cut_to_positions
from mergeforget.evaluate.batching import in_batches, token_budget
from mergeforget.evaluate.decoding import full_pass, pad_right, takes
from mergeforget.evaluate.self_check import safe_ways

CHUNK = 2**26  # logits that are widened to float32 at once: 256 MB


@dataclass(frozen=True)
class TokenLikelihoods:
    """What a model says about one text's tokens, from token number ``start`` on (0 is the first).

    Attributes:
        logps: log-probability of each token given those before it, in nats.
        greedy: whether the token is the one the model would have chosen.
        mean: of the vocabulary's log-probabilities at each place, under the model itself.
        deviation: their standard deviation.
        start: of the first token that was read; nothing precedes token 0, so at least 1.
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
        """The same for the text from its token number ``tokens`` on (0 is the first)."""
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
    """Token likelihoods of each text.

    Args:
        texts: token ids; a text of fewer than two tokens has nothing to predict.
        starts: number of the first token of each text that is wanted; the second by default. What
            comes before costs no output layer.
        batch_tokens: tokens of a batch; by default what the memory allows.
        on_done: called with each text's place and likelihoods as soon as its batch is done.

    A text with more tokens than the model has positions is cut at its beginning and reported; the
    numbers of its tokens stay those of the whole text.
    """
    wanted = [1] * len(texts) if starts is None else [max(1, start) for start in starts]
    together = safe_ways(model).scored_together
    check_token_ids(model, texts)
    fitting, cuts = cut_to_positions(model, texts)

    def work(places: list[int]) -> list[TokenLikelihoods]:
        starts = [max(1, wanted[i] - cuts[i]) for i in places]
        found = token_likelihoods(model, [fitting[i] for i in places], starts)
        return [
            replace(one, start=one.start + cuts[i]) for i, one in zip(places, found, strict=True)
        ]

    return in_batches(
        model,
        [len(t) for t in fitting],
        work,
        budget=(batch_tokens or token_budget(model, logits=True)) if together else 1,
        label=label,
        on_done=on_done,
    )


@torch.inference_mode()
def token_likelihoods(
    model: Any, texts: Sequence[list[int]], starts: Sequence[int]
) -> list[TokenLikelihoods]:
    """Token likelihoods of one batch, padded on the right, of each text from its start on."""
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
    """Log-probability, greedy or not, mean and deviation of each token; (4, tokens), float64."""
    found = []
    step = max(1, CHUNK // logits.shape[1])
    for start in range(0, len(labels), step):
        logps = logits[start : start + step].float().log_softmax(-1)  # (tokens, vocabulary)
        chosen = labels[start : start + step]
        probabilities = logps.exp()
        weighted = probabilities.mul_(logps.clamp(min=-1e4))  # 0 * -inf is not a number
        mean = weighted.sum(-1)
        square = weighted.mul_(logps.clamp(min=-1e4)).sum(-1)
        found.append(
            torch.stack(
                [
                    logps.gather(1, chosen[:, None]).squeeze(1),
                    (logps.argmax(-1) == chosen).float(),
                    mean,
                    (square - mean.square()).clamp(min=0).sqrt(),
                ]
            )
        )
    return torch.cat(found, 1).double().cpu()
