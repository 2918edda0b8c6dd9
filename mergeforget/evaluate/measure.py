"""Measures one model with one generation pass and one likelihood pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.errors import InputError, NumericError
from mergeforget.evaluate.cache import Kept, Reading, document_key, prompt_key
from mergeforget.evaluate.generate import generate
from mergeforget.evaluate.likelihood import TokenLikelihoods, likelihoods
from mergeforget.evaluate.membership import gradient_norms

Membership = Literal["documents", "rows", "answers"]
Generator = Callable[..., list[str]]  # called as ``generate`` is


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
    further: Sequence[Row] = (),
    max_new_tokens: int = 256,
    batch_tokens: int | None = None,
    mmlu: Mapping[str, tuple[int, int]] | None = None,
    membership: Membership = "documents",
    template: PromptTemplate = RAW,
    gradient_norm: bool = False,
    generator: Generator | None = None,
    label: str = "",
    kept: Kept | None = None,
) -> Measured:
    """Generate answers for forget and retain rows, and read off the likelihood of documents.

    Args:
        model: a causal language model; an active adapter on it takes part.
        members: rows whose documents were trained on (of the forget set).
        nonmembers: rows whose documents were not.
        further: rows of other splits, answered and read like those of forget and retain.
        max_new_tokens: a completion that has not ended by then is cut.
        batch_tokens: tokens of a batch, padding counted; by default what the memory allows.
        mmlu: (correct, asked) by subject, from ``evaluate.mmlu``, to be kept with the rest.
        membership: what of a member's text is judged: with ``answers`` only the answer, given its
            prompt; else the whole document.
        template: how rows are rendered; see ``data.templating``.
        gradient_norm: take a backward pass of each member and non-member as well.
        generator: writes the answers; by default ``generate``.
        label: stands before the progress, for example the adapter's name.
        kept: what an interrupted evaluation of the same model with the same settings has done, and
            the processes that share the rows.

    Raises:
        InputError: a member or non-member has no token to judge it by.
        NumericError: the model's outputs are not numbers.
        ResourceError: a single row does not fit into memory.
    """
    rows = [*forget, *retain, *further]
    kept = kept or Kept()
    reader = _Reader(model, tokenizer, kept, membership, template, batch_tokens, label)
    others = [other for row in rows for other in row.alternatives]
    reader.read_documents([*rows, *others, *members, *nonmembers])
    _check_judged(kept, [*members, *nonmembers])
    if gradient_norm:
        reader.read_gradients([*members, *nonmembers])
    reader.write_answers(rows, max_new_tokens, generator or generate)
    return Measured(
        answers=[Answer(row, kept.completions[prompt_key(row)]) for row in rows],
        losses=[
            kept.document_loss(row, member)
            for group, member in ((members, True), (nonmembers, False))
            for row in group
        ],
        mmlu=dict(mmlu or {}),
        likelihoods=[kept.answer_likelihood(row) for row in rows],
        membership=membership,
    )


def _check_judged(kept: Kept, documents: Sequence[Row]) -> None:
    """Raise InputError for a document without a judged token: its loss of 0 would look perfect."""
    empty = [row for row in documents if not kept.readings[document_key(row)].judged]
    if empty:
        raise InputError(
            f"Membership cannot be judged by {len(empty)} of {len(documents)} documents, for "
            f"example {empty[0].id!r}: a model predicts none of their tokens, since the text is "
            "empty or a single token, or is judged by an answer that it does not have. Leave "
            "them out, or judge by another --membership."
        )


@dataclass(frozen=True)
class _Reader:
    """One model, and what was read off it; every pass does what is left to do, once."""

    model: Any
    tokenizer: Any
    kept: Kept
    membership: Membership
    template: PromptTemplate
    batch_tokens: int | None
    label: str

    def read_documents(self, rows: Sequence[Row]) -> None:
        """Likelihoods of every different document."""
        todo = self._share({document_key(r): r for r in rows}, self.kept.readings)
        encoded = tokenize_documents(self.tokenizer, todo, self.template)

        def keep(place: int, one: TokenLikelihoods) -> None:
            row, answers = todo[place], self.membership == "answers"
            if one.nll != one.nll:
                raise NumericError(
                    f"The model's likelihood of row {row.id!r} is not a number: its weights hold "
                    "NaN or Inf. Train it again with a smaller learning rate, or load it in "
                    "float32."
                )
            judged = row.output if answers else row.document
            _, start, content = encoded[place]
            self.kept.keep_reading(row, Reading.of(one, start, judged, answers, content))

        if todo:
            likelihoods(
                self.model,
                [ids for ids, *_ in encoded],
                starts=[s for _, s, _ in encoded] if self.membership == "answers" else None,
                batch_tokens=self.batch_tokens,
                label=self._label("likelihood"),
                on_done=keep,
            )
        self.kept.gather()

    def read_gradients(self, rows: Sequence[Row]) -> None:
        """Gradient norms of every different document, or of its answer."""
        todo = self._share({document_key(r): r for r in rows}, self.kept.gradients)
        tokens = tokenize_documents(self.tokenizer, todo, self.template)
        answers = self.membership == "answers"
        encoded = [(ids, start if answers else content) for ids, start, content in tokens]
        if todo:
            gradient_norms(
                self.model,
                encoded,
                label=self._label("gradients"),
                on_done=lambda place, norm: self.kept.keep_gradient(todo[place], norm),
            )
        self.kept.gather()

    def write_answers(self, rows: Sequence[Row], max_new_tokens: int, generator: Generator) -> None:
        """Completions of every different prompt."""
        todo = self._share({prompt_key(r): r for r in rows}, self.kept.completions)
        if todo:
            generator(
                self.model,
                self.tokenizer,
                todo,
                template=self.template,
                max_new_tokens=max_new_tokens,
                batch_tokens=self.batch_tokens,
                label=self._label("answers"),
                on_done=lambda place, text: self.kept.keep_completion(todo[place], text),
            )
        self.kept.gather()

    def _share(self, wanted: Mapping[str, Row], done: Mapping[str, Any]) -> list[Row]:
        """This process's part of the rows that were not done before."""
        left = [row for key, row in wanted.items() if key not in done]
        return self.kept.sharing.share(left, lambda row: len(row.document))

    def _label(self, what: str) -> str:
        return self.kept.sharing.label(f"{self.label} {what}".strip())


def tokenize_documents(
    tokenizer: Any, rows: Sequence[Row], template: PromptTemplate = RAW
) -> list[tuple[list[int], int, int]]:
    """Token ids of each row's document, and the places where its answer and its content begin.

    The content leaves out BOS, the system message and the template's header. Of a document's
    windows each token belongs to the answer once: the overlap with the window before does not.
    """
    found = []
    for row in rows:
        cut = template.tokens(tokenizer, row)
        start = cut.content if row.opens else len(cut.prompt)
        content = start if row.window else cut.content
        found.append(([*cut.prompt, *cut.answer], start, content))
    return found
