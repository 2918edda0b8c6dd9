"""TokenOutputs: shifted and masked once, and parts of a batch add up."""

from __future__ import annotations

import torch

from mergeforget.outputs import ANSWER, PADDING, PROMPT, TokenOutputs


def padded(rows: int = 3, length: int = 6, vocabulary: int = 7) -> TokenOutputs:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, length, vocabulary, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocabulary, (rows, length), generator=generator)
    kind = torch.full((rows, length), PROMPT)
    for i in range(rows):
        kind[i, i + 2 :] = ANSWER
    kind[0, -1] = PADDING
    return TokenOutputs.from_padded(logits, labels, kind)


def test_only_answer_tokens_are_kept_and_the_one_before_predicts_them() -> None:
    logits = torch.zeros(1, 3, 2, dtype=torch.float64)
    logits[0, 1] = torch.tensor([0.0, 2.0])  # predicts the token at place 2
    kind = torch.tensor([[PROMPT, PROMPT, ANSWER]])
    outputs = TokenOutputs.from_padded(logits, torch.tensor([[0, 0, 1]]), kind)
    # log(e^2 / (1 + e^2)) = 2 - log(1 + e^2) = -0.126928
    torch.testing.assert_close(
        outputs.sequence_logps(), torch.tensor([-0.126928]).double(), rtol=0, atol=1e-6
    )


def test_nll_is_the_mean_over_each_answer() -> None:
    outputs = padded()
    for row in range(3):
        logps = outputs.token_logps[outputs.row == row]
        torch.testing.assert_close(outputs.nll()[row], -logps.mean())


def test_means_of_micro_batches_add_up_to_the_mean_of_the_batch() -> None:
    whole = padded()
    totals = {ANSWER: len(whole.labels)}
    rows = tokens = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        here = whole.row == row
        part = TokenOutputs(
            whole.logits[here],
            whole.labels[here],
            torch.zeros_like(whole.row[here]),
            1,
            whole.kind[here],
            row_total=3,
            token_total=totals,
        )
        rows = rows + part.row_mean(part.nll())
        tokens = tokens + part.token_mean(part.token_logps)
    torch.testing.assert_close(rows, whole.row_mean(whole.nll()))
    torch.testing.assert_close(tokens, whole.token_mean(whole.token_logps))
