"""A row of the data: a prompt, its answer, and what it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mergeforget.score import Score

Kind = Literal["sc", "qa", "other"]
Window = Literal["", "whole", "start", "middle", "end"]
MMLU_SHOTS = 5  # where nothing else is asked for


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: the text, without any template token.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One prompt and its answer.

    Attributes:
        id: LUME's ids end in ``sc1``, ``qa0``, ...: sentence completion and question answering.
        input: the prompt; of a conversation its last user turn.
        output: the answer that is trained, forgotten or kept.
        task: Task1, Task2, Task3, or empty.
        split: forget, retain, holdout, or the name of a further set.
        weight: how much the row counts in a training: 2 is as if it were there twice, 0 as if it
            were not there.
        paraphrased: the answer in other words; empty where there is none.
        perturbed: wrong answers of the same form.
        subject: the person or document that the row is about. Rows with the same subject stay
            together in every draw and split. Where it is not given, it is derived from a LUME id:
            the id without its kind and number; any other id is its own subject.
        messages: the turns of a conversation before ``input``, a system message included.
        window: ``start``, ``middle`` and ``end`` mark windows of a document that has no prompt,
            ``whole`` a document of one window. They are never rendered with a chat template. The
            input of the first window is trained and judged together with its output; the input of
            a later one repeats the end of the window before it and is context only.
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

    def __post_init__(self) -> None:
        if not self.subject:
            object.__setattr__(self, "subject", _subject_of(self.id))

    @property
    def kind(self) -> Kind:
        """``sc`` or ``qa`` by the id, as SemEval-2025 Task 4's script decides it."""
        stem = self.id.rstrip('"')[:-1]
        return "sc" if stem.endswith("sc") else "qa" if stem.endswith("qa") else "other"

    @property
    def opens(self) -> bool:
        """Whether the row is a document's first window, so that its input is trained as well."""
        return self.window in ("whole", "start")

    @property
    def prompt(self) -> str:
        """The prompt as plain text: the contents of earlier turns and the input, a line each."""
        return "\n".join([*(m.content for m in self.messages), self.input])

    @property
    def document(self) -> str:
        """The whole text, prompt and answer; a row may be prompt alone.

        A blank joins the two unless there is whitespace on either side of the border.
        """
        return self.prompt + self.joint() + self.output if self.output else self.prompt

    def joint(self, blank: str = " ") -> str:
        """``blank``, or nothing where whitespace separates the prompt from the answer already."""
        here = self.input[-1:].isspace() or self.output[:1].isspace() or not self.prompt
        here = here or bool(self.window)
        return "" if here else blank

    @property
    def alternatives(self) -> list[Row]:
        """The same prompt with each other answer: the paraphrased one, then the perturbed ones."""
        others = [self.paraphrased] if self.paraphrased else []
        return [
            replace(self, output=output, paraphrased="", perturbed=())
            for output in [*others, *self.perturbed]
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; optional fields that hold their default are left out."""
        values = asdict(self) | {
            "perturbed": list(self.perturbed),
            "messages": [asdict(m) for m in self.messages],
        }
        usual = {"weight": 1.0, "paraphrased": "", "perturbed": [], "messages": [], "window": "",
                 "subject": _subject_of(self.id)}  # fmt: skip
        return {k: v for k, v in values.items() if k not in usual or v != usual[k]}


def _subject_of(row_id: str) -> str:
    """What the LUME ids of one document share; any other id as it is."""
    stem = row_id.strip('"').rstrip("0123456789")
    return stem[:-2].strip('"') if stem.endswith(("sc", "qa")) else row_id


@dataclass(frozen=True)
class Answer:
    """What a model generated for a row's prompt."""

    row: Row
    completion: str


@dataclass(frozen=True)
class DocumentLoss:
    """How well a model predicts one document.

    Attributes:
        id: of the row the document comes from.
        member: True where the document was in the training data (the forget set).
        nll: mean negative log-likelihood of its tokens, in nats.
        signals: further membership signals by name; larger means more likely a member.
        subject: of the row; derived from the id where it is not given.
    """

    id: str
    member: bool
    nll: float
    task: str = ""
    signals: dict[str, float] = field(default_factory=dict)
    subject: str = ""

    def __post_init__(self) -> None:
        if not self.subject:
            object.__setattr__(self, "subject", _subject_of(self.id))


@dataclass(frozen=True)
class AnswerLikelihood:
    """How well a model predicts a row's answer after its prompt.

    Attributes:
        nll: mean negative log-likelihood of the answer's tokens, in nats.
        tokens: of the answer.
        greedy: share of them that the model would have chosen itself.
        extracted: share of them, counted from the end, that greedy decoding gives without a fault.
        paraphrased: mean NLL of the paraphrased answer; None where the row has none.
        perturbed: mean NLL of each perturbed answer.
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
    """Everything that was read off one model, from which every score is computed.

    Attributes:
        answers: generations for forget and retain rows.
        losses: likelihood of members and non-members.
        likelihoods: of the answers of forget and retain rows.
        mmlu: (correct, asked) by subject; empty where MMLU was not run.
        mmlu_shots: examples that each of its prompts showed, at most.
        known: scores that somebody else computed, for example lm-eval.
        retrained: the same, read off a model that was trained without the forget set.
        membership: what ``losses`` are of: documents, rows or answers.
    """

    answers: list[Answer]
    losses: list[DocumentLoss]
    mmlu: dict[str, tuple[int, int]] = field(default_factory=dict)
    likelihoods: list[AnswerLikelihood] = field(default_factory=list)
    known: list[Score] = field(default_factory=list)
    retrained: Measured | None = None
    membership: str = "documents"
    mmlu_shots: int = MMLU_SHOTS
