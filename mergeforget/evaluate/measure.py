"""Measures one model with one generation pass and one likelihood pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mergeforget.console import say
from mergeforget.data.chat_template import answer_text, special_in, token_ids
from mergeforget.data.schema import Answer, Measured, Row, preferred
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.errors import InputError, NumericError
from mergeforget.evaluate.cache import (
    DocumentMeasurement,
    EvaluationCache,
    document_key,
    prompt_key,
)
from mergeforget.evaluate.generate import generate
from mergeforget.evaluate.likelihood import TokenLikelihoods, likelihoods
from mergeforget.evaluate.membership import gradient_norms
from mergeforget.metrics._characters import plain

Membership = Literal["documents", "rows", "answers"]
Generator = Callable[..., list[str]]  # called as ``generate`` is


def membership_documents(rows: Sequence[Row], unit: Membership = "documents") -> list[Row]:
    """Return the rows used for membership inference.

    Args:
        unit: ``documents`` leaves out the questions about a document that has a completion row, as
            SemEval-2025 Task 4 does. ``rows`` and ``answers`` select every row.
    """
    if unit != "documents":
        return list(rows)
    return [row for row, used in zip(rows, preferred(rows, "sc"), strict=True) if used]


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
    truncated: Collection[str] = (),
    label: str = "",
    cache: EvaluationCache | None = None,
) -> Measured:
    """Generate answers for forget and retain rows, and compute the likelihoods of documents.

    Args:
        model: A causal language model; an active adapter is applied.
        members: Rows of the forget set, whose documents were in the training data.
        nonmembers: Rows whose documents were not in the training data.
        further: Rows of other splits, measured like those of forget and retain.
        max_new_tokens: Maximum number of tokens to generate per answer.
        batch_tokens: Maximum number of tokens per batch, including padding; as many as fit into
            memory by default.
        mmlu: (correct, asked) by subject from ``evaluate.mmlu``, copied to the result.
        membership: Text used for membership inference: with ``answers`` only the answer given its
            prompt, otherwise the whole document.
        template: Renders the rows; see ``data.templating``.
        gradient_norm: Also compute the gradient norm of each member and non-member.
        generator: Function that generates the answers; ``generate`` by default.
        truncated: Splits whose references are truncated to ``max_new_tokens``.
        label: Prefix of the progress bars, for example the name of the adapter.
        cache: Cached measurements of the same model with the same settings; also names the
            processes that share the rows.

    Raises:
        InputError: A member or non-member has no token for membership inference.
        NumericError: The outputs of the model are not finite.
        ResourceError: A single row does not fit into memory.
    """
    rows = [*forget, *retain, *further]
    cache = cache or EvaluationCache()
    reader = _Reader(model, tokenizer, cache, membership, template, batch_tokens, label)
    others = [other for row in rows for other in row.alternatives]
    reader.read_documents([*rows, *others, *members, *nonmembers])
    _check_judged(cache, [*members, *nonmembers])
    if gradient_norm:
        reader.read_gradients([*members, *nonmembers])
    reader.write_answers(rows, max_new_tokens, generator or generate, truncated)

    def reference(row: Row) -> Row:
        known = row.split in truncated
        return within_tokens(row, tokenizer, max_new_tokens) if known else row

    def answer(row: Row) -> Answer:
        completion = cache.completions[prompt_key(row)].answer(tokenizer, template, row)
        row = reference(row)
        return Answer(row, completion, decoded=as_decoded(row.output, tokenizer))

    return Measured(
        answers=[answer(row) for row in rows],
        losses=[
            cache.document_loss(row, member)
            for group, member in ((members, True), (nonmembers, False))
            for row in group
        ],
        mmlu=dict(mmlu or {}),
        likelihoods=[cache.answer_likelihood(row) for row in rows],
        membership=membership,
    )


def within_tokens(row: Row, tokenizer: Any, limit: int) -> Row:
    """Return a row with the first tokens of its reference answer.

    Special tokens that the tokenizer adds count, as in the published code of MUSE.
    """
    ids = tokenizer(row.output)["input_ids"]
    if len(ids) <= limit:
        return row
    kept = special_in(tokenizer, [row.output])
    return replace(row, output=answer_text(tokenizer, ids[:limit], kept))


def as_decoded(text: str, tokenizer: Any) -> str:
    """Return a reference as a lossy tokenizer decodes it, and "" if it is the same.

    WordPiece, for example, may write ``$5.00`` as ``$ 5. 00`` and ``naïve`` as ``naive``. The
    result has the same letters and digits, up to case and accents: a text in which the tokenizer
    replaces words by an unknown token is no reference.
    """
    ids, kept = token_ids(tokenizer, text), special_in(tokenizer, [text])
    decoded = answer_text(tokenizer, ids, kept).strip() if text.strip() else ""
    if decoded == text.strip():
        return ""
    letters = _letters(text)
    return decoded if letters and _letters(decoded) == letters else ""


def _letters(text: str) -> str:
    return "".join(character for character in plain(text) if character.isalnum())


def _check_judged(cache: EvaluationCache, documents: Sequence[Row]) -> None:
    """Raise InputError for a document without a scored token: its loss would be 0."""
    empty = [row for row in documents if not cache.documents[document_key(row)].judged]
    if empty:
        raise InputError(
            f"Membership cannot be judged by {len(empty)} of {len(documents)} documents, for "
            f"example {empty[0].id!r}: they contain no token that a model predicts. The text is "
            "empty or a single token, or --membership answers was given and there is no answer. "
            "Remove these rows, or select another --membership."
        )


@dataclass(frozen=True)
class _Reader:
    """Runs the passes over one model, each for the rows that are not cached yet."""

    model: Any
    tokenizer: Any
    cache: EvaluationCache
    membership: Membership
    template: PromptTemplate
    batch_tokens: int | None
    label: str

    def read_documents(self, rows: Sequence[Row]) -> None:
        """Compute the likelihoods of every distinct document."""
        todo = self._share({document_key(r): r for r in rows}, self.cache.documents)
        encoded = tokenize_documents(self.tokenizer, todo, self.template)

        def keep(place: int, one: TokenLikelihoods) -> None:
            row, answers = todo[place], self.membership == "answers"
            if one.nll != one.nll:
                raise NumericError(
                    f"The likelihood of row {row.id!r} is not a number: the weights of the model "
                    "contain NaN or Inf. Train it again with a smaller learning rate, or load it "
                    "in float32."
                )
            judged = row.output if answers else row.document
            _, start, content = encoded[place]
            self.cache.save_document(
                row, DocumentMeasurement.of(one, start, judged, answers, content)
            )

        if todo:
            likelihoods(
                self.model,
                [ids for ids, *_ in encoded],
                starts=[s for _, s, _ in encoded] if self.membership == "answers" else None,
                batch_tokens=self.batch_tokens,
                label=self._label("likelihood"),
                on_done=keep,
            )
        self.cache.gather()

    def read_gradients(self, rows: Sequence[Row]) -> None:
        """Compute the gradient norm of every distinct document, or of its answer."""
        todo = self._share({document_key(r): r for r in rows}, self.cache.gradients)
        tokens = tokenize_documents(self.tokenizer, todo, self.template)
        answers = self.membership == "answers"
        encoded = [(ids, start if answers else content) for ids, start, content in tokens]
        if todo:
            gradient_norms(
                self.model,
                encoded,
                label=self._label("gradients"),
                on_done=lambda place, norm: self.cache.save_gradient(todo[place], norm),
            )
        self.cache.gather()

    def write_answers(
        self,
        rows: Sequence[Row],
        max_new_tokens: int,
        generator: Generator,
        truncated: Collection[str],
    ) -> None:
        """Generate the completion of every distinct prompt."""
        todo = self._share({prompt_key(r): r for r in rows}, self.cache.completions)
        if todo:
            self._warn_of_limit([r for r in todo if r.split not in truncated], max_new_tokens)
            generator(
                self.model,
                self.tokenizer,
                todo,
                template=self.template,
                max_new_tokens=max_new_tokens,
                batch_tokens=self.batch_tokens,
                label=self._label("answers"),
                on_done=lambda place, one: self.cache.save_completion(todo[place], one),
            )
        self.cache.gather()

    def _warn_of_limit(self, rows: Sequence[Row], limit: int) -> None:
        """Warn of answers that are longer than what is generated."""
        tokens = [self.cache.documents[document_key(row)].answer[1] for row in rows if row.output]
        longer = [n for n in tokens if n > limit]
        if longer and limit:
            say(
                f"Warning: {len(longer)} of {len(rows)} answers have more than {limit} tokens, so "
                "a model that knows them cannot match them exactly. Use --max-new-tokens "
                f"{max(longer) + 1}."
            )

    def _share(self, wanted: Mapping[str, Row], done: Mapping[str, Any]) -> list[Row]:
        """Return this process's share of the rows that are not cached."""
        left = [row for key, row in wanted.items() if key not in done]
        return self.cache.sharing.share(left, lambda row: len(row.document))

    def _label(self, what: str) -> str:
        return self.cache.sharing.label(f"{self.label} {what}".strip())


def tokenize_documents(
    tokenizer: Any, rows: Sequence[Row], template: PromptTemplate = RAW
) -> list[tuple[list[int], int, int]]:
    """Return the token ids of each row's document, and where its answer and its content begin.

    The content excludes BOS, the system message and the template header. In windows of a document,
    the overlap with the previous window is not part of the answer, so each token is scored once.
    """
    tokenized = []
    for row in rows:
        cut = template.tokens(tokenizer, row)
        start = cut.content if row.opens else len(cut.prompt)
        content = start if row.window else cut.content
        tokenized.append(([*cut.prompt, *cut.answer], start, content))
    return tokenized
