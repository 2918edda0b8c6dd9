"""The rows of a data set, and the measurements of a model on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mergeforget.score import Score

Kind = Literal["sc", "qa", "other"]
Window = Literal["", "whole", "start", "middle", "end"]
_LUME = re.compile(r'"?[^"].*?(sc|qa)\d+"?', re.DOTALL)
MMLU_SHOTS = 5  # default number of examples


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: The text, without any template token.
    """

    role: str
    content: str


def stored_messages(values: Any) -> tuple[Message, ...]:
    """Return the turns of a row as ``Row.to_dict`` writes them; none for any other value."""
    turns = values if isinstance(values, list) else []
    return tuple(Message(str(m["role"]), str(m["content"])) for m in turns if isinstance(m, dict))


@dataclass(frozen=True)
class Row:
    """One prompt and its answer.

    Attributes:
        id: LUME's ids end in ``sc1``, ``qa0``, ...: sentence completion and question answering.
        input: The prompt; of a conversation its last user turn.
        output: The answer that is trained, forgotten or kept.
        task: Task1, Task2, Task3, or empty.
        split: forget, retain, holdout, or the name of a further set.
        weight: Weight of the row in training: 2 has the effect of two copies, 0 of removing it.
        paraphrased: The answer in other words; empty if there is none.
        further_answers: Other right answers to the same prompt. They are not trained; a completion
            that contains one reveals the row.
        perturbed: Wrong answers of the same form.
        subject: The person or document that the row is about. Rows with the same subject stay
            together in every subset and split. The default is derived from a LUME id (the id
            without its kind and number); any other id is its own subject.
        messages: The turns of a conversation before ``input``, a system message included.
        window: ``start``, ``middle`` and ``end`` mark windows of a document that has no prompt,
            ``whole`` a document of one window. They are never rendered with a chat template. The
            input of the first window is trained and judged together with its output; the input of
            a later one repeats the end of the window before it and is context only.
        cut: Whether the answer is the beginning of a longer one. No token ends it, neither in
            training nor in the comparison with a completion.
    """

    id: str
    input: str
    output: str
    task: str = ""
    split: str = ""
    weight: float = 1.0
    paraphrased: str = ""
    perturbed: tuple[str, ...] = ()
    subject: str = ""
    messages: tuple[Message, ...] = ()
    window: Window = ""
    cut: bool = False
    further_answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.subject:
            object.__setattr__(self, "subject", _subject_of(self.id))

    @property
    def kind(self) -> Kind:
        """``sc`` or ``qa`` if the id ends in it and a number after the id of a document.

        As in SemEval-2025 Task 4's script, which removes one digit; here, the tenth question of a
        document is a question, too. Other ids may look the same: use ``kinds_of`` or ``preferred``
        to select rows of a set.
        """
        match = _LUME.fullmatch(self.id)
        return "other" if match is None else "sc" if match[1] == "sc" else "qa"

    @property
    def opens(self) -> bool:
        """Whether the row is a document's first window, so that its input is trained as well."""
        return self.window in ("whole", "start")

    @property
    def prompt(self) -> str:
        """The prompt as plain text: earlier turns and the input, each on its own line."""
        return "\n".join([*(m.content for m in self.messages), self.input])

    @property
    def document(self) -> str:
        """The whole text: prompt and answer, or the prompt alone if there is no answer.

        They are joined by a space, unless there is whitespace on either side of the boundary.
        """
        return self.prompt + self.joint() + self.output if self.output else self.prompt

    def joint(self, blank: str = " ") -> str:
        """Return ``blank``, or "" if whitespace already separates prompt and answer."""
        here = self.input[-1:].isspace() or self.output[:1].isspace() or not self.prompt
        here = here or bool(self.window)
        return "" if here else blank

    @property
    def references(self) -> tuple[str, ...]:
        """The right answers: ``output``, ``paraphrased`` and ``further_answers``, if any."""
        return tuple(
            text for text in (self.output, self.paraphrased, *self.further_answers) if text
        )

    @property
    def alternatives(self) -> list[Row]:
        """Rows with the same prompt and each other answer: paraphrased first, then perturbed."""
        others = [self.paraphrased] if self.paraphrased else []
        return [
            replace(
                self, output=output, paraphrased="", perturbed=(), further_answers=(), cut=False
            )
            for output in [*others, *self.perturbed]
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without optional fields that have their default."""
        values = asdict(self) | {
            "perturbed": list(self.perturbed),
            "further_answers": list(self.further_answers),
            "messages": [asdict(m) for m in self.messages],
        }
        usual = {"weight": 1.0, "paraphrased": "", "perturbed": [], "messages": [], "window": "",
                 "cut": False, "further_answers": [], "subject": _subject_of(self.id)}  # fmt: skip
        return {k: v for k, v in values.items() if k not in usual or v != usual[k]}


def _subject_of(row_id: str) -> str:
    """Return the common part of the LUME ids of one document; any other id unchanged.

    >>> _subject_of("4f2aqa0"), _subject_of("qa7")
    ('4f2a', 'qa7')
    """
    stem = row_id.strip('"').rstrip("0123456789")
    return stem.endswith(("sc", "qa")) and stem[:-2].strip('"') or row_id


def kinds_of(rows: Sequence[Row]) -> list[Kind]:
    """Return the kind of each row of a set; ``other`` for all rows if their ids are not LUME's.

    They are if every id has its form (windows of documents aside), or if a document has rows of
    both kinds. A single id such as ``Xk2qa9`` among others means nothing.
    """
    kinds: list[Kind] = [row.kind for row in rows]
    named = all(kind != "other" for row, kind in zip(rows, kinds, strict=True) if not row.window)
    documents = [{_subject_of(row.id) for row in rows if row.kind == one} for one in ("sc", "qa")]
    return kinds if named or documents[0] & documents[1] else ["other"] * len(rows)


def preferred(rows: Sequence[Row], kind: Literal["sc", "qa"]) -> list[bool]:
    """Return whether each row of a set is measured, if one kind is preferred.

    Only rows of the other kind are left out, and only if their document has one of this kind.

    >>> preferred([Row("a-sc1", "", ""), Row("a-qa0", "", ""), Row("b-qa0", "", "")], "sc")
    [True, False, True]
    """
    documents = {_subject_of(row.id) for row in rows if row.kind == kind}
    return [row.kind in (kind, "other") or _subject_of(row.id) not in documents for row in rows]


def with_own_subjects(rows: list[Row]) -> list[Row]:
    """Make each row its own subject if the ids of a file only look like those of one document.

    These are the ids ``test_qa1``, ``test_qa2``, ...: all rows have the same subject, which is
    derived from the ids and contains no digit, as that of a LUME document does.
    """
    subjects = {row.subject for row in rows}
    derived = all(row.subject == _subject_of(row.id) != row.id for row in rows)
    if len(rows) < 2 or len(subjects) > 1 or not derived or any(map(str.isdigit, rows[0].subject)):
        return rows
    return [replace(row, subject=row.id) for row in rows]


@dataclass(frozen=True)
class Answer:
    """The completion that a model generated for a row's prompt.

    Attributes:
        others: Different completions in other prompt variants, of which ``completion`` is the one
            closest to the reference. Guessing has more chances with several.
        decoded: The reference as the tokenizer of the model decodes it, such as ``naive cafe`` for
            ``naïve café``; empty if that is the same text, or no tokenizer was available.
    """

    row: Row
    completion: str
    others: tuple[str, ...] = ()
    decoded: str = ""

    @property
    def references(self) -> tuple[str, ...]:
        """The reference, and its form as the tokenizer decodes it if that differs.

        A model whose tokenizer changes case, accents or spaces cannot write the reference itself.
        """
        return (self.row.output, self.decoded) if self.decoded else (self.row.output,)

    @property
    def texts(self) -> tuple[str, ...]:
        """The completions of all prompt variants."""
        return (self.completion, *self.others)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        others = {"others": list(self.others)} if self.others else {}
        decoded = {"decoded": self.decoded} if self.decoded else {}
        return {**self.row.to_dict(), "completion": self.completion, **others, **decoded}


@dataclass(frozen=True)
class DocumentLoss:
    """Loss and membership signals of one document.

    Attributes:
        id: Id of the row.
        member: Whether the document was in the training data (the forget set).
        nll: Mean negative log-likelihood of its tokens, in nats.
        signals: Further membership signals by name; larger means more likely a member.
        subject: Subject of the row; derived from the id by default.
        variant: Prompt variant of ``nll``, for example ``raw``; empty if unknown.
        by_variant: NLL in each prompt variant, if there are several.
    """

    id: str
    member: bool
    nll: float
    task: str = ""
    signals: dict[str, float] = field(default_factory=dict)
    subject: str = ""
    variant: str = field(default="", compare=False)
    by_variant: dict[str, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.subject:
            object.__setattr__(self, "subject", _subject_of(self.id))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the signals."""
        values = {"id": self.id, "member": self.member, "task": self.task, "nll": self.nll,
                  "subject": self.subject}  # fmt: skip
        more = {"variant": self.variant, "by_variant": self.by_variant}
        return values | {name: value for name, value in more.items() if value}


@dataclass(frozen=True)
class AnswerLikelihood:
    """Likelihood of a row's answer given its prompt.

    Attributes:
        nll: Mean negative log-likelihood of the answer's tokens, in nats.
        tokens: Number of tokens of the answer.
        greedy: Share of the tokens that are the most likely one.
        extracted: Share of the tokens at the end of the answer that greedy decoding yields
            without an error.
        paraphrased: Mean NLL of the paraphrased answer; None if there is none.
        perturbed: Mean NLL of each perturbed answer.
    """

    row: Row
    nll: float
    tokens: int
    greedy: float = 0.0
    extracted: float = 0.0
    paraphrased: float | None = None
    perturbed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measured:
    """All measurements of one model, from which its scores are computed.

    Attributes:
        answers: Generated answers for forget and retain rows.
        losses: Losses of members and non-members.
        likelihoods: Likelihoods of the answers of forget and retain rows.
        mmlu: (correct, asked) by subject; empty if MMLU was not run.
        mmlu_shots: Maximum number of examples in each MMLU prompt.
        known: Scores computed elsewhere, for example by lm-eval.
        retrained: Measurements of a model that was trained without the forget set.
        membership: Unit of ``losses``: documents, rows or answers.
    """

    answers: list[Answer]
    losses: list[DocumentLoss]
    mmlu: dict[str, tuple[int, int]] = field(default_factory=dict)
    likelihoods: list[AnswerLikelihood] = field(default_factory=list)
    known: list[Score] = field(default_factory=list)
    retrained: Measured | None = None
    membership: str = "documents"
    mmlu_shots: int = MMLU_SHOTS
