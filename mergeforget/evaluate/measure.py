"""Everything that is read off one model: one generation pass and one likelihood pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mergeforget.data.schema import Answer, AnswerLikelihood, DocumentLoss, Measured, Row
from mergeforget.errors import NumericError
from mergeforget.evaluate.generate import generate
from mergeforget.evaluate.likelihood import TokenLikelihoods, likelihoods
from mergeforget.evaluate.signals import membership_signals

Membership = Literal["documents", "rows", "answers"]


def membership_documents(rows: Sequence[Row], unit: Membership = "documents") -> list[Row]:
    """The rows whose documents tell members from non-members.

    Args:
        unit: ``documents`` takes the completion rows, one a document, as SemEval-2025 Task 4 does
            (every row where there is no completion row); ``rows`` and ``answers`` take every row.
    """
    documents = [r for r in rows if r.kind == "sc"]
    return documents if documents and unit == "documents" else list(rows)


def measure(
    model: Any,
    tokenizer: Any,
    *,
    forget: Sequence[Row],
    retain: Sequence[Row],
    members: Sequence[Row],
    nonmembers: Sequence[Row],
    max_new_tokens: int = 256,
    batch_tokens: int | None = None,
    mmlu: Mapping[str, tuple[int, int]] | None = None,
    membership: Membership = "documents",
    label: str = "",
) -> Measured:
    """Generate answers for forget and retain rows, and read off the likelihood of documents.

    Args:
        model: a causal language model; an active adapter on it takes part.
        members: rows whose documents were trained on (of the forget set).
        nonmembers: rows whose documents were not.
        max_new_tokens: a completion that has not ended by then is cut.
        batch_tokens: tokens of a batch, padding counted; by default what the memory allows.
        mmlu: (correct, asked) by subject, from ``evaluate.mmlu``, to be kept with the rest.
        membership: what of a member's text is judged: with ``answers`` only the answer, given its
            prompt; else the whole document.
        label: stands before the progress, for example the adapter's name.

    Raises:
        NumericError: the model's outputs are not numbers.
        ResourceError: a single row does not fit into memory.
    """
    rows = [*forget, *retain]
    read = _document_likelihoods(
        model, tokenizer, [*rows, *members, *nonmembers], batch_tokens, f"{label} likelihood"
    )
    completions = generate(
        model,
        tokenizer,
        [row.input for row in rows],
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        label=f"{label} answers".strip(),
    )
    return Measured(
        answers=[Answer(row, text) for row, text in zip(rows, completions, strict=True)],
        losses=[
            _document_loss(row, *read[row.input, row.output], member, membership)
            for group, member in ((members, True), (nonmembers, False))
            for row in group
        ],
        mmlu=dict(mmlu or {}),
        likelihoods=[_answer_likelihood(row, *read[row.input, row.output]) for row in rows],
    )


def _document_likelihoods(
    model: Any, tokenizer: Any, rows: Sequence[Row], batch_tokens: int | None, label: str
) -> dict[tuple[str, str], tuple[TokenLikelihoods, int]]:
    """Token likelihoods of every different document, and where its answer begins."""
    different = list({(row.input, row.output): row for row in rows}.values())
    encoded = tokenize_documents(tokenizer, different)
    read = likelihoods(
        model, [ids for ids, _ in encoded], batch_tokens=batch_tokens, label=label.strip()
    )
    for row, one in zip(different, read, strict=True):
        if one.nll != one.nll:
            raise NumericError(
                f"The model's likelihood of row {row.id!r} is not a number: its weights hold NaN "
                "or Inf. Train it again with a smaller learning rate, or load it in float32."
            )
    return {
        (row.input, row.output): (one, start)
        for row, one, (_, start) in zip(different, read, encoded, strict=True)
    }


def tokenize_documents(tokenizer: Any, rows: Sequence[Row]) -> list[tuple[list[int], int]]:
    """Token ids of each row's document, and the place of its answer's first token.

    A token across the border of prompt and answer belongs to the answer.
    """
    if not rows:
        return []
    encoding = tokenizer([row.document for row in rows], return_offsets_mapping=True)
    starts = []
    for row, offsets in zip(rows, encoding["offset_mapping"], strict=True):
        ends = [end for _, end in offsets]
        starts.append(next((i for i, end in enumerate(ends) if end > len(row.input)), len(ends)))
    return list(zip(map(list, encoding["input_ids"]), starts, strict=True))


def _document_loss(
    row: Row, one: TokenLikelihoods, start: int, member: bool, unit: Membership
) -> DocumentLoss:
    if unit == "answers":
        one, text = one.after(start), row.output
    else:
        text = row.document
    return DocumentLoss(row.id, member, one.nll, row.task, membership_signals(one, text))


def _answer_likelihood(row: Row, one: TokenLikelihoods, start: int) -> AnswerLikelihood:
    answer = one.after(start)
    n = len(answer.logps)
    if n == 0:
        return AnswerLikelihood(row, 0.0, 0)
    wrong = (~answer.greedy).nonzero()[0]
    extracted = 1 - (wrong[-1] + 1) / n if len(wrong) else 1.0
    return AnswerLikelihood(row, answer.nll, n, float(answer.greedy.mean()), float(extracted))
