"""Cached measurements of one model: completions, likelihoods, gradient norms, MMLU, lm-eval."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mergeforget.data.schema import AnswerLikelihood, DocumentLoss, Row
from mergeforget.distributed import ALONE, RankShare
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.likelihood import TokenLikelihoods
from mergeforget.evaluate.membership import membership_signals
from mergeforget.files import append_jsonl, read_jsonl, reading
from mergeforget.score import Score


@dataclass(frozen=True)
class DocumentMeasurement:
    """Likelihoods of one document.

    Attributes:
        nll: Mean NLL of the tokens used for membership inference, in nats.
        signals: Membership signals of the same tokens; empty if there is none.
        answer: NLL of the answer, its number of tokens, the share of greedily predicted tokens,
            and the extraction strength.
    """

    nll: float
    signals: dict[str, float]
    answer: tuple[float, int, float, float]

    @classmethod
    def of(
        cls, one: TokenLikelihoods, start: int, text: str, answer_only: bool, content: int = 0
    ) -> DocumentMeasurement:
        """Summarise the token likelihoods of a document.

        Args:
            start: Index of the first token of the answer.
            text: Text used for membership inference: the document or its answer.
            answer_only: Whether that text is the answer.
            content: Index of the first token after BOS, system message and template header.
        """
        answer = one.after(start)
        judged = answer if answer_only else one.after(content)
        return cls(judged.nll, membership_signals(judged, text), _answer(answer))

    @property
    def judged(self) -> bool:
        """Whether there is any token for membership inference."""
        return bool(self.signals)

    def document_loss(self, row: Row, member: bool) -> DocumentLoss:
        """Return the loss of the document as a member or non-member."""
        return DocumentLoss(row.id, member, self.nll, row.task, self.signals, row.subject)

    def answer_likelihood(self, row: Row) -> AnswerLikelihood:
        """Return the likelihood of the row's answer."""
        return AnswerLikelihood(row, *self.answer)


@dataclass
class EvaluationCache:
    """Cached measurements of one model.

    Each measurement is appended to a file at once, so an interrupted evaluation loses at most one
    batch. If several processes share the rows, each writes its own file until ``gather``.

    Attributes:
        path: JSON Lines file; None keeps the measurements in memory only.
        sharing: The processes that share the rows.
        gradients: Gradient norms by document key.
        tasks: Scores of lm-eval by task and settings.
    """

    path: Path | None = None
    sharing: RankShare = ALONE
    completions: dict[str, Completion] = field(default_factory=dict)
    documents: dict[str, DocumentMeasurement] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    mmlu: dict[str, tuple[int, int]] | None = None
    tasks: dict[str, list[Score]] = field(default_factory=dict)
    _new: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        parts = rank_files(self.path)
        left = [row for part in parts for row in read_jsonl(part)]  # from an interrupted run
        for row in [*read_jsonl(self.path), *left]:
            with reading(self.path):
                self._add(_checked(row))
        self.sharing.wait()  # no process writes before all have read
        if self.sharing.main and parts:
            append_jsonl(self.path, left)
            for part in parts:
                part.unlink()
        self.sharing.wait()

    def answer_likelihood(self, row: Row) -> AnswerLikelihood:
        """Return the likelihood of a row's answer, with its paraphrased and perturbed answers."""
        one = self.documents[document_key(row)].answer_likelihood(row)
        others = [self.documents[document_key(other)].answer[0] for other in row.alternatives]
        paraphrased = others.pop(0) if row.paraphrased else None
        return replace(one, paraphrased=paraphrased, perturbed=tuple(others))

    def document_loss(self, row: Row, member: bool) -> DocumentLoss:
        """Return the loss of a document, with its gradient norm if that was measured."""
        key = document_key(row)
        one = self.documents[key].document_loss(row, member)
        norm = self.gradients.get(key)
        return one if norm is None else replace(one, signals=one.signals | {"gradient_norm": -norm})

    def save_completion(self, row: Row, completion: Completion) -> None:
        """Save the tokens generated for a row's prompt."""
        values = {"key": prompt_key(row), "tokens": list(completion.ids)}
        self._save(values | ({"stops": list(completion.stops)} if completion.stops else {}))

    def save_document(self, row: Row, reading: DocumentMeasurement) -> None:
        """Save the likelihoods of a document."""
        self._save({"key": document_key(row), **asdict(reading)})

    def save_gradient(self, row: Row, norm: float) -> None:
        """Save a gradient norm."""
        self._save({"key": document_key(row), "gradient_norm": norm})

    def save_mmlu(self, counts: dict[str, tuple[int, int]]) -> None:
        """Save the counts of MMLU."""
        self._save({"mmlu": counts})

    def save_task(self, key: str, scores: list[Score]) -> None:
        """Save the scores of an lm-eval task."""
        self._save({"key": key, "task": [score.to_dict() for score in scores]})

    def gather(self) -> None:
        """Exchange new measurements between the processes; the main one writes them to ``path``."""
        if self.sharing.count == 1:
            return
        for rank, row in self.sharing.gather([(self.sharing.rank, r) for r in self._new]):
            self._add(row)
            if self.path and self.sharing.main and rank != 0:
                append_jsonl(self.path, [row])
        self._new.clear()
        self.sharing.wait()  # the main file now contains what is deleted next
        part = self._part()
        if part is not None and not self.sharing.main:
            part.unlink(missing_ok=True)

    def _save(self, row: dict[str, Any]) -> None:
        self._add(row)
        if self.sharing.count > 1:
            self._new.append(row)
        part = self._part()
        if part is not None:
            append_jsonl(part, [row])

    def _add(self, row: dict[str, Any]) -> None:
        """Add one line of the file to the measurements in memory."""
        if "tokens" in row:
            self.completions[row["key"]] = Completion(
                tuple(row["tokens"]), tuple(row.get("stops", ()))
            )
        elif "answer" in row:
            answer = tuple(row["answer"])
            self.documents[row["key"]] = DocumentMeasurement(row["nll"], row["signals"], answer)
        elif "gradient_norm" in row:
            self.gradients[row["key"]] = row["gradient_norm"]
        elif "mmlu" in row:
            self.mmlu = {subject: (right, n) for subject, (right, n) in row["mmlu"].items()}
        elif "task" in row:
            self.tasks[row["key"]] = [Score.from_dict(values) for values in row["task"]]

    def _part(self) -> Path | None:
        """Return the file of this process."""
        if self.path is None or self.sharing.main:
            return self.path
        return self.path.with_name(f"{self.path.stem}.rank{self.sharing.rank}.jsonl")


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """Raise TypeError for a line whose values have other types than those that are saved."""
    wanted = {"key": str, "nll": int | float, "gradient_norm": int | float}
    for name, kind in wanted.items():
        if name in row and (isinstance(row[name], bool) or not isinstance(row[name], kind)):
            raise TypeError(f"{name} is {str(row[name])[:40]!r}")
    ids = [*row.get("tokens", []), *row.get("stops", [])]
    if not all(type(one) is int for one in ids):
        raise TypeError("tokens and stops hold token ids")
    numbers = [*row.get("signals", {}).values(), *row.get("answer", [])]
    if not all(isinstance(one, int | float) for one in numbers):
        raise TypeError("signals and answer hold numbers")
    return row


def rank_files(path: Path) -> list[Path]:
    """Return the files of processes other than the main one, left by an interrupted run."""
    return sorted(path.parent.glob(f"{path.stem}.rank*.jsonl"))


def prompt_key(row: Row) -> str:
    """Return the cache key of a prompt; equal prompts have the same key."""
    text = json.dumps([row.input, *_form(row)]) if _form(row) else row.input
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def document_key(row: Row) -> str:
    """Return the cache key of a document; it depends on where the answer begins."""
    text = json.dumps([row.input, row.output, *_form(row)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _form(row: Row) -> list[Any]:
    """Return what else determines a row's tokens, besides prompt and answer."""
    turns = [[m.role, m.content] for m in row.messages]
    return [turns, row.window] if turns or row.window else []


def _answer(answer: TokenLikelihoods) -> tuple[float, int, float, float]:
    n = len(answer.logps)
    if n == 0:
        return 0.0, 0, 0.0, 0.0
    wrong = (~answer.greedy).nonzero()[0]
    extracted = 1 - (int(wrong[-1]) + 1) / n if len(wrong) else 1.0
    return answer.nll, n, float(answer.greedy.mean()), float(extracted)
