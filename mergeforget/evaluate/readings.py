"""What is kept of one document's likelihoods, and where an interrupted evaluation keeps it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergeforget.data.schema import AnswerLikelihood, DocumentLoss, Row
from mergeforget.evaluate.likelihood import TokenLikelihoods
from mergeforget.evaluate.signals import membership_signals
from mergeforget.files import append_jsonl, read_jsonl


@dataclass(frozen=True)
class Reading:
    """One document as a model predicts it.

    Attributes:
        nll: mean over the tokens that membership is judged by, in nats.
        signals: membership signals of the same tokens.
        answer: NLL, number of tokens, share of greedy ones and share extracted, of the answer.
    """

    nll: float
    signals: dict[str, float]
    answer: tuple[float, int, float, float]

    @classmethod
    def of(cls, one: TokenLikelihoods, start: int, text: str, answer_only: bool) -> Reading:
        """From the likelihoods of a document's tokens.

        Args:
            start: number of the answer's first token.
            text: what membership is judged by, the document or its answer.
            answer_only: that text is the answer.
        """
        answer = one.after(start)
        judged = answer if answer_only else one
        return cls(judged.nll, membership_signals(judged, text), _answer(answer))

    def document_loss(self, row: Row, member: bool) -> DocumentLoss:
        return DocumentLoss(row.id, member, self.nll, row.task, self.signals)

    def answer_likelihood(self, row: Row) -> AnswerLikelihood:
        return AnswerLikelihood(row, *self.answer)


@dataclass
class Kept:
    """Completions and readings of one model, written as they come, so that a kill loses a batch.

    Attributes:
        path: JSON Lines; None keeps them in memory only.
    """

    path: Path | None = None
    completions: dict[str, str] = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)
    mmlu: dict[str, tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        for row in read_jsonl(self.path) if self.path else []:
            if "completion" in row:
                self.completions[row["key"]] = row["completion"]
            elif "mmlu" in row:
                self.mmlu = {subject: (right, n) for subject, (right, n) in row["mmlu"].items()}
            elif "answer" in row:
                answer = tuple(row["answer"])
                self.readings[row["key"]] = Reading(row["nll"], row["signals"], answer)

    def keep_completion(self, row: Row, completion: str) -> None:
        self.completions[prompt_key(row)] = completion
        self._append({"key": prompt_key(row), "completion": completion})

    def keep_reading(self, row: Row, reading: Reading) -> None:
        self.readings[document_key(row)] = reading
        self._append({"key": document_key(row), **asdict(reading)})

    def keep_mmlu(self, counts: dict[str, tuple[int, int]]) -> None:
        self.mmlu = counts
        self._append({"mmlu": counts})

    def _append(self, values: dict[str, Any]) -> None:
        if self.path is not None:
            append_jsonl(self.path, [values])


def prompt_key(row: Row) -> str:
    """The same for equal prompts."""
    return hashlib.sha256(row.input.encode()).hexdigest()[:32]


def document_key(row: Row) -> str:
    """The same for equal documents with the answer at the same place."""
    return hashlib.sha256(json.dumps([row.input, row.output]).encode()).hexdigest()[:32]


def _answer(answer: TokenLikelihoods) -> tuple[float, int, float, float]:
    n = len(answer.logps)
    if n == 0:
        return 0.0, 0, 0.0, 0.0
    wrong = (~answer.greedy).nonzero()[0]
    extracted = 1 - (int(wrong[-1]) + 1) / n if len(wrong) else 1.0
    return answer.nll, n, float(answer.greedy.mean()), float(extracted)
