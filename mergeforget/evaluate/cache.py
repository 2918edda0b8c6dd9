"""What is kept of one document's likelihoods, and where an interrupted evaluation keeps it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mergeforget.data.schema import AnswerLikelihood, DocumentLoss, Row
from mergeforget.distributed import ALONE, RankShare
from mergeforget.evaluate.likelihood import TokenLikelihoods
from mergeforget.evaluate.membership import membership_signals
from mergeforget.files import append_jsonl, read_jsonl
from mergeforget.score import Score


@dataclass(frozen=True)
class Reading:
    """One document as a model predicts it.

    Attributes:
        nll: mean over the tokens that membership is judged by, in nats.
        signals: membership signals of the same tokens; none where there is no such token.
        answer: NLL, number of tokens, share of greedy ones and share extracted, of the answer.
    """

    nll: float
    signals: dict[str, float]
    answer: tuple[float, int, float, float]

    @classmethod
    def of(
        cls, one: TokenLikelihoods, start: int, text: str, answer_only: bool, content: int = 0
    ) -> Reading:
        """From the likelihoods of a document's tokens.

        Args:
            start: number of the answer's first token.
            text: what membership is judged by, the document or its answer.
            answer_only: that text is the answer.
            content: number of the document's first token after BOS, system message and template.
        """
        answer = one.after(start)
        judged = answer if answer_only else one.after(content)
        return cls(judged.nll, membership_signals(judged, text), _answer(answer))

    @property
    def judged(self) -> bool:
        """Whether there was a token to judge membership by."""
        return bool(self.signals)

    def document_loss(self, row: Row, member: bool) -> DocumentLoss:
        """The document's loss, as a member or a non-member."""
        return DocumentLoss(row.id, member, self.nll, row.task, self.signals, row.subject)

    def answer_likelihood(self, row: Row) -> AnswerLikelihood:
        """The likelihood of the row's answer."""
        return AnswerLikelihood(row, *self.answer)


@dataclass
class Kept:
    """Completions and readings of one model, written as they come, so that a kill loses a batch.

    Where several processes share the rows, each writes a file of its own until they gather.

    Attributes:
        path: JSON Lines; None keeps them in memory only.
        sharing: the processes that share the rows.
        gradients: norms, by the key of the document.
        tasks: scores of lm-eval, by task and settings.
    """

    path: Path | None = None
    sharing: RankShare = ALONE
    completions: dict[str, str] = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    mmlu: dict[str, tuple[int, int]] | None = None
    tasks: dict[str, list[Score]] = field(default_factory=dict)
    _new: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        parts = parts_of(self.path)
        left = [row for part in parts for row in read_jsonl(part)]  # of processes that were killed
        for row in [*read_jsonl(self.path), *left]:
            self._take(row)
        self.sharing.wait()  # nobody writes before all have read
        if self.sharing.main and parts:
            append_jsonl(self.path, left)
            for part in parts:
                part.unlink()
        self.sharing.wait()

    def answer_likelihood(self, row: Row) -> AnswerLikelihood:
        """What was read of a row's answer, and of its other answers."""
        one = self.readings[document_key(row)].answer_likelihood(row)
        others = [self.readings[document_key(other)].answer[0] for other in row.alternatives]
        paraphrased = others.pop(0) if row.paraphrased else None
        return replace(one, paraphrased=paraphrased, perturbed=tuple(others))

    def document_loss(self, row: Row, member: bool) -> DocumentLoss:
        """What was read of a document, and the norm of its gradient where that was asked for."""
        key = document_key(row)
        one = self.readings[key].document_loss(row, member)
        norm = self.gradients.get(key)
        return one if norm is None else replace(one, signals=one.signals | {"gradient_norm": -norm})

    def keep_completion(self, row: Row, completion: str) -> None:
        """Save a generated answer."""
        self._keep({"key": prompt_key(row), "completion": completion})

    def keep_reading(self, row: Row, reading: Reading) -> None:
        """Save the likelihoods of a document."""
        self._keep({"key": document_key(row), **asdict(reading)})

    def keep_gradient(self, row: Row, norm: float) -> None:
        """Save a gradient norm."""
        self._keep({"key": document_key(row), "gradient_norm": norm})

    def keep_mmlu(self, counts: dict[str, tuple[int, int]]) -> None:
        """Save the counts of MMLU."""
        self._keep({"mmlu": counts})

    def keep_task(self, key: str, scores: list[Score]) -> None:
        """Save the scores of an lm-eval task."""
        self._keep({"key": key, "task": [score.to_dict() for score in scores]})

    def gather(self) -> None:
        """Give every process what the others read; the main one writes it all to ``path``."""
        if self.sharing.count == 1:
            return
        for rank, row in self.sharing.gather([(self.sharing.rank, r) for r in self._new]):
            self._take(row)
            if self.path and self.sharing.main and rank != 0:
                append_jsonl(self.path, [row])
        self._new.clear()
        self.sharing.wait()  # what is deleted now is safe in the main file
        part = self._part()
        if part is not None and not self.sharing.main:
            part.unlink(missing_ok=True)

    def _keep(self, row: dict[str, Any]) -> None:
        self._take(row)
        if self.sharing.count > 1:
            self._new.append(row)
        part = self._part()
        if part is not None:
            append_jsonl(part, [row])

    def _take(self, row: dict[str, Any]) -> None:
        if "completion" in row:
            self.completions[row["key"]] = row["completion"]
        elif "answer" in row:
            answer = tuple(row["answer"])
            self.readings[row["key"]] = Reading(row["nll"], row["signals"], answer)
        elif "gradient_norm" in row:
            self.gradients[row["key"]] = row["gradient_norm"]
        elif "mmlu" in row:
            self.mmlu = {subject: (right, n) for subject, (right, n) in row["mmlu"].items()}
        elif "task" in row:
            self.tasks[row["key"]] = [Score.from_dict(values) for values in row["task"]]

    def _part(self) -> Path | None:
        """Where this process writes."""
        if self.path is None or self.sharing.main:
            return self.path
        return self.path.with_name(f"{self.path.stem}.rank{self.sharing.rank}.jsonl")


def parts_of(path: Path) -> list[Path]:
    """What processes other than the main one had written when they were killed."""
    return sorted(path.parent.glob(f"{path.stem}.rank*.jsonl"))


def prompt_key(row: Row) -> str:
    """The same for equal prompts."""
    text = json.dumps([row.input, *_form(row)]) if _form(row) else row.input
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def document_key(row: Row) -> str:
    """The same for equal documents with the answer at the same place."""
    text = json.dumps([row.input, row.output, *_form(row)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _form(row: Row) -> list[Any]:
    """What besides prompt and answer decides a row's tokens."""
    turns = [[m.role, m.content] for m in row.messages]
    return [turns, row.window] if turns or row.window else []


def _answer(answer: TokenLikelihoods) -> tuple[float, int, float, float]:
    n = len(answer.logps)
    if n == 0:
        return 0.0, 0, 0.0, 0.0
    wrong = (~answer.greedy).nonzero()[0]
    extracted = 1 - (int(wrong[-1]) + 1) / n if len(wrong) else 1.0
    return answer.nll, n, float(answer.greedy.mean()), float(extracted)
