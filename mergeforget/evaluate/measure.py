"""Everything that is read off one model: one generation pass and one likelihood pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.errors import NumericError
from mergeforget.evaluate.generate import generate
from mergeforget.evaluate.likelihood import TokenLikelihoods, likelihoods
from mergeforget.evaluate.readings import Kept, Reading, document_key, prompt_key

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
    kept: Kept | None = None,
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
        kept: what an interrupted evaluation of the same model with the same settings has done.

    Raises:
        NumericError: the model's outputs are not numbers.
        ResourceError: a single row does not fit into memory.
    """
    rows = [*forget, *retain]
    kept = kept or Kept()
    documents = [*rows, *members, *nonmembers]
    _read_documents(
        model, tokenizer, documents, kept, membership, batch_tokens, f"{label} likelihood"
    )
    _write_answers(model, tokenizer, rows, kept, max_new_tokens, batch_tokens, f"{label} answers")
    return Measured(
        answers=[Answer(row, kept.completions[prompt_key(row)]) for row in rows],
        losses=[
            kept.readings[document_key(row)].document_loss(row, member)
            for group, member in ((members, True), (nonmembers, False))
            for row in group
        ],
        mmlu=dict(mmlu or {}),
        likelihoods=[kept.readings[document_key(row)].answer_likelihood(row) for row in rows],
    )


def _read_documents(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    kept: Kept,
    membership: Membership,
    batch_tokens: int | None,
    label: str,
) -> None:
    """Read every different document that was not read before."""
    todo = list({k: r for r in rows if (k := document_key(r)) not in kept.readings}.values())
    if not todo:
        return
    encoded = tokenize_documents(tokenizer, todo)

    def keep(place: int, one: TokenLikelihoods) -> None:
        row = todo[place]
        if one.nll != one.nll:
            raise NumericError(
                f"The model's likelihood of row {row.id!r} is not a number: its weights hold NaN "
                "or Inf. Train it again with a smaller learning rate, or load it in float32."
            )
        judged = row.output if membership == "answers" else row.document
        kept.keep_reading(row, Reading.of(one, encoded[place][1], judged, membership == "answers"))

    ids = [ids for ids, _ in encoded]
    likelihoods(model, ids, batch_tokens=batch_tokens, label=label.strip(), on_done=keep)


def _write_answers(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    kept: Kept,
    max_new_tokens: int,
    batch_tokens: int | None,
    label: str,
) -> None:
    """Generate for every different prompt that was not answered before."""
    todo = list({k: r for r in rows if (k := prompt_key(r)) not in kept.completions}.values())
    if not todo:
        return
    generate(
        model,
        tokenizer,
        [row.input for row in todo],
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        label=label.strip(),
        on_done=lambda place, text: kept.keep_completion(todo[place], text),
    )


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
