"""Hidden states of prompts, layer by layer: what a probe looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.evaluate.batching import in_batches, token_budget

Pool = Literal["last", "mean"]


def hidden_states(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str | Row],
    pool: Pool,
    *,
    template: PromptTemplate = RAW,
    batch_tokens: int | None = None,
    label: str = "Hidden states",
) -> NDArray[np.float32]:
    """States after the embeddings and after each layer; (layers + 1, texts, width).

    Args:
        pool: ``last`` takes the state at the text's last token, ``mean`` the mean over its tokens.
    """
    ids = [template.prompt_ids(tokenizer, text) for text in texts]
    states = in_batches(
        model,
        [len(i) for i in ids],
        lambda places: _pooled(model, [ids[i] for i in places], pool),
        budget=batch_tokens or token_budget(model),
        label=label,
    )
    return np.stack(states, axis=1)


@torch.inference_mode()
def _pooled(model: Any, texts: list[list[int]], pool: Pool) -> list[NDArray[np.float32]]:
    """(layers + 1, width) of each text of a batch, padded on the right."""
    longest = max(len(t) for t in texts)
    lengths = torch.tensor([len(t) for t in texts], device=model.device)
    ids = torch.tensor([t + [0] * (longest - len(t)) for t in texts]).to(model.device)
    mask = torch.arange(longest, device=model.device) < lengths[:, None]
    states = model(
        input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
    ).hidden_states
    pooled = []
    for layer in states:  # (texts, length, width)
        if pool == "last":
            one = layer[torch.arange(len(texts), device=layer.device), lengths - 1]
        else:
            one = (layer.float() * mask[:, :, None]).sum(1) / lengths[:, None]
        pooled.append(one.float().cpu())
    stacked = torch.stack(pooled, 1).numpy()  # (texts, layers + 1, width)
    return list(stacked)
