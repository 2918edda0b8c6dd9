"""The recipe zjuklab-as-run against the loss of the published code, written out here once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mergeforget.data.schema import Row
from mergeforget.data.tokens import encode_rows
from mergeforget.recipe import Training, load_recipe
from mergeforget.train.dataset import collate_of
from mergeforget.train.forward import predict
from mergeforget.train.objective import compute, mask_of

PAD, LENGTH = 0, 40
FORGET = [
    Row("a-qa0", "Where was Ada Quill born?", "In Lund."),
    Row("b-qa0", "Who wrote the letters that were found in Lund in 1987?", "Ada Quill did, alone."),
]
RETAIN = [
    Row("c-qa0", "Who?", "Bo."),
    Row("d-sc1", "Bo Reed was born in Oslo and", "moved to Lund in 1987, and then again."),
]


def laid_out(tokenizer: Any, row: Row) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and mask of a row: prompt's end, answer, EOS; padded left, cut at the end."""
    prompt = tokenizer(row.input)["input_ids"][-int(0.8 * LENGTH) :]
    answer = [*tokenizer(row.output)["input_ids"], tokenizer.eos_token_id]
    fill = max(0, LENGTH - len(prompt) - len(answer))
    ids = [PAD] * fill + prompt + answer
    labels = [-100] * (fill + len(prompt)) + answer
    mask = [0] * fill + [1] * (len(prompt) + len(answer))
    return ids[:LENGTH], labels[:LENGTH], mask[:LENGTH]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def published(
    models: tuple[Any, Any],
    tokenizer: Any,
    forget: list[Row],
    retain: list[Row],
    weights: list[float],
) -> Tensor:
    """Its loss of one micro-batch; weights: of NPO, of the KL divergence, of the cross entropy."""

    def said(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
        laid = zip(*(laid_out(tokenizer, row) for row in rows), strict=True)
        ids, labels, mask = (torch.tensor(one) for one in laid)
        new, old = (model(input_ids=ids, attention_mask=mask).logits for model in models)
        return new, old, labels

    new, old, labels = said(forget)
    npo = -2 / 0.1 * F.logsigmoid(0.1 * (cross_entropy(new, labels) - cross_entropy(old, labels)))
    new, old, labels = said(retain)
    logs = [F.log_softmax(x, -1).flatten(0, 1) for x in (new, old)]
    kl = F.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True)
    return weights[0] * npo + weights[1] * kl + weights[2] * cross_entropy(new, labels)


@pytest.mark.parametrize(
    "side, rows, weights", [("over", 1, [0.4, 0.4, 0.2]), ("under", 2, [0.3, 0.3, 0.4])]
)
def test_a_step_has_the_loss_of_the_published_code(
    side: str, rows: int, weights: list[float], make_model: Any, tiny_tokenizer: Any
) -> None:
    pair = load_recipe("zjuklab-as-run").pair
    training: Training = getattr(pair, side)
    assert training.max_length == 256 and training.tokens.prompt_tokens == int(0.8 * 256)
    assert training.batch_size == rows
    tokens = training.tokens.model_copy(update={"prompt_tokens": int(0.8 * LENGTH)})
    training = training.model_copy(update={"max_length": LENGTH, "tokens": tokens})
    policy, before = (make_model(seed=seed).double().eval() for seed in (1, 2))
    collate = collate_of(mask_of(training.objective), training, PAD)
    sets = {
        name: encode_rows(
            tiny_tokenizer, given, max_length=LENGTH, join=tokens.join,
            prompt_tokens=tokens.prompt_tokens,
        )
        for name, given in (("forget", FORGET), ("retain", RETAIN))
    }  # fmt: skip
    places = [range(i, i + rows) for i in range(0, len(FORGET), rows)]  # micro-batches of a step
    batches = [collate([{n: [s[i]] for n, s in sets.items()} for i in place]) for place in places]
    totals: dict[str, dict[str, Any]] = {}
    for name in sets:
        counts = [b[name].count() for b in batches]
        whole = {kind: sum(c[kind] for c in counts) for kind in counts[0]}
        totals[name] = {"row_total": len(FORGET), "token_total": whole}
    found, wanted = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for place, batch in zip(places, batches, strict=True):
            ours, theirs = (
                {n: predict(m, batch[n], **totals[n]) for n in sets} for m in (policy, before)
            )
            found = found + compute(training.objective, ours, theirs)[0]
            forget, retain = ([s[i] for i in place] for s in (FORGET, RETAIN))
            loss = published((policy, before), tiny_tokenizer, forget, retain, weights)
            wanted = wanted + loss / len(places)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
